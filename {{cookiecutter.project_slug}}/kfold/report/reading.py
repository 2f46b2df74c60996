"""What lies in the folders of runs, as far as it is there and can be trusted.

What is merely unfinished is noted; what is damaged is a problem, named, and what else the run has is read all the same.
"""

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from kfold import artifacts
from kfold.artifacts import ALL_DATA, Workspace
from kfold.config import Task
from kfold.data.folds import Folds, take_rows
from kfold.data.targets import Targets
from kfold.errors import UserError
from kfold.report.spreadsheet import to_number, unguard
from kfold.runs import OPTIMISM, by_name, is_optimistic, limit_of, refuse_rejected, refuse_stale_stack
from kfold.seals import refuse_broken_seal
from kfold.strict_yaml import read_yaml

DRAWN = {"epoch", "train_loss", "valid_loss", "score", "lr"}  # columns of log.csv
SHOWN = {  # columns of the other tables that are always there
    "choices": {"what", "name", "chosen"},
    "blend": {"name", "kind", "nested", "low", "high"},
    "importance": {"name", "gain"},
}


@dataclass
class RunFound:
    """One run. oof: (N, C) in the order of folds.csv, NaN where a row has no prediction (yet); by fold: manifests, and
    logs (a row an epoch). tables: choices, blend, importance as text, where they are. settings: of config.yaml.

    notes: what to know of it in a few words each. problems: one line for whatever is damaged.
    """

    name: str
    oof: np.ndarray
    settings: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    manifests: dict[int, dict] = field(default_factory=dict)
    logs: dict[int, pd.DataFrame] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    verdict: dict | None = None  # of a round of pseudo-labels
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def has_oof(self) -> np.ndarray:
        """(N,) bool: the rows that it predicts."""
        return ~np.isnan(self.oof).any(axis=1)

    @property
    def stack_of(self) -> tuple[str, ...]:
        return tuple(self.settings.get("stack_of", ()))

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Note a UserError as a problem and go on."""
        try:
            yield
        except UserError as error:
            self.problems += [line for line in error.problems if line not in self.problems]


def read_run(workspace: Workspace, run: str, folds: Folds, targets: Targets, task: Task) -> RunFound:
    """All that is known of a run."""
    found, limit = RunFound(run, np.full(targets.values.shape, np.nan, np.float32)), 0
    with found.collect():
        refuse_broken_seal(workspace.run_config_path(run))
        settings = read_yaml(workspace.run_config_path(run))
        limit = limit_of(settings, workspace.run_config_path(run))
        artifacts.stack_of(workspace, run)  # raises where it is no list of runs
        found.settings = settings
    with found.collect():
        found.environment = read_json(workspace.environment_path(run)) or {}
    taken = take_rows(folds, limit)
    for number in range(folds.num_folds):
        read_fold(found, workspace, number, taken, targets, task, folds)
    with found.collect():
        refuse_foreign_folds(found, workspace, folds)
    paths = {"choices": workspace.choices_path(run)}
    paths |= {table: workspace.stack_table_path(run, table) for table in ("blend", "importance")}
    for name, path in paths.items():
        with found.collect():
            if path.exists():
                found.tables[name] = refuse_incomplete(path, read_table(path), SHOWN[name])
    with found.collect():
        found.verdict = read_json(workspace.round_path(run))
    note_what_to_know(found, workspace, limit, folds.num_folds)
    found.problems = [workspace.without_root(line) for line in found.problems]
    found.notes = [workspace.without_root(line) for line in found.notes]
    return found


def read_fold(
    found: RunFound, workspace: Workspace, number: int, taken: Folds, targets: Targets, task: Task, folds: Folds
) -> None:
    """The manifest, log and out-of-fold predictions of one fold, where they are."""
    run, manifest = found.name, None
    with found.collect():
        manifest = artifacts.read_manifest(workspace.fold_dir(run, number))
    with found.collect():
        read_log(found, workspace, number, manifest)
    if manifest is None:
        return
    found.manifests[number] = manifest
    if is_foreign(manifest, folds) or workspace.predictions_path(run, number, "oof").name not in manifest["files"]:
        return
    ids = taken.ids[taken.fold == number]
    with found.collect():
        part = artifacts.read_trusted(workspace, run, number, "oof", folds.stamp, ids)
        rows = pd.Index(folds.ids).get_indexer(pd.Index(ids))
        found.oof[rows] = by_name(part, run, targets, task, ids)


def is_foreign(manifest: Mapping, folds: Folds) -> bool:
    return manifest.get("fold_stamp") != folds.stamp


def refuse_foreign_folds(found: RunFound, workspace: Workspace, folds: Folds) -> None:
    """Raise UserError, one line for all of them, where folds were made with another folds.csv."""
    foreign = {number: manifest for number, manifest in found.manifests.items() if is_foreign(manifest, folds)}
    if foreign:
        stamps = sorted({str(manifest.get("fold_stamp", "none"))[:12] for manifest in foreign.values()})
        raise UserError(
            f"{workspace.run_dir(found.name)}: fold {', '.join(map(str, foreign))}: made with other folds (stamp "
            f"{', '.join(stamps)}, folds.csv has {folds.stamp[:12]}): make the run again with --overwrite"
        )


def read_log(found: RunFound, workspace: Workspace, number: int, manifest: Mapping | None) -> None:
    path = workspace.log_path(found.name, number)
    if manifest is not None:
        artifacts.verify_files(path.parent, manifest, [path.name])
    if path.exists():
        log = read_table(path).map(to_number)
        if missing := DRAWN - set(log):
            raise UserError(f"{path}: damaged, it lacks {min(missing)}: train this fold again with --overwrite")
        if not np.isfinite(log["epoch"]).all():
            raise UserError(f"{path}: damaged, an epoch is no number: train this fold again with --overwrite")
        found.logs[number] = log


def note_what_to_know(found: RunFound, workspace: Workspace, limit: int, num_folds: int) -> None:
    run, num_done = found.name, len(found.manifests)
    if num_done < num_folds:
        found.notes.append(f"{num_done} of {num_folds} folds")
    if limit:
        found.notes.append(f"trial on {limit} rows")
    if (found.settings or found.manifests) and not found.problems:
        with found.collect():
            if is_optimistic(workspace, run):
                found.notes.append("optimistic")
        if found.verdict and not found.verdict.get("kept"):
            found.notes.append("rejected round")
        try:
            if not found.verdict:
                refuse_rejected(workspace, run)  # one that is not judged
            refuse_stale_stack(workspace, run)
        except UserError as error:
            found.notes += error.problems
    if workspace.has_full_fit(run):
        with found.collect():
            artifacts.read_manifest(workspace.fold_dir(run, ALL_DATA))
        found.notes.append("has a full-data fit")
    if found.problems:
        found.notes.append("damaged, see below")


def optimism_note(runs: list[RunFound]) -> str:
    """What the word means, where a run has it."""
    return f"optimistic: {OPTIMISM}" if any("optimistic" in run.notes for run in runs) else ""


def read_text(path: Path) -> str:
    """A file of a run after comparing it with SHA256SUMS. Raises UserError."""
    refuse_broken_seal(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: damaged, cannot be read as text: run its stage again with --overwrite") from None


def read_json(path: Path) -> dict | None:
    """None where there is no file. Raises UserError."""
    if not path.exists():
        return None
    try:
        found = json.loads(read_text(path))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged, not what a stage writes: run its stage again with --overwrite")
    return found


def read_table(path: Path) -> pd.DataFrame:
    """A table of a stage, all cells text. Raises UserError."""
    try:
        table = pd.read_csv(io.StringIO(read_text(path)), dtype=str, keep_default_na=False)
    except (ValueError, pd.errors.ParserError):
        raise UserError(f"{path}: damaged, not a table: run its stage again with --overwrite") from None
    return table.map(unguard)


def refuse_incomplete(path: Path, table: pd.DataFrame, wanted: set[str]) -> pd.DataFrame:
    """The table. Raises UserError where it lacks a column."""
    if missing := wanted - set(table):
        raise UserError(f"{path}: damaged, it lacks {min(missing)}: run its stage again with --overwrite")
    return table
