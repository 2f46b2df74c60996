"""Predict the validation and test rows of every trained fold, with test-time augmentation (TTA).

Command  python predict.py               or --run <name> --tta hflip
Reads    runs/<name>/ (config, weights), folds.csv, data/ (train and test images)
Writes   runs/<name>/fold<k>/{oof,test}.parquet and the fold's manifest
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from torch import nn

import competition
from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import Competition, Config, load_competition, load_config
from kfold.data.augment import eval_transform
from kfold.data.folds import Folds, read_folds, take_rows
from kfold.data.images import image_path
from kfold.data.loader import EpochOrder, Images, make_loader
from kfold.data.tables import read_test_ids
from kfold.data.targets import Targets
from kfold.ensemble.tta import TTA_TRANSFORMS, make_views
from kfold.errors import UserError, run_stage
from kfold.files import locked
from kfold.intervals import bootstrap_interval, paired_difference
from kfold.model.weights import ModelCard, load_model
from kfold.predictions import Predictions, ids_sha256, read_predictions, write_predictions
from kfold.training.loop import predict_logits, to_target_units
from kfold.training.precision import choose_device, choose_precision

ROOT = Path(__file__).resolve().parent


def main(run: str = "baseline", tta: str = "", overwrite: bool = False, root: Path = ROOT) -> None:
    """Write oof.parquet and test.parquet of each trained fold of `run`; print the OOF score without and with TTA."""
    workspace = Workspace(root)
    facts = load_competition(workspace.competition_path)
    artifacts.refuse_odd_name(run)
    numbers = workspace.trained_folds(run)
    if not numbers:
        found = ", ".join(workspace.run_names()) or "none yet"
        raise UserError(f"run {run}: no trained fold in {workspace.run_dir(run)}: run train.py first; runs: {found}")
    earlier = artifacts.read_manifest(workspace.fold_dir(run, numbers[0])).get("predicted", {})
    tta = tta or earlier.get("tta", "")  # run again, it keeps the views of before
    config = load_config(workspace.run_config_path(run), [f"tta={tta}"] if tta else [])
    folds = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    folds = take_rows(folds, config.limit)
    targets = competition.decode_targets(folds.table, facts)
    test_csv, sample_csv = (workspace.data_path(facts, name) for name in (facts.test_csv, facts.sample_submission_csv))
    test_ids = np.array(read_test_ids(test_csv, sample_csv, facts.id_column), object)

    without = np.full(targets.values.shape, np.nan, np.float32)  # OOF of the unchanged images
    merged = without.copy()  # OOF of all views
    for number in numbers:
        with locked(workspace.fold_dir(run, number)):
            valid = folds.fold == number
            plain, merged[valid] = predict_fold(
                workspace, run, number, facts, config, folds, targets, test_ids, overwrite
            )
            without[valid] = np.nan if plain is None else plain
    report(run, config.tta, without, merged, folds, targets, facts)


def predict_fold(
    workspace: Workspace,
    run: str,
    number: int,
    facts: Competition,
    config: Config,
    folds: Folds,
    targets: Targets,
    test_ids: np.ndarray,
    overwrite: bool,
) -> tuple[np.ndarray | None, np.ndarray]:
    """Out-of-fold predictions (N, C) of the fold without TTA (None where it was done before) and with it."""
    folder = workspace.fold_dir(run, number)
    artifacts.is_done(workspace, run, number, folds.stamp)  # refuses other folds and settings: they would leak
    manifest = artifacts.read_manifest(folder)
    artifacts.verify_files(folder, manifest)
    valid = folds.fold == number
    stamps = artifacts.stamps(folds.stamp, config, facts.task, manifest["weights_sha256"], config.tta)
    request = {"tta": config.tta, "test_ids": ids_sha256(test_ids)}
    if manifest.get("predicted") == request and not manifest["unreadable_test_ids"] and not overwrite:
        print(f"run {run}, fold {number}: predicted before with tta={config.tta} (--overwrite does it again)")
        oof = read_predictions(workspace.predictions_path(run, number, "oof"), folds.stamp, folds.ids[valid])
        return None, oof.aligned_to(folds.ids[valid])

    model, card = load_model(folder / manifest["weights"])
    if (card.task, card.names) != (facts.task, targets.names):
        raise UserError(
            f"{folder}: trained for other targets than competition.yaml and train.csv now give: train again"
        )
    train_dir, test_dir = (workspace.data_path(facts, name) for name in (facts.train_images, facts.test_images))
    unreadable: dict[int, str] = {}
    oof = predict_images(model, card, config, folds.ids[valid], train_dir, facts.image_suffix)
    test = predict_images(model, card, config, test_ids, test_dir, facts.image_suffix, unreadable).mean(axis=0)
    for row, reason in unreadable.items():
        test[row] = targets.values[~valid].mean(axis=0)  # the prior: a submission must have every row
        print(f"warning: {reason}: id '{test_ids[row]}' gets the prior prediction", file=sys.stderr)

    manifest = artifacts.forget_predictions(folder, manifest)
    merged = oof.mean(axis=0)
    fold_column = np.full(len(merged), number)
    oof_file, test_file = (workspace.predictions_path(run, number, rows) for rows in ("oof", "test"))
    write_predictions(oof_file, Predictions(folds.ids[valid], merged, card.names, stamps, fold_column))
    write_predictions(test_file, Predictions(test_ids, test, card.names, stamps))
    files = manifest.pop("files")
    unreadable_ids = [str(test_ids[row]) for row in unreadable]
    facts_of_fold = {**manifest, "predicted": request, "unreadable_test_ids": unreadable_ids}
    artifacts.write_manifest(folder, facts_of_fold, [oof_file.name, test_file.name], files)
    return oof[0], merged


def predict_images(
    model: nn.Module,
    card: ModelCard,
    config: Config,
    ids: np.ndarray,
    image_dir: Path,
    image_suffix: str,
    unreadable: dict[int, str] | None = None,
) -> np.ndarray:
    """Predictions of every view, (V, N, C). Rows of unreadable images go into `unreadable`; without it they raise."""
    device = choose_device()
    views = make_views(config.tta, card.image_size, bool(model.pretrained_cfg.get("fixed_input_size")))
    paths = [image_path(image_dir, image_id, image_suffix) for image_id in ids]
    images = Images(paths, np.zeros((len(ids), 0)), eval_transform(card.image_size), card.image_size)
    batches = make_loader(images, EpochOrder(len(ids), 2 * config.batch_size, False), config.num_workers, device)
    logits = predict_logits(
        model.to(device),
        batches,
        views,
        card,
        device,
        choose_precision(config.precision, device),
        None if unreadable is None else unreadable.__setitem__,
        title=image_dir.name,
    )
    return to_target_units(logits, card).numpy()


def report(
    run: str,
    tta: str,
    without: np.ndarray,
    merged: np.ndarray,
    folds: Folds,
    targets: Targets,
    facts: Competition,
) -> None:
    """Print the pooled OOF score without and with TTA, with their paired difference."""
    metric = competition.metric(facts)
    done = np.isfinite(merged).all(axis=1)
    truth, groups = targets.values[done], folds.group_or_none[done] if folds.group_or_none is not None else None
    low, high = bootstrap_interval(metric, truth, merged[done], groups)
    score = metric.function(truth, merged[done])
    print(f"run {run}, out of fold, tta={tta}: {metric.name} {score:.5f}, 95% interval {low:.5f} to {high:.5f}")
    if tta != "none" and np.isfinite(without[done]).all():
        gain, low, high = paired_difference(metric, truth, merged[done], without[done], groups)
        plain_score = metric.function(truth, without[done])
        verdict = "within noise" if low <= 0 <= high else "beyond noise"
        print(
            f"run {run}, out of fold, tta=none: {metric.name} {plain_score:.5f}; "
            f"tta={tta} minus none {gain:+.5f}, 95% interval {low:+.5f} to {high:+.5f}: {verdict}"
        )
    print(f"next: python submit.py --run {run}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="baseline", help="a folder of runs/ (default: baseline)")
    views = ["", *TTA_TRANSFORMS]
    parser.add_argument("--tta", default="", choices=views, help="views (default: as before, else the config's)")
    parser.add_argument("--overwrite", action="store_true", help="predict again what is done")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    run_stage(lambda: main(arguments.run, arguments.tta, arguments.overwrite))
