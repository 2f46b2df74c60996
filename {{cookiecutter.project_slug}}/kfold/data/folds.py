"""folds.csv read back: made once (assign.py), then never derived again, because its sha256 stamps every result."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from kfold.config import FOLDS_COLUMNS, Competition
from kfold.data.assign import hash_order
from kfold.data.tables import read_table
from kfold.errors import UserError, list_problems

REMEDY = "run make_folds.py --overwrite"


@dataclass(frozen=True)
class Folds:
    """The training rows, sorted by id.

    table: the rows of train.csv as text, all its columns. ids, group, duplicate_group: (N,) text ("" = none).
    fold: (N,) int64. stamp: sha256 (hex) of folds.csv. target_columns: those of train.csv.
    """

    table: pd.DataFrame
    ids: np.ndarray
    fold: np.ndarray
    group: np.ndarray
    duplicate_group: np.ndarray
    stamp: str
    target_columns: tuple[str, ...] = ()

    @property
    def num_folds(self) -> int:
        return int(self.fold.max()) + 1

    @property
    def group_or_none(self) -> np.ndarray | None:
        """`group`, or None where no row has one."""
        return self.group if (self.group != "").any() else None


def read_folds(folds_path: Path, train_csv_path: Path, facts: Competition) -> Folds:
    """folds.csv joined by id with train.csv, in folds.csv's order.

    Raises UserError when folds.csv is missing or does not fit train.csv or competition.yaml, or when a group or a copy
    of an image lies in two folds.
    """
    if not folds_path.exists():
        raise UserError(f"{folds_path}: no such file: run make_folds.py first")
    frozen = read_table(folds_path, [*FOLDS_COLUMNS, *facts.target_columns])
    optional = [name for name in (facts.group_column,) if name]
    train = read_table(train_csv_path, [facts.id_column, *facts.target_columns, *optional])
    rows = pd.Index(train[facts.id_column]).get_indexer(pd.Index(frozen["id"]))
    problems = compare_ids(folds_path, frozen, train, rows, facts) + bad_numbers(folds_path, frozen, facts.num_folds)
    if problems:
        raise UserError(problems)
    table = train.iloc[rows].reset_index(drop=True)
    problems = compare_cells(folds_path, frozen, table, facts)
    for name in ("group", "duplicate_group"):
        cut = cut_groups(frozen[name], frozen["fold"])
        problems += list_problems(
            cut, lambda text, name=name: f"{folds_path}: {name} '{text}' lies in several folds: {REMEDY}"
        )
    if problems:
        raise UserError(problems)
    return Folds(
        table,
        *(
            frozen[name].to_numpy(object) if name != "fold" else frozen[name].to_numpy(np.int64)
            for name in FOLDS_COLUMNS
        ),
        stamp=hashlib.sha256(folds_path.read_bytes()).hexdigest(),
        target_columns=facts.target_columns,
    )


def compare_ids(
    path: Path, frozen: pd.DataFrame, train: pd.DataFrame, rows: np.ndarray, facts: Competition
) -> list[str]:
    problems = list_problems(
        frozen["id"][rows < 0].tolist(), lambda name: f"{path}: id '{name}' is not in {facts.train_csv}: {REMEDY}"
    )
    if facts.bad_train_images == "stop":
        is_new = np.ones(len(train), bool)
        is_new[rows[rows >= 0]] = False
        problems += list_problems(
            train[facts.id_column][is_new].tolist(),
            lambda name: f"{path}: id '{name}' of {facts.train_csv} is missing: {REMEDY}",
        )
    return problems


def bad_numbers(path: Path, frozen: pd.DataFrame, num_folds: int) -> list[str]:
    allowed = [str(fold) for fold in range(num_folds)]
    bad = frozen[["id", "fold"]][~frozen["fold"].isin(allowed)].to_numpy(object)
    problems = list_problems(
        bad,
        lambda row: (
            f"{path}: id '{row[0]}': fold '{row[1]}' is none of 0 to {num_folds - 1} "
            f"(num_folds in competition.yaml): {REMEDY}"
        ),
    )
    empty = sorted(set(allowed) - set(frozen["fold"]))
    return problems + [
        f"{path}: fold {fold} has no rows: set num_folds in competition.yaml back, or {REMEDY}" for fold in empty
    ]


def compare_cells(path: Path, frozen: pd.DataFrame, table: pd.DataFrame, facts: Competition) -> list[str]:
    """Labels and groups of train.csv must still be those that the folds were made with."""
    names = {name: name for name in facts.target_columns}
    if facts.group_column:
        names["group"] = facts.group_column
    problems = []
    for old, new in names.items():
        now = table[new].str.strip() if old == "group" else table[new]
        problems += list_problems(
            np.flatnonzero(frozen[old].to_numpy(object) != now.to_numpy(object)),
            lambda row, old=old, new=new: (
                f"{path}: id '{frozen['id'][row]}': {new} was '{frozen[old][row]}' when the "
                f"folds were made, {facts.train_csv} now says '{table[new][row]}': undo the change or {REMEDY}"
            ),
        )
    return problems


def cut_groups(groups: Sequence[str], folds: Sequence) -> list[str]:
    """Groups ("" is none) that lie in more than one fold."""
    pairs = pd.DataFrame({"group": np.asarray(groups, object), "fold": np.asarray(folds, object)})
    num_folds = pairs[pairs["group"] != ""].groupby("group")["fold"].nunique()
    return num_folds.index[num_folds > 1].tolist()


def take_rows(folds: Folds, limit: int) -> Folds:
    """At most `limit` rows for a trial run (0: all): as many from each fold, and from each target in it, as can be."""
    if not limit or limit >= len(folds.ids):
        return folds
    targets = ["\0".join(cells) for cells in folds.table[list(folds.target_columns)].to_numpy(object)]
    rows = pd.DataFrame({"fold": folds.fold, "target": targets}).iloc[hash_order(folds.ids, seed=0)]
    for within in (["fold", "target"], ["fold"]):  # targets take turns within a fold, then folds take turns
        rows["turn"] = rows.groupby(within).cumcount()
        rows = rows.sort_values("turn", kind="stable")
    taken = np.sort(rows.index[:limit].to_numpy())
    return replace(
        folds,
        table=folds.table.iloc[taken].reset_index(drop=True),
        **{name: getattr(folds, name)[taken] for name in ("ids", "fold", "group", "duplicate_group")},
    )
