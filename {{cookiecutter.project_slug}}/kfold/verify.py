"""Whether a run is what it says, for `make_folds.py --verify`: every file hashed again, every score computed again.

Nothing is believed of a file that fits no digest; what can be told without it is told all the same.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kfold import artifacts
from kfold.artifacts import ALL_DATA, Workspace
from kfold.config import load_config
from kfold.data.tables import shorten
from kfold.ensemble.pseudo_files import read_stamped
from kfold.ensemble.pseudo_rounds import Data
from kfold.ensemble.stack_settings import StackSettings
from kfold.errors import UserError
from kfold.intervals import FoldScores, score_folds
from kfold.ledger import check_ledger, read_ledger
from kfold.predictions import Predictions
from kfold.report.spreadsheet import to_number
from kfold.runs import refuse_stale_stack
from kfold.seals import FILE_NAME, check_seals
from kfold.settings import Settings, build_settings
from kfold.strict_yaml import read_yaml
from kfold.verify_fold import (
    MANIFEST,
    Found,
    check_fold_seals,
    in_order,
    is_near,
    note_unknown,
    verify_facts,
    verify_fold_files,
    verify_predictions,
    verify_weights,
)

OF_A_RUN = ("config.yaml", "competition.yaml", "environment.json")  # each run has them
WRITTEN_BY_STAGES = (*OF_A_RUN, "pixels.json", "speed.json", "choices.csv", "round.json", "tuned.json", "blend.csv",
                     "correlation.csv", "importance.csv", "importance.png",
                     "imported.json")  # fmt: skip


def verify_shared(workspace: Workspace) -> list[str]:
    """A line for each damaged file that belongs to all runs."""
    names, problems = check_seals(workspace.runs_dir)
    for rows in ("train", "test"):
        path = workspace.image_statistics_path(rows)
        if path.exists() and path.name not in names:
            problems.append(f"{path}: is not in {path.parent / FILE_NAME}: delete it, stack.py makes it again")
    problems += check_seals(workspace.ablations_dir)[1]
    return problems + check_ledger(workspace.ledger_path)


def read_settings(workspace: Workspace, run: str) -> Settings:
    """config.yaml of a trained run or of a stack. Raises UserError."""
    path = workspace.run_config_path(run)
    values = read_yaml(path)
    return build_settings(StackSettings, values, str(path)) if "stack_of" in values else load_config(path)


def verify_run(workspace: Workspace, run: str, settings: Settings, data: Data) -> Found:
    """Every problem of a run. data: the rows and targets as its settings take them."""
    found = Found(num_ids=len(data.folds.ids))
    folder = workspace.run_dir(run)
    verify_run_files(found, folder)
    manifests = read_manifests(found, workspace, run, data.folds.num_folds)
    refuse_other_folds(found, workspace, run, manifests, data.folds.stamp)
    oof: dict[int, Predictions] = {}
    for number, manifest in manifests.items():
        whole = verify_fold_files(found, workspace, run, number, manifest)
        verify_facts(found, workspace, run, number, manifest, settings)
        verify_predictions(found, workspace, run, number, manifest, data, whole, oof)
        verify_weights(found, workspace.fold_dir(run, number), manifest, settings, data, whole)
    found.num_folds = len(set(manifests) - {ALL_DATA})
    if not manifests and not found.problems:
        found.problems.append(f"{folder}: no fold is finished: run its stage first")
    with found.collect():
        artifacts.refuse_mixed([oof[number] for number in sorted(oof)], run)
    if set(oof) == set(range(data.folds.num_folds)):
        verify_pooled(found, workspace, run, data, oof)
    if isinstance(settings, StackSettings):
        with found.collect():
            refuse_stale_stack(workspace, run)
    return found


# Files


def verify_run_files(found: Found, folder: Path) -> None:
    """The files of the run's own folder, by SHA256SUMS."""
    names, problems = check_seals(folder)
    found.problems += problems
    found.num_files += len(names) + 1
    for name in (*OF_A_RUN, *sorted(set(WRITTEN_BY_STAGES) - set(OF_A_RUN))):
        if name not in names and (name in OF_A_RUN or (folder / name).exists()):
            what = "is not in" if (folder / name).exists() else "missing, and not in"
            found.problems.append(f"{folder / name}: {what} {folder / FILE_NAME}: run its stage again with --overwrite")
    for path in sorted(folder.iterdir()):
        is_fold = path.is_dir() and (path.name == "all-data" or re.fullmatch(r"fold\d+", path.name))
        if not is_fold and path.name not in (*names, *WRITTEN_BY_STAGES, FILE_NAME):
            note_unknown(found, path)


def read_manifests(found: Found, workspace: Workspace, run: str, num_folds: int) -> dict[int, dict]:
    """The manifests that can be trusted, by fold."""
    manifests = {}
    for number in [*range(num_folds), ALL_DATA]:
        folder = workspace.fold_dir(run, number)
        with found.collect():
            manifest = artifacts.read_manifest(folder)
            if manifest is not None:
                manifests[number] = manifest
            elif folder.is_dir():
                verify_unfinished(found, workspace, run, number)
    for number in set(workspace.trained_folds(run)) - set(range(num_folds)):
        found.notes.append(f"{workspace.fold_dir(run, number)}: folds.csv has no such fold")
    return manifests


def verify_unfinished(found: Found, workspace: Workspace, run: str, number: int) -> None:
    """A fold without manifest: it is being made, or lost. The ledger gets its row when every fold is there."""
    folder = workspace.fold_dir(run, number)
    sealed, problems = check_fold_seals(workspace, run, number)
    found.problems += problems
    found.num_files += len(sealed) + bool(sealed)
    if number != ALL_DATA and any(row.get("run") == run for row in read_ledger(workspace.ledger_path)):
        found.problems.append(
            f"{folder / MANIFEST}: missing, but the ledger has the run's scores: train this fold again"
        )
    elif number != ALL_DATA or any(path.suffix == ".safetensors" for path in folder.iterdir()):
        found.notes.append(f"{folder}: not finished, it has no {MANIFEST}")
    if not problems and workspace.pseudo_path(run, number).exists():
        read_stamped(workspace.pseudo_path(run, number))


def refuse_other_folds(
    found: Found, workspace: Workspace, run: str, manifests: Mapping[int, Mapping], stamp: str
) -> None:
    stamps = {number: manifest.get("fold_stamp", "none") for number, manifest in manifests.items()}
    if stamps and stamp not in stamps.values():
        found.problems.append(
            f"{workspace.folds_path}: run {run} was not made with these folds (stamp {stamp[:12]}, its manifests have "
            f"{', '.join(sorted({other[:12] for other in stamps.values()}))}): restore folds.csv, or train again"
        )
        return
    for number, other in stamps.items():
        if other != stamp:
            found.problems.append(f"{workspace.fold_dir(run, number)}: made with other folds than the rest: redo it")


# The whole run


def verify_pooled(
    found: Found, workspace: Workspace, run: str, data: Data, oof: Mapping[int, Predictions]
) -> None:  # fmt: skip
    """Each training id has exactly one row, and the ledger's row has the scores of these rows."""
    values = np.zeros(data.targets.values.shape, np.float32)
    count = np.zeros(len(data.folds.ids), int)
    for number, predictions in oof.items():
        valid = data.folds.fold == number
        values[valid] = in_order(predictions, data, data.folds.ids[valid])
        count[valid] += 1
    found.problems += shorten(
        [f"run {run}: id '{name}' has no out-of-fold row: predict it again" for name in data.folds.ids[count != 1]]
    )
    found.scores = score_folds(data.metric, data.targets.values, values, data.folds.fold, data.folds.group_or_none)
    path = workspace.ledger_path
    with found.collect():
        row = next((row for row in read_ledger(path) if row.get("run") == run), None)
        if row is None:
            raise UserError(f"{path}: has no row of run {run}: run its last stage again with --overwrite")
        if row.get("metric") == data.metric.name:
            found.problems += compare_row(path, row, found.scores)
    compare_round(found, workspace, run)


def compare_row(path: Path, row: Mapping[str, str], scores: FoldScores) -> list[str]:
    wanted = {"oof": scores.pooled, "oof_low": scores.low, "oof_high": scores.high}
    problems = [
        f"{path}: run {row['run']}: {key} is '{row.get(key)}', its out-of-fold files give {value:.6g}: predict it again"
        for key, value in wanted.items()
        if not is_near(value, to_number(row.get(key, "")))
    ]
    by_fold = [to_number(text) for text in row.get("fold_scores", "").split()]
    if len(by_fold) != len(scores.by_fold) or not all(map(is_near, scores.by_fold.values(), by_fold)):
        problems.append(f"{path}: run {row['run']}: fold_scores are not those of its files: predict it again")
    return problems


def compare_round(found: Found, workspace: Workspace, run: str) -> None:
    """A note where a round of pseudo-labels was judged by other files than those of now."""
    path = workspace.round_path(run)
    try:
        compared = json.loads(path.read_text(encoding="utf-8"))["compared"][run]
    except (OSError, ValueError, KeyError, TypeError):
        return  # not a round, or damaged, which its seal tells
    files = [(artifacts.read_manifest(workspace.fold_dir(run, k)) or {}) for k in range(len(compared))]
    if compared != [manifest.get("files", {}).get("oof.parquet", {}).get("sha256", "") for manifest in files]:
        found.notes.append(f"{path}: judged by other predictions than those of now: run pseudo_label.py again")
