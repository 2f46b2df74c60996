"""Train the folds of one experiment.

Command  python train.py --fold 0        or --fold all; --config configs/<name>.yaml; any setting as key=value
Reads    competition.yaml, configs/<name>.yaml, folds.csv, data/train.csv, data/train_images/
Writes   runs/<name>/config.yaml, competition.yaml, environment.json, and for each fold k
         runs/<name>/fold<k>/: last.safetensors, best.safetensors, oof.parquet, log.csv, manifest.json (last: "done")
         runs/ledger.csv once every fold is there
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

import competition
from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import Competition, Config, difference, load_competition, load_config
from kfold.data.augment import eval_transform, train_transform
from kfold.data.folds import Folds, read_folds, take_rows
from kfold.data.images import image_path
from kfold.data.loader import EpochOrder, Images, make_loader
from kfold.data.targets import Targets
from kfold.errors import UserError, run_stage
from kfold.files import atomic_write, file_sha256, locked
from kfold.intervals import score_folds
from kfold.ledger import record_run
from kfold.metrics import Metric
from kfold.model.build import build_model, input_statistics, refuse_unknown_backbone
from kfold.model.weights import ModelCard, weights_to_bytes
from kfold.predictions import Predictions, write_predictions
from kfold.report.tables import cv_table
from kfold.seeds import seed_of
from kfold.training.loop import Recipe, fit
from kfold.training.losses import choose_loss
from kfold.training.optimizers import make_optimizer
from kfold.training.precision import choose_device, choose_precision

ROOT = Path(__file__).resolve().parent


def main(
    fold: str = "all",
    config_path: Path | None = None,
    overrides: Sequence[str] = (),
    name: str = "",
    overwrite: bool = False,
    root: Path = ROOT,
) -> None:
    """Train one fold ("0", "1", ...) or "all" of the experiment; folds that are done are left alone."""
    workspace = Workspace(root)
    facts = load_competition(workspace.competition_path)
    config_path = config_path or workspace.config_path("baseline")
    config = load_config(config_path, overrides)
    run = name or config_path.stem + (f"-limit{config.limit}" if config.limit else "")

    folds = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    numbers = choose_folds(fold, folds)
    if 0 < config.limit < 2 * folds.num_folds:
        raise UserError(
            f"limit={config.limit}: too few rows for {folds.num_folds} folds: take {2 * folds.num_folds} or more"
        )
    folds = take_rows(folds, config.limit)
    targets = competition.decode_targets(folds.table, facts)
    metric = competition.metric(facts)
    choose_loss(config.loss, facts.task)  # a wrong choice should not touch the run's folder
    refuse_unknown_backbone(config.backbone)

    artifacts.register_run(workspace, run, facts, config, numbers, overwrite)
    trained = False
    for number in numbers:
        with locked(workspace.fold_dir(run, number)):
            if artifacts.is_done(workspace, run, number, folds.stamp):
                print(f"run {run}, fold {number}: done before (--overwrite trains it again)")
                continue
            try:
                train_fold(workspace, run, number, facts, config, folds, targets, metric)
            except torch.OutOfMemoryError:
                raise UserError(f"fold {number}: the GPU's memory is full: lower batch_size or image_size") from None
            trained = True
    if workspace.trained_folds(run) == list(range(folds.num_folds)):
        summarize(workspace, run, config, folds, targets, metric, trained)


def choose_folds(wish: str, folds: Folds) -> list[int]:
    if wish == "all":
        return list(range(folds.num_folds))
    if not wish.isdecimal() or int(wish) >= folds.num_folds:
        raise UserError(f"--fold {wish}: folds.csv has folds 0 to {folds.num_folds - 1}, or say all")
    return [int(wish)]


def train_fold(
    workspace: Workspace,
    run: str,
    number: int,
    facts: Competition,
    config: Config,
    folds: Folds,
    targets: Targets,
    metric: Metric,
) -> None:
    """Train on every fold but `number`, predict that one, and write the fold's files, the manifest last."""
    # Over 60 lines on purpose: the recipe of a fold, read top to bottom.
    started = time.perf_counter()
    device = choose_device()
    precision = choose_precision(config.precision, device)
    loss_function = choose_loss(config.loss, facts.task)
    valid = folds.fold == number
    truth = targets.values[valid]
    image_dir = workspace.data_path(facts, facts.train_images)
    paths = np.array([image_path(image_dir, image_id, facts.image_suffix) for image_id in folds.ids])
    train_batches, valid_batches = make_batches(paths, targets.values, valid, config, number, device)
    print(
        f"run {run}, fold {number}: {config.backbone} at {config.image_size} px, {(~valid).sum()} rows to train, "
        f"{valid.sum()} to validate, {device.type}, {str(precision.dtype)[6:]} ({precision.reason})"
    )
    model = make_model(config, len(targets.names), number).to(device)
    card = make_card(model, config, facts.task, targets.names, targets.values[~valid])
    optimizer = make_optimizer(config.optimizer, model, config.lr, config.weight_decay)
    recipe = Recipe(config.epochs, config.lr, config.schedule, config.warmup_epochs, config.seed, number)

    def score(predictions: np.ndarray) -> float:
        return metric.function(truth, predictions)

    log, best, chosen = [], None, None
    for result, predictions in fit(
        model, card, optimizer, loss_function, train_batches, valid_batches, score, recipe, device, precision
    ):
        log.append(result)
        atomic_write(workspace.log_path(run, number), pd.DataFrame(map(asdict, log)).to_csv(index=False))
        is_best = best is None or metric.better(result.score, best)
        if is_best:
            best = result.score
            atomic_write(workspace.weights_path(run, number, "best"), weights_to_bytes(model, card))
        if is_best or config.select == "last":
            chosen = predictions
        print(
            f"  epoch {result.epoch}/{config.epochs}: loss {result.train_loss:.4f}, validation loss "
            f"{result.valid_loss:.4f}, {metric.name} {result.score:.5f}, {result.images_per_second:.0f} images/s"
        )
    atomic_write(workspace.weights_path(run, number, "last"), weights_to_bytes(model, card))

    weights_path = workspace.weights_path(run, number, config.select)
    stamps = artifacts.stamps(folds.stamp, config, facts.task, file_sha256(weights_path), "none")
    oof = Predictions(folds.ids[valid], chosen, targets.names, stamps, folds.fold[valid])
    write_predictions(workspace.predictions_path(run, number, "oof"), oof)
    facts_of_fold = {
        "run": run,
        "trained_without_fold": number,
        **{key: stamps[key] for key in ("fold_stamp", "config_hash", "weights_sha256", "task")},
        "weights": weights_path.name,
        "device": device.type,
        "precision": str(precision.dtype)[6:],
        "metric": metric.name,
        "score": score(chosen),
        "minutes": round((time.perf_counter() - started) / 60, 3),
        "images_per_second": round(float(np.median([result.images_per_second for result in log])), 1),
    }
    names = ["last.safetensors", "best.safetensors", "oof.parquet", "log.csv"]
    artifacts.write_manifest(workspace.fold_dir(run, number), facts_of_fold, names)


def make_batches(
    paths: np.ndarray, targets: np.ndarray, valid: np.ndarray, config: Config, number: int, device: torch.device
) -> tuple[DataLoader, DataLoader]:
    """Augmented, shuffled batches of the training rows, and plain ones of the validation rows in order."""
    size = config.image_size
    augment = train_transform(config.augment, size, config.hflip, config.vflip, config.rotate90)
    train_images = Images(paths[~valid], targets[~valid], augment, size, config.seed, number)
    valid_images = Images(paths[valid], targets[valid], eval_transform(size), size)
    train_order = EpochOrder(len(train_images), config.batch_size, True, config.seed, number)
    valid_order = EpochOrder(len(valid_images), 2 * config.batch_size, False)
    return (
        make_loader(train_images, train_order, config.num_workers, device),
        make_loader(valid_images, valid_order, config.num_workers, device),
    )


def make_model(config: Config, num_outputs: int, number: int) -> torch.nn.Module:
    """The network with its initial weights: the same for the same seed and fold."""
    torch.manual_seed(seed_of(config.seed, number, "initial weights"))
    return build_model(
        config.backbone, num_outputs, config.image_size, config.drop_rate, config.pretrained, config.pretrained_path
    )


def make_card(
    model: torch.nn.Module, config: Config, task: str, names: tuple[str, ...], values: np.ndarray
) -> ModelCard:
    """What predict.py must know of the model; offset and scale standardise regression targets by the training rows."""
    mean, std = input_statistics(model)
    offset, scale = np.zeros(len(names)), np.ones(len(names))
    if task == "regression":
        offset, scale = values.mean(axis=0), np.maximum(values.std(axis=0), 1e-6)
    return ModelCard(
        config.backbone, config.image_size, task, names, mean, std, tuple(map(float, offset)), tuple(map(float, scale))
    )


def summarize(
    workspace: Workspace, run: str, config: Config, folds: Folds, targets: Targets, metric: Metric, trained: bool
) -> None:
    """Print the table of all folds; write the run's row of the ledger if one was trained just now."""
    manifests = [artifacts.read_manifest(workspace.fold_dir(run, number)) for number in range(folds.num_folds)]
    if not all("oof.parquet" in manifest["files"] for manifest in manifests):
        print(f"run {run}: its predictions were interrupted; next: python predict.py --run {run}")
        return
    oof = artifacts.read_oof(workspace, run, folds.ids, folds.fold, folds.stamp)
    scores = score_folds(metric, targets.values, oof.aligned_to(folds.ids), folds.fold, folds.group_or_none)
    print(f"\nrun {run}, out of fold, tta={oof.stamps['tta']}:\n{cv_table(metric.name, scores)}")
    if config.select == "best":
        print("  optimistic: select=best chose the epoch on the fold that it is scored on; select=last does not")
    if trained:
        baseline_path = workspace.run_config_path("baseline")
        baseline = load_config(baseline_path) if baseline_path.exists() else Config()
        speeds = [manifest["images_per_second"] for manifest in manifests]
        row = {
            "run": run,
            "config_difference": difference(config, baseline),
            "metric": metric.name,
            "oof": scores.pooled,
            "oof_low": scores.low,
            "oof_high": scores.high,
            "fold_scores": " ".join(f"{score:.5f}" for score in scores.by_fold.values()),
            "minutes": round(sum(manifest["minutes"] for manifest in manifests), 2),
            "images_per_second": round(float(np.mean(speeds)), 1),
        }
        record_run(workspace.ledger_path, row)
    print(f"next: python predict.py --run {run}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fold", default="all", help="a fold number, or all (default)")
    parser.add_argument("--config", type=Path, help="an experiment (default: configs/baseline.yaml)")
    parser.add_argument("--name", default="", help="name of the run (default: the config's file name)")
    parser.add_argument("--limit", type=int, help="a trial run on this many rows, named <name>-limit<N>")
    parser.add_argument("--overwrite", action="store_true", help="train folds again that are done")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of kfold/config.py, e.g. lr=1e-3")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    words = arguments.overrides + ([f"limit={arguments.limit}"] if arguments.limit is not None else [])
    run_stage(lambda: main(arguments.fold, arguments.config, words, arguments.name, arguments.overwrite))
