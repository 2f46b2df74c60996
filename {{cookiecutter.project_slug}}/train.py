"""Train the folds of one experiment.

Command  python train.py --fold 0        or --fold all; --config configs/<name>.yaml; any setting as key=value
Reads    competition.yaml, configs/<name>.yaml, folds.csv, data/train.csv, data/train_images/
Writes   runs/<name>/config.yaml, competition.yaml, environment.json, and for each fold k
         runs/<name>/fold<k>/: last, best[, ema, swa, snapshot1..n].safetensors, oof.parquet, log.csv, and
         manifest.json (last: "done"); runs/ledger.csv once every fold is there

--fold all-data trains on every row, for test predictions alone (runs/<name>/all-data/). seed=1..3 trains three runs,
<name>-seed1 to -seed3: a seed ensemble for stack.py.
"""

import argparse
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

import competition
from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import Competition, Config, difference, load_competition, load_config
from kfold.data.folds import Folds, read_folds, take_rows
from kfold.data.targets import Targets
from kfold.errors import UserError, run_stage
from kfold.files import atomic_write, file_sha256, locked
from kfold.intervals import score_folds
from kfold.ledger import record_run
from kfold.metrics import Metric
from kfold.model.build import refuse_unknown_backbone
from kfold.model.weights import ModelCard, weights_to_bytes
from kfold.predictions import Predictions, write_predictions
from kfold.report.spreadsheet import to_spreadsheet
from kfold.report.tables import cv_table
from kfold.setup import (
    finish_averages,
    gather_rows,
    load_teachers,
    make_averages,
    make_batches,
    make_card,
    make_model,
    make_recipe,
    make_terms,
)
from kfold.training.loop import fit, predict_logits, same, to_target_units
from kfold.training.losses import choose_loss
from kfold.training.optimizers import make_optimizer
from kfold.training.precision import Precision, choose_device, choose_precision
from kfold.training.schedules import cycle_ends

ROOT = Path(__file__).resolve().parent


def main(
    fold: str = "all",
    config_path: Path | None = None,
    overrides: Sequence[str] = (),
    name: str = "",
    overwrite: bool = False,
    root: Path = ROOT,
) -> None:
    """Train one fold ("0", "1", ...), "all" or "all-data" of the experiment; folds that are done are left alone."""
    workspace = Workspace(root)
    facts = load_competition(workspace.competition_path)
    config_path = config_path or workspace.config_path("baseline")
    config = load_config(config_path, overrides)
    run = name or config_path.stem + (f"-limit{config.limit}" if config.limit else "")

    folds = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    numbers = choose_folds(fold, folds, config)
    if 0 < config.limit < 2 * folds.num_folds:
        raise UserError(
            f"limit={config.limit}: too few rows for {folds.num_folds} folds: take {2 * folds.num_folds} or more"
        )
    folds = take_rows(folds, config.limit)
    targets = competition.decode_targets(folds.table, facts)
    metric = competition.metric(facts)
    choose_loss(config.loss, facts.task)  # a wrong choice should not touch the run's folder
    refuse_unknown_backbone(config.backbone)

    artifacts.refuse_stack(workspace, run)
    artifacts.register_run(workspace, run, facts, config, numbers, overwrite)
    trained = False
    for number in numbers:
        with locked(workspace.fold_dir(run, number)):
            if artifacts.is_done(workspace, run, number, folds.stamp):
                print(f"run {run}, {fold_name(number)}: done before (--overwrite trains it again)")
                continue
            try:
                train_fold(workspace, run, number, facts, config, folds, targets, metric)
            except torch.OutOfMemoryError:
                raise UserError(
                    f"{fold_name(number)}: the GPU's memory is full: lower batch_size or image_size"
                ) from None
            trained = True
    if numbers == [artifacts.ALL_DATA]:
        print(f"next: python predict.py --run {run}")
    elif workspace.trained_folds(run) == list(range(folds.num_folds)):
        summarize(workspace, run, config, folds, targets, metric, trained)


def choose_folds(wish: str, folds: Folds, config: Config) -> list[int]:
    if wish == "all":
        return list(range(folds.num_folds))
    if wish == "all-data":
        if config.select == "best":
            raise UserError("--fold all-data holds no row out, so there is no best epoch: use select=last, ema or swa")
        return [artifacts.ALL_DATA]
    if not wish.isdecimal() or int(wish) >= folds.num_folds:
        raise UserError(f"--fold {wish}: folds.csv has folds 0 to {folds.num_folds - 1}, or say all, or all-data")
    return [int(wish)]


def fold_name(number: int) -> str:
    return "all data" if number == artifacts.ALL_DATA else f"fold {number}"


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
    """Train on every fold but `number`, predict that one, and write the fold's files, the manifest last.

    number: ALL_DATA holds no row out and leaves no out-of-fold predictions.
    """
    # Over 60 lines on purpose: the recipe of a fold, read top to bottom.
    started = time.perf_counter()
    device = choose_device()
    precision = choose_precision(config.precision, device)
    loss_function = choose_loss(config.loss, facts.task)
    valid = folds.fold == number
    truth = targets.values[valid]
    rows = gather_rows(workspace, run, number, facts, config, folds, targets)
    train_batches, valid_batches = make_batches(rows, config, number, device)
    print(
        f"run {run}, {fold_name(number)}: {config.backbone} at {config.image_size} px, {rows.num_real} rows to train"
        + (f" and {len(rows.train_paths) - rows.num_real} pseudo-labelled ones" if config.pseudo_from else "")
        + f", {valid.sum()} to validate, {device.type}, {str(precision.dtype)[6:]} ({precision.reason})"
    )
    model = make_model(config, len(targets.names), number).to(device)
    card = make_card(model, config, facts.task, targets.names, targets.values[~valid])
    optimizer = make_optimizer(config.optimizer, model, config.lr, config.weight_decay)
    averages = make_averages(model, config)
    teachers = load_teachers(workspace, number, config, folds.stamp)
    terms = make_terms(model, averages, teachers, rows, card, config, number, device, precision)
    recipe = make_recipe(config, number, bool(teachers))
    ends = cycle_ends(config.epochs, config.num_cycles) if config.schedule == "cosine_cycles" else []

    def score(predictions: np.ndarray) -> float:
        return metric.function(truth, predictions)

    log, best, by_kind = [], None, {}  # by_kind: validation predictions of each weights file
    for result, predictions in fit(
        model, card, optimizer, loss_function, train_batches, valid_batches, score, recipe, device, precision,
        averages, terms,
    ):  # fmt: skip
        log.append(result)
        atomic_write(workspace.log_path(run, number), to_spreadsheet(pd.DataFrame(map(asdict, log))))
        kinds = [f"snapshot{ends.index(result.epoch) + 1}"] if result.epoch in ends else []
        if predictions is not None and (best is None or metric.better(result.score, best)):
            best = result.score
            kinds.append("best")
        for kind in kinds:
            atomic_write(workspace.weights_path(run, number, kind), weights_to_bytes(model, card))
        by_kind |= dict.fromkeys([*kinds, "last"], predictions)
        validation = f", validation loss {result.valid_loss:.4f}, {metric.name} {result.score:.5f}"
        print(
            f"  epoch {result.epoch}/{config.epochs}: loss {result.train_loss:.4f}"
            f"{'' if predictions is None else validation}, {result.images_per_second:.0f} images/s"
        )
    atomic_write(workspace.weights_path(run, number, "last"), weights_to_bytes(model, card))
    for kind, average in finish_averages(averages, train_batches, card, recipe, device).items():
        atomic_write(workspace.weights_path(run, number, kind), weights_to_bytes(average, card))
        by_kind[kind] = predict_valid(average, valid_batches, card, device, precision)

    minutes = (time.perf_counter() - started) / 60
    facts_of_fold = {
        "task": facts.task,
        "device": device.type,
        "precision": str(precision.dtype)[6:],
        "metric": metric.name,
        "minutes": round(minutes, 3),
        "images_per_second": round(float(np.median([result.images_per_second for result in log])), 1),
        "teachers": {name: teacher.weights_sha256 for name, teacher in teachers.items()},
    }
    write_results(workspace, run, number, config, folds, targets, by_kind, score, facts_of_fold)


def predict_valid(
    model: nn.Module, valid_batches: DataLoader | None, card: ModelCard, device: torch.device, precision: Precision
) -> np.ndarray | None:
    """Predictions (N, C) of the held-out rows; None where none are held out."""
    if valid_batches is None:
        return None
    return to_target_units(predict_logits(model, valid_batches, [same], card, device, precision)[0], card).numpy()


def write_results(
    workspace: Workspace,
    run: str,
    number: int,
    config: Config,
    folds: Folds,
    targets: Targets,
    by_kind: dict[str, np.ndarray | None],
    score: Callable[[np.ndarray], float],
    facts_of_fold: dict,
) -> None:
    """oof.parquet from the selected weights, and the manifest of all files."""
    folder, valid = workspace.fold_dir(run, number), folds.fold == number
    kinds = (
        [kind for kind in by_kind if kind.startswith("snapshot")] if config.select == "snapshots" else [config.select]
    )
    weights_names = {kind: workspace.weights_path(run, number, kind).name for kind in by_kind}
    names = [*weights_names.values(), workspace.log_path(run, number).name]
    if config.pseudo_from:
        names.append(workspace.pseudo_path(run, number).name)
    shares = {weights_names[kind]: 1 / len(kinds) for kind in kinds}
    hashes = {name: {"sha256": file_sha256(folder / name)} for name in shares}
    task, weights_sha256 = facts_of_fold["task"], artifacts.mix_sha256(shares, hashes)
    stamps = artifacts.stamps(folds.stamp, config, task, weights_sha256, config.select, "none")
    origin = {key: stamps[key] for key in ("fold_stamp", "config_hash", "weights_sha256")}
    result: dict = {"trained_without_fold": None, "score": None}
    if number != artifacts.ALL_DATA:
        chosen = np.mean([by_kind[kind] for kind in kinds], axis=0, dtype=np.float64).astype(np.float32)
        oof = Predictions(folds.ids[valid], chosen, targets.names, stamps, folds.fold[valid])
        write_predictions(workspace.predictions_path(run, number, "oof"), oof)
        names.append("oof.parquet")
        result = {"trained_without_fold": number, "score": score(chosen)}
    facts_of_fold = {"run": run, **result, **origin, "kind": config.select, "weights": shares, **facts_of_fold}
    artifacts.write_manifest(folder, facts_of_fold, names)


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
    origin = f"weights={oof.stamps['weights']}, tta={oof.stamps['tta']}"
    print(f"\nrun {run}, out of fold, {origin}:\n{cv_table(metric.name, scores)}")
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
    parser.add_argument("--fold", default="all", help="a fold number, all (default), or all-data")
    parser.add_argument("--config", type=Path, help="an experiment (default: configs/baseline.yaml)")
    parser.add_argument("--name", default="", help="name of the run (default: the config's file name)")
    parser.add_argument("--limit", type=int, help="a trial run on this many rows, named <name>-limit<N>")
    parser.add_argument("--overwrite", action="store_true", help="train folds again that are done")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of kfold/config.py, e.g. lr=1e-3")
    return parser.parse_intermixed_args()


def seed_runs(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """`seed=1..3` makes three runs: for each, what its name ends in, and its words."""
    ranges = [match for word in words if (match := re.fullmatch(r"seed=(\d+)\.\.(\d+)", word))]
    if not ranges:
        return [("", list(words))]
    others = [word for word in words if word != ranges[0][0]]
    first, last = map(int, ranges[0].groups())
    if first > last:
        raise UserError(f"{ranges[0][0]}: an empty range, write the smaller seed first")
    return [(f"-seed{seed}", [*others, f"seed={seed}"]) for seed in range(first, last + 1)]


if __name__ == "__main__":
    arguments = parse_arguments()
    words = arguments.overrides + ([f"limit={arguments.limit}"] if arguments.limit is not None else [])

    def main_of_each_seed() -> None:
        for ending, its_words in seed_runs(words):
            base = arguments.name or (arguments.config.stem if arguments.config else "baseline")
            limit = f"-limit{arguments.limit}" if arguments.limit else ""
            name = base + ending + limit if ending else arguments.name
            main(arguments.fold, arguments.config, its_words, name, arguments.overwrite)

    run_stage(main_of_each_seed)
