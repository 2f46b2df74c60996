"""--find-lr: the learning rate range test on a fold's own batches, with its own objective."""

import pandas as pd

from kfold.rehearsal.assembled import ChosenFold, assemble, endless_batches
from kfold.report.rehearsal_pictures import lr_picture
from kfold.report.spreadsheet import to_spreadsheet
from kfold.seals import write_sealed
from kfold.training.lr_finder import Curve, growing_rates, range_test, suggest
from kfold.training.rewind import rewound


def find_lr(chosen: ChosenFold) -> None:
    """Print the largest learning rate at which the loss still falls, and a careful one; leave the curve in a file."""
    config, path_of = chosen.config, chosen.workspace.lr_range_path
    fold = assemble(chosen, config)
    factor = fold.recipe.peak_lr / config.lr  # of scale_lr
    title = f"{chosen.name}: {config.backbone}, {config.optimizer}, batches of {config.batch_size}"
    print(f"{title}: learning rate range test")
    batches = endless_batches(fold.batches, fold.epoch, chosen.stop)

    def step(number: int, rate: float) -> float:
        return fold.step(next(batches), fold.moment(number, rate))

    with rewound(fold.training):
        curve = range_test(step, growing_rates())
    csv_path, png_path = (path_of(chosen.run, chosen.number, suffix) for suffix in ("csv", "png"))
    write_sealed(csv_path, to_spreadsheet(curve_table(curve)))
    suggestion = None
    try:
        suggestion = suggest(curve)
    finally:  # a curve that suggests nothing is worth a look, too
        write_sealed(png_path, lr_picture(curve, suggestion, title))
        print(f"  the curve: {png_path}, and .csv")
    print(f"  {len(curve.rates)} rates, the last {curve.rates[-1]:.1e}: {curve.end}")
    print(f"  the largest rate at which the smoothed loss still falls: lr={suggestion.largest / factor:.1e}")
    print(f"  a tenth of it, which leaves room for a whole run: lr={suggestion.careful / factor:.1e} <- take this one")
    if suggestion.note:
        print(f"  mind: {suggestion.note}")
    if suggestion.careful < config.min_lr:
        print(f"  mind: it is below min_lr={config.min_lr:g}: set min_lr={suggestion.careful / 100:.0e}, too")


def curve_table(curve: Curve) -> pd.DataFrame:
    return pd.DataFrame(
        {"learning_rate": curve.rates, "batch_loss": curve.losses, "smoothed_loss": curve.smoothed}, dtype=float
    )
