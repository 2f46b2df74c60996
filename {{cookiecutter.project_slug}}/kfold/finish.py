"""The end of a fold's training, for train.py: weights files, out-of-fold predictions made from them, the manifest."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import Config
from kfold.data.folds import Folds
from kfold.data.loader import read_batches
from kfold.data.progress import with_bar
from kfold.data.targets import Targets
from kfold.errors import UserError
from kfold.files import atomic_write, file_sha256
from kfold.model.weights import ModelCard, copy_weights, load_model, normalize, weights_to_bytes
from kfold.predictions import Predictions, write_predictions
from kfold.report.spreadsheet import to_spreadsheet
from kfold.seeds import seed_of
from kfold.training.averaging import refresh_batch_norm
from kfold.training.loop import Recipe, keep_frozen
from kfold.training.memory import split_rows
from kfold.training.predicting import predict_logits, same, to_target_units
from kfold.training.speed import Speed, arrange
from kfold.training.state import Training


def write_log(path: Path, training: Training) -> None:
    """log.csv: one row an epoch."""
    atomic_write(path, to_spreadsheet(pd.DataFrame(training.log)))


def write_skipped(path: Path, training: Training, train_ids: np.ndarray) -> None:
    """skipped.csv: the images of batches whose loss was not finite; no file where there were none."""
    if training.skipped_rows:
        rows = [(epoch, batch, train_ids[row]) for epoch, batch, row in training.skipped_rows]
        atomic_write(path, to_spreadsheet(pd.DataFrame(rows, columns=["epoch", "batch", "id"])))


def write_snapshot(
    workspace: Workspace, run: str, number: int, cycle: int, training: Training, card: ModelCard
) -> None:
    """The weights at the end of a cycle (from 1), which the state vouches for from here on."""
    kind, content = f"snapshot{cycle}", weights_to_bytes(copy_weights(training.model), card)
    atomic_write(workspace.weights_path(run, number, kind), content)
    training.snapshots[kind] = hashlib.sha256(content).hexdigest()


def write_weights(
    workspace: Workspace,
    run: str,
    number: int,
    training: Training,
    card: ModelCard,
    recipe: Recipe,
    train_batches: DataLoader,
    device: torch.device,
    between_batches: Callable[[], None],
) -> list[str]:
    """All weights files of the fold, but the snapshots, which are there; the kinds of all of them.

    Raises UserError where a snapshot is not what was written: the manifest must not vouch for it.
    """
    for kind, digest in training.snapshots.items():
        path = workspace.weights_path(run, number, kind)
        if not path.exists() or file_sha256(path) != digest:
            raise UserError(f"{path}: damaged since it was written: run the same command again, it will be made anew")
    weights = {"last": copy_weights(training.model)}
    if training.best_weights:
        weights["best"] = training.best_weights
    if training.averages.ema is not None:
        weights["ema"] = copy_weights(training.averages.ema.module)
    if training.averages.swa is not None:
        average = training.averages.swa.module
        refresh_statistics(average, train_batches, card, recipe, training.accumulate, device, between_batches)
        weights["swa"] = copy_weights(average)
    for kind, tensors in weights.items():
        atomic_write(workspace.weights_path(run, number, kind), weights_to_bytes(tensors, card))
    return [*weights, *training.snapshots]


def refresh_statistics(
    average: nn.Module,
    train_batches: DataLoader,
    card: ModelCard,
    recipe: Recipe,
    accumulate: int,
    device: torch.device,
    between_batches: Callable[[], None],
) -> None:
    """BatchNorm's statistics of an average of weights, taken anew on one more epoch of batches.

    accumulate: parts that a batch is split into. BatchNorm sees one of them at a time, as in training, and each part
    counts alike. Of equally large parts its mean is that of whole batches, given the same inputs; its variance is the
    mean of the parts' unbiased ones, which estimates the same.
    """
    torch.manual_seed(seed_of(recipe.seed, recipe.fold, "refresh"))  # dropout is on in that pass

    def images() -> Iterator[torch.Tensor]:
        for batch in read_batches(train_batches, recipe.epochs):
            for rows in split_rows(len(batch.images), accumulate):
                yield normalize(batch.images[rows].to(device), card.mean, card.std)
            between_batches()

    refresh_batch_norm(average, images(), partial(keep_frozen, recipe=recipe, epoch=recipe.epochs))


def predict_file(
    path: Path,
    valid_batches: DataLoader,
    device: torch.device,
    speed: Speed,
    between_batches: Callable[[], None],
) -> np.ndarray:
    """Predictions (N, C) of the held-out rows, from the weights file that the manifest will vouch for."""
    model, card = load_model(path)
    model = arrange(model.to(device), speed)
    batches = with_bar(read_batches(valid_batches), f"{path.parent.name} {path.stem}", len(valid_batches.dataset))
    precision = speed.precision("as in training")
    logits = predict_logits(model, batches, [same], card, device, precision, None, between_batches)[0]
    return to_target_units(logits, card).numpy()


def write_results(
    workspace: Workspace,
    run: str,
    number: int,
    config: Config,
    folds: Folds,
    targets: Targets,
    kinds: list[str],
    has_skipped: bool,
    predict: Callable[[Path], np.ndarray],
    score: Callable[[np.ndarray], float],
    facts_of_fold: Mapping[str, object],
) -> None:
    """oof.parquet from the selected weights, and the manifest of all files.

    kinds: of the weights files that are there. has_skipped: whether skipped.csv is there. predict: a weights file ->
    predictions (N, C) of the held-out rows.
    """
    folder, valid = workspace.fold_dir(run, number), folds.fold == number
    selected = [kind for kind in kinds if kind.startswith("snapshot") or config.select != "snapshots"]
    selected = selected if config.select == "snapshots" else [config.select]
    paths = {kind: workspace.weights_path(run, number, kind) for kind in kinds}
    names = [*(path.name for path in paths.values()), workspace.log_path(run, number).name]
    names += [workspace.pseudo_path(run, number).name] if config.pseudo_from else []
    names += [workspace.skipped_path(run, number).name] if has_skipped else []
    names += [workspace.dropped_path(run, number).name] if config.clean_labels else []
    shares = {paths[kind].name: 1 / len(selected) for kind in selected}
    hashes = {name: {"sha256": file_sha256(folder / name)} for name in shares}
    weights_sha256 = artifacts.mix_sha256(shares, hashes)
    stamps = artifacts.stamps(folds.stamp, config, facts_of_fold["task"], weights_sha256, config.select, "none")
    origin = {key: stamps[key] for key in ("fold_stamp", "config_hash", "weights_sha256")}
    result: dict = {"trained_without_fold": None, "score": None}
    if number != artifacts.ALL_DATA:
        chosen = np.mean([predict(paths[kind]) for kind in selected], axis=0, dtype=np.float64).astype(np.float32)
        oof = Predictions(folds.ids[valid], chosen, targets.names, stamps, folds.fold[valid])
        write_predictions(workspace.predictions_path(run, number, "oof"), oof)
        names.append("oof.parquet")
        result = {"trained_without_fold": number, "score": score(chosen)}
    facts_of_fold = {"run": run, **result, **origin, "kind": config.select, "weights": shares, **facts_of_fold}
    artifacts.write_manifest(folder, facts_of_fold, names)
