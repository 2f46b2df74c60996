"""Who may label test rows for fold k, and pseudo.parquet, which keeps for each row who did.

Only a model that was trained without fold k may: one that saw it can recognise a near copy of a row of fold k among the
test rows, and hand the student the very label that the student is scored on. Measured in tests/test_pseudo.py, with
near copies of half of the training rows in the test set, 6 seeds: labels by all folds' models give an accuracy of 0.81
out of fold and 0.61 on fresh rows, labels by each fold's own model 0.61 and 0.61.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kfold.artifacts import ALL_DATA, Workspace, read_manifest
from kfold.data.tables import shorten
from kfold.ensemble.pseudo import PseudoRows
from kfold.errors import UserError
from kfold.predictions import PREFIX
from kfold.seals import write_sealed

WEIGHT_PREFIX = "w_"  # the weight of p_<name> in the loss
PROVENANCE = ("teacher_run", "teacher_fold", "teacher_weights_sha256")
REMEDY = "run pseudo_label.py again with --overwrite"


# Teachers


@dataclass(frozen=True)
class TeacherFacts:
    """What a fold's manifest says of its model. fold: of its folder, ALL_DATA for the full-data fit."""

    run: str
    fold: int
    trained_without_fold: int | None
    weights_sha256: str
    fitted_on_oof: bool = False
    kind: str = "last"  # of weights
    length_from_validation: bool = False


def teacher_facts(manifest: Mapping) -> TeacherFacts:
    without = manifest["trained_without_fold"]
    return TeacherFacts(
        manifest["run"],
        ALL_DATA if without is None else without,
        without,
        manifest["weights_sha256"],
        bool(manifest.get("fitted_on_oof", False)),
        manifest.get("kind", "last"),
        bool(manifest.get("length_from_validation", False)),
    )


def refuse_unsafe_teacher(manifest: Mapping | None, run: str, fold: int, fold_stamp: str) -> None:
    """Raise UserError unless the model may teach the student of `fold`.

    It must be trained without that fold, on these folds, and not be a stack. The student of ALL_DATA is scored on no
    row: any model made on these folds may teach it.
    """
    if manifest is None:
        raise UserError(f"run {run}, fold {fold}: is not trained, so it cannot teach: run train.py for it first")
    where = f"run {run}, fold {fold}: unsafe teacher"
    if missing := {"run", "trained_without_fold", "fold_stamp", "weights_sha256"} - manifest.keys():
        raise UserError(
            f"{where}: its manifest.json lacks {min(missing)}: train that fold again (train.py --overwrite)"
        )
    if manifest["run"] != run:
        raise UserError(f"{where}: its manifest is of run {manifest['run']}: give the folder its old name back")
    if manifest["fold_stamp"] != fold_stamp:
        raise UserError(f"{where}: trained on other folds than those of folds.csv: train it again")
    refuse_facts(teacher_facts(manifest), fold, where)


def refuse_facts(teacher: TeacherFacts, fold: int, where: str) -> None:
    if fold == ALL_DATA:
        return
    if teacher.fitted_on_oof:
        raise UserError(
            f"{where}: {teacher.run} was fitted on out-of-fold rows, whose models saw fold {fold}: "
            f"name the runs that it is made of as teachers instead (climbed snapshots: predict.py --weights snapshots)"
        )
    if teacher.kind == "best":
        raise UserError(
            f"{where}: {teacher.run} predicts with the epoch that was best on fold {fold}, so it knows of that fold: "
            f"run predict.py --run {teacher.run} --weights last first"
        )
    if teacher.length_from_validation:
        raise UserError(
            f"{where}: {teacher.run} stopped by its score on fold {fold} (early_stopping), so it knows of that fold: "
            f"train it with early_stopping=0"
        )
    if teacher.trained_without_fold != fold:
        how = "on all rows" if teacher.trained_without_fold is None else f"without fold {teacher.trained_without_fold}"
        raise UserError(f"{where}: {teacher.run} was trained {how}, so it saw fold {fold}: train its fold {fold}")


def read_teachers(
    workspace: Workspace, runs: Sequence[str], fold: int, num_folds: int, fold_stamp: str
) -> dict[str, list[dict]]:
    """For each run the manifests of its models that label test rows for the student of `fold`.

    The run's own model of that fold; for ALL_DATA the models of all folds. Raises UserError when one may not teach.
    """
    manifests: dict[str, list[dict]] = {}
    for run in runs:
        for number in range(num_folds) if fold == ALL_DATA else [fold]:
            manifest = read_manifest(workspace.fold_dir(run, number))
            refuse_unsafe_teacher(manifest, run, number, fold_stamp)
            manifests.setdefault(run, []).append(manifest)
    return manifests


# The file


def write_pseudo(
    path: Path,
    rows: PseudoRows,
    teachers: Sequence[TeacherFacts],
    fold_stamp: str,
    task: str,
    names: Sequence[str],
    config_hash: str = "",
) -> None:
    """Write pseudo.parquet atomically; teacher_fold is what the teachers' manifests say, ALL_DATA when they differ."""
    without = {teacher.trained_without_fold for teacher in teachers}
    (fold,) = without if len(without) == 1 else (None,)
    provenance = ("+".join(teacher.run for teacher in teachers), "+".join(t.weights_sha256 for t in teachers))
    columns = {"id": pa.array(list(rows.ids), pa.string())}
    for column, name in enumerate(names):
        columns[PREFIX + name] = pa.array(rows.targets[:, column], pa.float32())
        columns[WEIGHT_PREFIX + name] = pa.array(rows.weights[:, column], pa.float32())
    columns["confidence"] = pa.array(rows.confidence, pa.float32())
    columns["teacher_run"] = pa.array([provenance[0]] * len(rows.ids), pa.string())
    columns["teacher_fold"] = pa.array([ALL_DATA if fold is None else fold] * len(rows.ids), pa.int32())
    columns["teacher_weights_sha256"] = pa.array([provenance[1]] * len(rows.ids), pa.string())
    stamps = {
        "content": content_sha256(pa.table(columns)),
        "fold_stamp": fold_stamp,
        "task": task,
        "names": json.dumps(list(names)),
        "config_hash": config_hash,
    }
    table = pa.table(columns).replace_schema_metadata({f"kfold.{key}": value for key, value in stamps.items()})
    content = io.BytesIO()
    pq.write_table(table, content)
    write_sealed(path, content.getvalue())  # no manifest lists it until its fold is trained


def read_pseudo(
    path: Path,
    fold: int,
    fold_stamp: str,
    task: str,
    names: Sequence[str],
    teachers: Sequence[TeacherFacts],
    test_ids: Sequence[str],
    train_ids: Sequence[str],
) -> PseudoRows:
    """The rows of pseudo.parquet for the student of `fold`, targets in the order of names.

    teachers: the facts of all models that `read_teachers` gives for `pseudo_from`. Raises UserError, naming file and
    id, on a missing or damaged file, other folds, task or names, a teacher that saw the fold, is none of `teachers` or
    was trained again since, ids that are doubled, not of the test set or of the training set, and non-finite numbers.
    """
    for teacher in teachers:
        refuse_facts(teacher, fold, str(path))
    table, stamps = read_stamped(path)
    if stamps.get("fold_stamp") != fold_stamp:
        found = stamps.get("fold_stamp", "none")[:12]
        raise UserError(f"{path}: made with other folds (stamp {found}, folds.csv has {fold_stamp[:12]}): {REMEDY}")
    if (stamps.get("task"), stamps.get("names")) != (task, json.dumps(list(names))):
        raise UserError(f"{path}: made for other targets ({stamps.get('task')}) than train.csv now gives: {REMEDY}")
    kinds = [PREFIX + name for name in names], [WEIGHT_PREFIX + name for name in names]
    missing = [name for name in ("id", *kinds[0], *kinds[1], "confidence", *PROVENANCE) if name not in table]
    if missing:
        raise UserError(f"{path}: not a file of pseudo-labels, column '{missing[0]}' is missing: {REMEDY}")
    targets, weights = (table[columns].to_numpy(np.float32) for columns in kinds)
    rows = PseudoRows(table["id"].to_numpy(object), targets, weights, table["confidence"].to_numpy(np.float32))
    problems = bad_provenance(path, table, fold, teachers) + bad_rows(path, rows, test_ids, train_ids)
    if problems:
        raise UserError(problems)
    return rows


def read_stamped(path: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """The columns and the stamps. Raises UserError on a missing or damaged file."""
    try:
        table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        stamps = {key.decode()[6:]: value.decode() for key, value in metadata.items() if key.startswith(b"kfold.")}
        table = table.replace_schema_metadata(None)
        is_whole = content_sha256(table) == stamps.get("content")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: run pseudo_label.py, it makes the labels and trains on them") from None
    except (OSError, pa.ArrowException, ValueError) as error:  # of the bytes of text, too
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: damaged, cannot be read ({reason}): {REMEDY}") from None
    if not is_whole:
        raise UserError(f"{path}: damaged or changed by hand (its content is not what it is stamped with): {REMEDY}")
    return table.to_pandas(), stamps


def content_sha256(table: pa.Table) -> str:
    """sha256 (hex) of all cells. The file's own: until its fold is done, no manifest vouches for it."""
    found = hashlib.sha256()
    for name in table.column_names:
        found.update(json.dumps([name, table[name].to_pylist()]).encode())
    return found.hexdigest()


def bad_provenance(path: Path, table: pd.DataFrame, fold: int, teachers: Sequence[TeacherFacts]) -> list[str]:
    """One line per distinct origin that does not fit, with the first id of that origin."""
    problems = []
    for (run, teacher_fold, weights), part in table.groupby(list(PROVENANCE), dropna=False, sort=False):
        where = f"{path}: id '{part['id'].iloc[0]}' ({len(part)} such rows)"
        found = Counter(zip_longest(str(run).split("+"), str(weights).split("+"), fillvalue=""))
        wanted = Counter((teacher.run, teacher.weights_sha256) for teacher in teachers)
        foreign = sorted({name for name, _ in found} - {name for name, _ in wanted})
        if teacher_fold != fold:
            problem = f"its teacher saw fold {fold}: it was trained without {fold_text(teacher_fold)}"
        elif foreign:
            problem = f"its teacher '{foreign[0]}' is not in pseudo_from"
        elif {name for name, _ in found} != {name for name, _ in wanted}:
            problem = f"labelled by {run} alone, but pseudo_from has {', '.join(sorted({name for name, _ in wanted}))}"
        elif found != wanted:
            problem = f"stale: {run} has other weights now than when it labelled"
        else:
            continue
        problems.append(f"{where}: {problem}: {REMEDY}")
    return shorten(problems)


def fits(path: Path, config_hash: str, *checks: object) -> bool:
    """Whether pseudo.parquet was made with these settings and passes `read_pseudo`, which takes the checks."""
    try:
        read_pseudo(path, *checks)
        return read_stamped(path)[1].get("config_hash") == config_hash
    except UserError:
        return False


def fold_text(teacher_fold: object) -> str:
    return "any fold" if teacher_fold == ALL_DATA else f"fold {teacher_fold}"


def bad_rows(path: Path, rows: PseudoRows, test_ids: Sequence[str], train_ids: Sequence[str]) -> list[str]:
    index = pd.Index(rows.ids)
    cells = np.column_stack([rows.targets, rows.weights, rows.confidence])
    kinds = {
        "occurs twice": index.duplicated(),
        "is not a test id": ~index.isin(test_ids),
        "is a training id": index.isin(train_ids),
        "has a target, weight or confidence that is not finite": ~np.isfinite(cells).all(axis=1),
        "has a weight outside 0 to 1": (rows.weights < 0).any(axis=1) | (rows.weights > 1).any(axis=1),
    }
    return [
        f"{path}: id '{rows.ids[bad][0]}' {kind} ({bad.sum()} such rows): {REMEDY}"
        for kind, bad in kinds.items()
        if bad.any()
    ]
