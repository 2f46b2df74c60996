"""What a stack is made of: the runs, their predictions fold by fold, and whatever else is known of each row."""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import Competition
from kfold.data.folds import Folds
from kfold.data.images import image_paths
from kfold.data.statistics import STATISTICS, image_statistics
from kfold.data.tables import read_table
from kfold.data.targets import Targets
from kfold.ensemble.features import Pair, Source, make_features, read_embeddings
from kfold.ensemble.nested import METHODS
from kfold.ensemble.second_level import Rows
from kfold.errors import UserError
from kfold.predictions import ids_sha256
from kfold.runs import read_candidates, read_oof_values, read_test_by_fold, refuse_unfinished
from kfold.seals import refuse_broken_seal, write_sealed

FEATURE_GROUPS = ("oof", "group", "metadata", "images", "embeddings")  # oof is always among them


@dataclass(frozen=True)
class Inputs:
    """rows: the training rows, out of fold. test_rows: fold k -> the test rows as the runs' fold-k models see them."""

    rows: Rows
    test_rows: Callable[[int], Rows]


# Runs


def read_runs(
    workspace: Workspace, wished: Sequence[str], name: str, folds: Folds, targets: Targets, facts: Competition
) -> dict[str, np.ndarray]:
    """OOF predictions (N, C) of each run of the stack `name`: those wished for, else every finished trained run.

    Without a wish, stacks, trial runs, rejected rounds and runs that cannot be trusted are left out, with a printed
    line. Raises UserError when a run that was wished for cannot be used, or when there is none.
    """
    if not wished:
        found, lines = read_candidates(workspace, folds, targets, facts.task, with_stacks=False)
        print("\n".join(lines), end="\n" if lines else "")
        if not found:
            raise UserError(f"{workspace.runs_dir}: no finished run to stack: run train.py and predict.py first")
        return found
    for place, run in enumerate(wished):
        artifacts.refuse_odd_name(run)
        if run in wished[:place]:
            raise UserError(f"--runs: {run} is named twice: name each run once")
        if name in artifacts.runs_within(workspace, run):
            raise UserError(f"--runs: {run} stands on {name}, which is to be made of it: give it another --name")
    found, problems = {}, []
    for run in wished:
        try:
            refuse_unfinished(workspace, run, sorted(set(folds.fold.tolist())))
            found[run] = read_oof_values(workspace, run, folds, targets, facts.task)
        except UserError as error:
            problems += [f"--runs {run}: {problem}" for problem in error.problems]
    if problems:
        raise UserError(problems)
    return found


def is_fitted(workspace: Workspace, run: str) -> bool:
    """Whether numbers of the run, or of one that it stands on, were fitted on out-of-fold rows."""
    for name in artifacts.runs_within(workspace, run):
        for fold in workspace.trained_folds(name):
            manifest = artifacts.read_manifest(workspace.fold_dir(name, fold)) or {}
            method = METHODS.get(manifest.get("method", ""))
            if method.is_fitted if method else manifest.get("fitted_on_oof") and "method" not in manifest:
                return True
    return False


# Rows


def read_sources(
    workspace: Workspace,
    facts: Competition,
    folds: Folds,
    test_ids: Sequence[str],
    features: Sequence[str],
    embeddings_path: Path,
) -> tuple[Source, Source]:
    """What is known of the training rows, and of the test rows, beside predictions; only what the features need."""
    none = np.zeros((0, 0, 0), np.float32)
    train, test = Source(folds.ids, none), Source(np.array(test_ids, object), none)
    test_csv = workspace.data_path(facts, facts.test_csv)
    if test_csv.exists() and {"group", "metadata"} & set(features):
        table = read_table(test_csv, [facts.id_column]).set_index(facts.id_column, drop=False).loc[list(test_ids)]
        if folds.group_or_none is not None and facts.group_column in table and "group" in features:
            train = replace(train, groups=folds.group)
            test = replace(test, groups=table[facts.group_column].str.strip().to_numpy(object))
        if "metadata" in features:
            own = [facts.id_column, *facts.target_columns, *([facts.group_column] if facts.group_column else [])]
            train, test = (
                replace(side, table=cells.drop(columns=own, errors="ignore").reset_index(drop=True))
                for side, cells in ((train, folds.table), (test, table))
            )
    if "embeddings" in features:
        train, test = (replace(side, embeddings=read_embeddings(embeddings_path, side.ids)) for side in (train, test))
    return train, test


def read_inputs(
    workspace: Workspace,
    facts: Competition,
    folds: Folds,
    targets: Targets,
    oof: Mapping[str, np.ndarray],
    sources: tuple[Source, Source],
    features: Sequence[str],
) -> Inputs:
    """The rows of all runs in `oof` with the features of FEATURE_GROUPS that are named.

    Group features of the test rows follow the fold's own models; the others are the same for every fold.
    """
    train, test = sources
    test_of = {run: read_test_by_fold(workspace, run, folds, targets, facts.task, test.ids) for run in oof}
    train = replace(train, predictions=np.stack(list(oof.values())))  # (M, N, C)
    fixed = [make_features([name for name in features if name in ("metadata", "embeddings")], train, test)]
    if "images" in features:
        fixed.append(images_of_both(workspace, facts, train.ids, test.ids))
    wish = ["group"] if "group" in features and facts.group_column else []

    def seen_by(number: int) -> Source:
        return replace(test, predictions=np.stack([parts[number] for parts in test_of.values()]))

    def test_rows(number: int) -> Rows:
        source = seen_by(number)
        frame = side_by_side([*fixed, make_features(wish, train, source)], side=1)
        return Rows(source.predictions, np.full(len(test.ids), number), frame)

    parts = [*fixed, make_features(wish, train, seen_by(int(folds.fold.min())))]
    for note in [note for *_, notes in parts for note in notes]:
        print(note)
    return Inputs(Rows(train.predictions, folds.fold, side_by_side(parts, side=0)), test_rows)


def side_by_side(parts: Sequence[Pair], side: int) -> pd.DataFrame | None:
    """All columns of the training rows (side 0) or the test rows (1); None where there are none."""
    frame = pd.concat([part[side] for part in parts], axis=1)
    return frame if len(frame.columns) else None


def images_of_both(workspace: Workspace, facts: Competition, train_ids: Sequence[str], test_ids: Sequence[str]) -> Pair:
    """Columns image_<statistic> of the training and the test rows; none, with a note, where a folder is not there."""
    folders = [workspace.data_path(facts, name) for name in (facts.train_images, facts.test_images)]
    for folder in folders:
        if not folder.is_dir():
            nothing = [pd.DataFrame(index=range(len(ids))) for ids in (train_ids, test_ids)]
            return *nothing, [f"no image features: {folder} is not there"]
    frames = []
    for rows, folder, ids in zip(("train", "test"), folders, (train_ids, test_ids), strict=True):
        paths, _ = image_paths(folder, ids, facts.image_suffix)  # an id that leads out is a row of NaN
        found = cached_statistics(workspace.image_statistics_path(rows), ids, paths, f"{rows} image statistics")
        frames.append(found.add_prefix("image_"))
    return *frames, []


def cached_statistics(cache_path: Path, ids: Sequence[str], paths: Sequence[Path], title: str) -> pd.DataFrame:
    """`image_statistics` of the files, of which only those are read that are new or of another size than before."""
    known = pd.DataFrame(columns=["id", *STATISTICS])
    if cache_path.exists():
        with suppress(
            OSError, pa.ArrowException, UserError
        ):  # a damaged cache is made anew, as is one of other columns
            refuse_broken_seal(cache_path)
            found = pq.read_table(cache_path).to_pandas()
            known = found if list(found) == list(known) else known
    known = known.drop_duplicates("id").set_index("id").reindex(list(ids)).astype(np.float64)
    sizes = np.array([path.stat().st_size if path.exists() else -1 for path in paths])
    stale = np.flatnonzero(known["bytes"].to_numpy() != sizes)
    if len(stale):
        known.iloc[stale] = image_statistics([paths[row] for row in stale], title).to_numpy()
        table = pa.Table.from_pandas(known.reset_index(names="id"), preserve_index=False)
        content = io.BytesIO()
        pq.write_table(table, content)
        write_sealed(cache_path, content.getvalue())
    return known.reset_index(drop=True)


# Whether anything changed


def fingerprint(
    workspace: Workspace,
    facts: Competition,
    folds: Folds,
    targets: Targets,
    runs: Sequence[str],
    sources: tuple[Source, Source],
) -> dict[str, str]:
    """sha256 of all data that the result depends on, by names that a person understands; images by their ids."""
    found = {
        "folds.csv": folds.stamp,
        "targets": sha256("\n".join(targets.names).encode(), targets.values.tobytes()),
        "test ids": ids_sha256(sources[1].ids),
    }
    for run in runs:
        for number in sorted(set(folds.fold.tolist())):
            files = artifacts.read_manifest(workspace.fold_dir(run, number))["files"]
            for rows in ("oof", "test"):
                file_name = workspace.predictions_path(run, number, rows).name
                found[f"run {run}, fold {number}, {file_name}"] = files[file_name]["sha256"]
    for side, source in zip((facts.train_csv, facts.test_csv), sources, strict=True):
        order = np.argsort(source.ids.astype(str), kind="stable")
        if source.groups is not None:
            found[f"groups of {side}"] = sha256("\n".join(source.groups[order]).encode())
        if source.table is not None:
            found[f"metadata of {side}"] = sha256(source.table.iloc[order].to_csv(index=False).encode())
        if source.embeddings is not None:
            found[f"embeddings of {side}"] = sha256(np.ascontiguousarray(source.embeddings[order]).tobytes())
    return found


def sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
