"""report.py --augment-preview: what the model really sees of some images, from epoch to epoch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader

from kfold.config import Config
from kfold.data.cache import Pixels
from kfold.data.images import read_image
from kfold.data.loader import EpochOrder, read_batches
from kfold.rehearsal.assembled import ChosenFold
from kfold.report.augment_preview import Cell, SheetRow, draw_sheet
from kfold.seals import write_sealed
from kfold.seeds import batch_seed
from kfold.setup.batches import largest_size, make_batches
from kfold.setup.objective import make_mixer
from kfold.setup.pixels import choose_rule, read_record
from kfold.setup.rows import TrainingRows, all_paths, gather_rows
from kfold.training.predicting import refuse_unreadable

NUM_IMAGES = 6
MOST_SHARES = 3  # of a mixed label


def augment_preview(chosen: ChosenFold) -> None:
    """Write a sheet of images as training gets them, pixel by pixel, each beside its file; print where it is."""
    config, number = chosen.config, chosen.number
    rows = gather_rows(
        chosen.workspace, chosen.run, number, chosen.facts, config, chosen.folds, chosen.targets
    )  # fmt: skip
    if config.clean_labels:
        print(f"{chosen.name}: clean_labels={config.clean_labels} is not applied here: its order is of all rows")
    batches = preview_batches(chosen, rows)
    shown, epochs = first_rows(batches), shown_epochs(config.epochs)
    seen = {epoch: seen_in(batches, epoch, shown, config, number) for epoch in epochs}
    sheet_rows = []
    for row in shown:
        original = Cell(read_image(rows.train_paths[row]), str(rows.train_ids[row]))
        cells = [cell_of(seen[epoch].get(row), chosen.facts.task, chosen.targets.names) for epoch in epochs]
        sheet_rows.append(SheetRow(original, cells))
    title = f"{chosen.name}: augment={config.augment}" + (f", mixing={','.join(config.mixing)}" * bool(config.mixing))
    headings = [f"epoch {epoch + 1} of {config.epochs}" for epoch in epochs]
    path = chosen.workspace.augment_preview_path(chosen.run)
    write_sealed(path, draw_sheet(title, headings, sheet_rows, largest_size(config)))
    print(f"{title}\n  {len(shown)} images as training sees them: {path}")


def preview_batches(chosen: ChosenFold, rows: TrainingRows) -> DataLoader:
    """The loader of train.py, in this process, on the pixels that the run has or would take; makes no cache."""
    config = chosen.config.model_copy(update={"workers": 0})
    rule = read_record(chosen.workspace, chosen.run)
    if rule is None:
        names = [str(path) for path in all_paths(rows)]
        rule = choose_rule(chosen.workspace, config, names, config.epochs, chosen.stop.check)
    return make_batches(rows, chosen.facts.task, config, chosen.number, torch.device("cpu"), Pixels(rule))[0]


def shown_epochs(epochs: int) -> list[int]:
    """The first two, the middle and the last (from 0), which may do without augmentation."""
    return sorted({0, min(1, epochs - 1), epochs // 2, epochs - 1})


def first_rows(batches: DataLoader) -> list[int]:
    """Rows of the first batch."""
    order: EpochOrder = batches.batch_sampler
    order.epoch = order.start = 0
    return [key[1] for key in next(iter(order))[:NUM_IMAGES]]


def seen_in(
    batches: DataLoader, epoch: int, shown: Sequence[int], config: Config, fold: int
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Pixels (S, S, 3) and targets (C,) of these rows in an epoch, mixed as in a step; not of those it leaves out."""
    order: EpochOrder = batches.batch_sampler
    order.epoch, order.start = epoch, 0
    numbers = [number for number, keys in enumerate(order) if {key[1] for key in keys} & set(shown)]
    found = {}
    for number in numbers:
        batch = next(read_batches(batches, epoch, number))
        refuse_unreadable(batch)
        torch.manual_seed(batch_seed(config.seed, fold, epoch, number))
        pixels, targets, _ = make_mixer(config)(epoch, batch.images, batch.targets, batch.weights)
        for position, row in enumerate(batch.indices.tolist()):
            if row in shown:
                found[row] = pixels[position].numpy(), targets[position].numpy()
    return found


def cell_of(seen: tuple[np.ndarray, np.ndarray] | None, task: str, names: Sequence[str]) -> Cell:
    if seen is None:
        return Cell(None, "left out")
    return Cell(seen[0], describe(task, names, seen[1]))


def describe(task: str, names: Sequence[str], targets: np.ndarray) -> str:
    """The label that the loss compares with, before it is smoothed."""
    if task in ("binary", "regression"):
        return ", ".join(f"{name} {value:.3g}" for name, value in zip(names, targets, strict=True))
    best_first = [column for column in np.argsort(-targets, kind="stable") if targets[column] > 0]
    shares = [(names[column], targets[column]) for column in best_first[:MOST_SHARES]]
    return ", ".join(name if share == 1 else f"{name} {share:.2f}" for name, share in shares) or "no label"
