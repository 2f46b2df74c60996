"""Whether a teammate's run fits this repository, for import_run.py: folds, ids, targets, scores, ancestors."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from kfold import artifacts
from kfold.artifacts import ALL_DATA, Workspace
from kfold.config import FOLDS_COLUMNS, Competition, Config, load_competition
from kfold.data.folds import Folds
from kfold.data.tables import read_table
from kfold.ensemble.pseudo_rounds import Data
from kfold.ensemble.stack_settings import StackSettings
from kfold.errors import UserError, list_problems
from kfold.intervals import FoldScores, score_folds
from kfold.predictions import Predictions, ids_sha256, read_predictions
from kfold.runs import OPTIMISM, knows_its_rows
from kfold.settings import Settings
from kfold.team_files import ALONE, refuse_bomb, refuse_long
from kfold.verify_fold import (
    Found,
    in_order,
    verify_facts,
    verify_fold_files,
    verify_predictions,
    verify_weights,
)

PROVENANCE_COLUMNS = 16  # of pseudo.parquet at most, beside its targets and weights


def check_run(
    staged: Workspace, run: str, settings: Settings, data: Data, manifests: Mapping[int, Mapping]
) -> tuple[list[str], FoldScores | None]:
    """Every problem of a copied run whose folds are ours, and its scores by our targets and our metric."""
    found, oof = Found(), {}
    for number in manifests:
        for rows, most in (("oof", data.train_ids), ("test", data.test_ids), ("pseudo", data.test_ids)):
            path = staged.fold_dir(run, number) / f"{rows}.parquet"
            columns = (1 + (rows == "pseudo")) * len(data.targets.names) + PROVENANCE_COLUMNS
            if path.exists():
                with found.collect():
                    refuse_bomb(path, 2 * len(most) + 1000, columns)  # which ids are too many is told by name
    if found.problems:
        return found.problems, None
    for number, manifest in manifests.items():
        whole = verify_fold_files(found, staged, run, number, manifest)
        verify_facts(found, staged, run, number, manifest, settings)
        with found.collect():
            refuse_other_test_ids(staged, run, number, manifest, data)
        verify_predictions(found, staged, run, number, manifest, data, whole, oof)
        verify_weights(found, staged.fold_dir(run, number), manifest, settings, data, whole)
    with found.collect():
        artifacts.refuse_mixed([oof[number] for number in sorted(oof)], run)
    return list(dict.fromkeys(found.problems)), None if found.problems else pooled_scores(data, oof)


def refuse_other_test_ids(staged: Workspace, run: str, number: int, manifest: Mapping, data: Data) -> None:
    """Say which test ids are missing or foreign, where the digest says that they are others."""
    path = staged.predictions_path(run, number, "test")
    if path.exists() and manifest.get("predicted", {}).get("test_ids") != ids_sha256(data.test_ids):
        read_predictions(path, manifest["fold_stamp"], data.test_ids)


def pooled_scores(data: Data, oof: Mapping[int, Predictions]) -> FoldScores:
    values = np.zeros(data.targets.values.shape, np.float32)
    for number, predictions in oof.items():
        valid = data.folds.fold == number
        values[valid] = in_order(predictions, data, data.folds.ids[valid])
    return score_folds(data.metric, data.targets.values, values, data.folds.fold, data.folds.group_or_none)


# The same competition


def compare_facts(staged: Workspace, run: str, facts: Competition) -> tuple[list[str], list[str]]:
    """Problems and notes: what competition.yaml of the run says otherwise than ours."""
    path = staged.run_dir(run) / "competition.yaml"
    theirs = load_competition(path)
    problems = [
        f"{path}: {key} is {getattr(theirs, key)!r}, here it is {getattr(facts, key)!r}: {ALONE}"
        for key in ("task", "target_columns")
        if getattr(theirs, key) != getattr(facts, key)
    ]
    notes = [f"its metric is {theirs.metric}, ours {facts.metric}: it is scored by ours"]
    return problems, notes if theirs.metric != facts.metric else []


def compare_folds(theirs_path: Path, stamp: str, folds: Folds) -> list[str]:
    """What is other in a teammate's folds.csv, of which their runs have the stamp."""
    said = f"its folds are others (stamp {stamp[:12]}, ours {folds.stamp[:12]})"
    remedy = "agree on one folds.csv and train the runs of the other again"
    try:
        refuse_long_table(theirs_path)
        table = read_table(theirs_path, FOLDS_COLUMNS)
    except UserError as error:
        return [f"{said}, and their folds.csv does not tell which: {problem}" for problem in error.problems]
    if hashlib.sha256(theirs_path.read_bytes()).hexdigest() != stamp:
        return [f"{said}, and {theirs_path} is not the one that the run was made with: {remedy}"]
    ours = pd.DataFrame({"id": folds.ids, "fold": folds.fold.astype(str), "group": folds.group})
    for name in folds.target_columns:
        ours[name] = folds.table[name].to_numpy(object)
    both = ours.merge(table, on="id", how="outer", suffixes=("", " there"), indicator="side")
    lines = list_problems(both["id"][both["side"] == "left_only"].tolist(), lambda name: f"id '{name}' is only here")
    lines += list_problems(both["id"][both["side"] == "right_only"].tolist(), lambda name: f"id '{name}' is only there")
    both = both[both["side"] == "both"]
    for column in [name for name in ours.columns[1:] if f"{name} there" in both]:
        other = both[both[column] != both[f"{column} there"]]
        lines += list_problems(
            other[["id", column, f"{column} there"]].to_numpy().tolist(),
            lambda row, column=column: f"id '{row[0]}': {column} is '{row[1]}' here, '{row[2]}' there",
        )
    if not lines:
        return [f"{said}, though ids, folds and targets are the same (order or line ends): use one file for both"]
    return [f"{said}: {remedy}", *lines]


def refuse_long_table(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path}: not there")
    if path.is_symlink() or not path.is_file() or path.stat().st_size > 2**31:
        raise UserError(f"{path}: is no plain file, or has more than 2 GB")


# What is only said


def notes_of(staged: Workspace, run: str, settings: Settings, manifests: Mapping) -> list[str]:
    """What a person should know of the run, in words that do not stop the import."""
    notes = []
    if settings.limit:
        notes.append(f"a trial run on {settings.limit} rows, stack.py leaves it out")
    if any(knows_its_rows(manifest) for number, manifest in manifests.items() if number != ALL_DATA):
        notes.append(OPTIMISM)
    missing = [number for number, manifest in manifests.items() if "test.parquet" not in manifest["files"]]
    if missing:
        notes.append(f"no test predictions of {len(missing)} folds: run predict.py for it here")
    return notes + other_versions(staged, run)


def other_versions(staged: Workspace, run: str) -> list[str]:
    path = staged.run_dir(run) / "environment.json"
    theirs, ours = {}, artifacts.environment()
    with suppress(ValueError):
        theirs = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(theirs, dict):
        return ["its environment.json tells no versions"]
    other = [f"{name} {theirs.get(name)} (here {ours[name]})" for name in ours if theirs.get(name) != ours[name]]
    return [f"made with {', '.join(other)}"] if other else []


def check_ancestors(
    workspace: Workspace, settings: Settings, manifests: Mapping, with_it: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Problems and notes on the runs that the run stands on. with_it: names of runs that are imported beside it."""
    named = settings.stack_of if isinstance(settings, StackSettings) else ancestors(settings)
    absent = [run for run in named if run not in with_it and not workspace.run_config_path(run).exists()]
    what = "a stack of" if isinstance(settings, StackSettings) else "it was taught by"
    so = "it can be stacked and submitted, not made again, and whether that is optimistic cannot be seen"
    notes = [f"{what} {', '.join(absent)}, not here by this name: {so}"] if absent else []
    made_of = next(iter(manifests.values()), {}).get("made_of", {}) if isinstance(settings, StackSettings) else {}
    problems = []
    for run in dict.fromkeys(named):
        if run not in with_it and workspace.run_config_path(run).exists() and is_other(workspace, run, made_of):
            problems.append(f"it is a stack of a run {run} that is not our run {run}: import the parts, and stack here")
    return problems, notes


def ancestors(settings: Settings) -> list[str]:
    """Teachers of a trained run: of its pseudo-labels, and by distillation."""
    assert isinstance(settings, Config)
    return [*settings.pseudo_from, *settings.distill_from]


def is_other(workspace: Workspace, run: str, made_of: Mapping[str, str]) -> bool:
    """Whether predictions that a stack was made of differ from those of our run of that name."""
    for key, sha256 in made_of.items():
        match = re.fullmatch(r"run (\S+), fold (\d+), (\S+)", key)
        if match and match[1] == run:
            manifest = artifacts.read_manifest(workspace.fold_dir(run, int(match[2]))) or {"files": {}}
            if manifest["files"].get(match[3], {}).get("sha256") != sha256:
                return True
    return False


def same_code(theirs: Path, ours: Path) -> bool:
    """Whether a teammate's competition.py is ours to the byte; also where there is none to compare."""
    try:
        refuse_long(theirs)
    except UserError:
        return True
    return theirs.read_bytes() == ours.read_bytes()
