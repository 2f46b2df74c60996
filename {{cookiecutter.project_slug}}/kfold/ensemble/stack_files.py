"""What a stack leaves in runs/<name>/, and whether it is there already."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import Competition
from kfold.data.folds import Folds
from kfold.data.targets import Targets
from kfold.ensemble.features import readable_name
from kfold.ensemble.gbdt import Stacker, importance_table
from kfold.ensemble.second_level import Fitted
from kfold.ensemble.stack_settings import StackSettings
from kfold.ensemble.tuning import Tuned
from kfold.errors import UserError
from kfold.files import atomic_write, file_sha256
from kfold.metrics import Metric
from kfold.predictions import Predictions, ids_sha256, write_predictions
from kfold.report.pictures import importance_picture
from kfold.report.spreadsheet import to_spreadsheet
from kfold.seals import remove_sealed, write_sealed


def refuse_name(workspace: Workspace, name: str) -> None:
    """Raise UserError for a name that a trained run has."""
    artifacts.refuse_odd_name(name)
    is_run = workspace.run_config_path(name).exists() or name in workspace.run_names()
    if is_run and not artifacts.stack_of(workspace, name):
        raise UserError(f"--name {name}: a trained run has this name: give the stack another one")


def find_changes(workspace: Workspace, name: str, num_folds: int, made_of: Mapping[str, str]) -> list[str] | None:
    """What of `made_of` differs from what the stack was made of; [] when nothing does, None when it is not there.

    Raises UserError when one of its files is damaged.
    """
    folders = [workspace.fold_dir(name, number) for number in range(num_folds)]
    manifests = [artifacts.read_manifest(folder) for folder in folders]
    if any(manifest is None for manifest in manifests):
        return None
    before = manifests[0].get("made_of", {})
    if any(manifest.get("made_of", {}) != before for manifest in manifests):
        return ["its folds differ"]
    changes = [key for key in {**before, **made_of} if before.get(key) != made_of.get(key)]
    if not changes:
        for folder, manifest in zip(folders, manifests, strict=True):
            artifacts.verify_files(folder, manifest)
        artifacts.read_tuned_text(workspace, name, 0)
    return changes


@dataclass(frozen=True)
class Stack:
    """One stack and the data that it belongs to. made_of: see `fingerprint`, and the settings as text."""

    workspace: Workspace
    name: str
    settings: StackSettings
    facts: Competition
    folds: Folds
    targets: Targets
    metric: Metric
    test_ids: np.ndarray
    made_of: Mapping[str, str]


@dataclass(frozen=True)
class StackFold:
    """What the method that was fitted without fold `number` says: oof (n, C) of its rows, test (T, C) of the test set.

    trees: LightGBM's fit without this fold, whether it was chosen or not; None where it was not fitted.
    """

    number: int
    fitted: Fitted
    oof: np.ndarray
    test: np.ndarray
    trees: Fitted | None = None


def write_stack(
    stack: Stack,
    parts: Sequence[StackFold],
    table: pd.DataFrame,
    oof: Mapping[str, np.ndarray],
    tuned: Tuned,
    minutes: float,
) -> None:
    """All files of the stack: those of the run first, then each fold's, a manifest last. oof: (N, C) of each run."""
    workspace, name, settings, targets = stack.workspace, stack.name, stack.settings, stack.targets
    folder = workspace.run_dir(name)
    for part in parts:  # a kill must not leave old results beside new ones that say "done"
        (workspace.fold_dir(name, part.number) / "manifest.json").unlink(missing_ok=True)
    artifacts.write_origin(workspace, name, stack.facts, settings)
    write_sealed(folder / "blend.csv", to_spreadsheet(table))
    write_sealed(folder / "correlation.csv", to_spreadsheet(error_correlation(oof, targets.values), "run"))
    write_sealed(workspace.tuned_path(name), tuned.model_dump_json(indent=1) + "\n")
    for file_name in ("importance.csv", "importance.png"):
        remove_sealed(folder / file_name)  # of the stack of before, which may have had trees
    if trees := [part.trees for part in parts if part.trees is not None]:
        importance = importance_table(trees)
        importance["name"] = [readable_name(text, settings.stack_of, targets.names) for text in importance["name"]]
        write_sealed(folder / "importance.csv", to_spreadsheet(importance))
        write_sealed(folder / "importance.png", importance_picture(importance, f"{name}: what LightGBM looked at"))
    for part in parts:
        write_fold(stack, part, round(minutes / len(parts), 3))


def error_correlation(oof: Mapping[str, np.ndarray], targets: np.ndarray) -> pd.DataFrame:
    """Correlation of the runs' errors, over all rows and columns, each column's errors in units of its targets'
    deviation. Runs that err alike gain little from a blend."""
    scale = np.maximum(targets.std(axis=0), 1e-12)
    errors = {run: ((predictions - targets) / scale).ravel() for run, predictions in oof.items()}
    return pd.DataFrame(errors, dtype=np.float64).corr().round(4)


def write_fold(stack: Stack, part: StackFold, minutes: float) -> None:
    """The files of one fold, the manifest last.

    trained_without_fold is null: the method was fitted on out-of-fold rows of models that saw this fold, which is right
    for a nested score and wrong for a teacher of pseudo-labels.
    """
    workspace, settings, folds, targets = stack.workspace, stack.settings, stack.folds, stack.targets
    folder, valid = workspace.fold_dir(stack.name, part.number), folds.fold == part.number
    weights = sha256_of(stack.made_of, settings.method, part)
    stamps = artifacts.stamps(folds.stamp, settings, stack.facts.task, weights, "-", "-")
    oof_path, test_path = (workspace.predictions_path(stack.name, part.number, rows) for rows in ("oof", "test"))
    write_predictions(oof_path, Predictions(folds.ids[valid], part.oof, targets.names, stamps, folds.fold[valid]))
    write_predictions(test_path, Predictions(stack.test_ids, part.test, targets.names, stamps))
    names = [oof_path.name, test_path.name]
    if part.trees is not None:
        names += write_trees(folder, part.trees.model, settings.stack_of, targets.names)
    facts_of_fold = {
        "run": stack.name,
        "trained_without_fold": None,
        "fitted_on_oof": True,
        "stack_of": list(settings.stack_of),
        "method": settings.method,
        "fitted": part.fitted.note,
        **{key: stamps[key] for key in ("fold_stamp", "config_hash", "weights_sha256", "task")},
        "metric": stack.metric.name,
        "score": stack.metric.function(targets.values[valid], part.oof),
        "minutes": minutes,
        "predicted": {"tta": stamps["tta"], "test_ids": ids_sha256(stack.test_ids)},
        "tuned_sha256": file_sha256(workspace.tuned_path(stack.name)),
        "made_of": dict(stack.made_of),
    }
    artifacts.write_manifest(folder, facts_of_fold, names)


def write_trees(folder: Path, stacker: Stacker, runs: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Each output's trees as LightGBM's own text, and what f0, f1, ... stand for; the file names."""
    single = len(stacker.texts) == 1
    files = {f"lightgbm{'' if single else f'_{place}'}.txt": text for place, text in enumerate(stacker.texts)}
    names = [(feature, readable_name(name, runs, columns)) for feature, name in stacker.feature_map.items()]
    files["feature_map.csv"] = to_spreadsheet(pd.DataFrame(names, columns=["feature", "name"]))
    for file_name, text in files.items():
        atomic_write(folder / file_name, text)
    return list(files)


def sha256_of(made_of: Mapping[str, str], method: str, part: StackFold) -> str:
    """What stands for the weights of a stack: what it was made of, how, and what it says."""
    found = hashlib.sha256(json.dumps([dict(made_of), method, part.fitted.note]).encode())
    for array in (part.oof, part.test):
        found.update(np.ascontiguousarray(array, np.float32).tobytes())
    return found.hexdigest()
