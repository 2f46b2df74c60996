"""Rows -> the bytes of folds.csv.

They depend on the rows of train.csv, their groups and copies, and the seed; not on the order of the rows, the machine,
or the versions of libraries.
"""

import csv
import hashlib
import io
from collections.abc import Sequence
from operator import itemgetter

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kfold.config import FOLDS_COLUMNS, Competition
from kfold.data.splitters import SCHEMES, Rows
from kfold.data.targets import Targets, read_numbers
from kfold.errors import UserError, list_problems

DAY_FIRST = r"[0-9]{1,2}[./-][0-9]{1,2}[./-][0-9]{2,4}.*"  # 31.1.2026 and 1/31/2026

FITTING = {  # task -> schemes that balance its targets; group, time and random fit every task
    "multiclass": ("stratified", "stratified_group"),
    "binary": ("stratified", "stratified_group"),
    "multilabel": ("multilabel",),
    "regression": ("binned",),
}


def make_folds(table: pd.DataFrame, targets: Targets, duplicate_group: np.ndarray, facts: Competition) -> bytes:
    """The bytes of folds.csv for the rows of train.csv; duplicate_group: (N,) text, "" = none.

    Raises UserError when the scheme does not fit the task, or rows, units or a class are too few for the folds.
    """
    scheme = choose_scheme(facts)
    ids = table[facts.id_column].tolist()
    group = table[facts.group_column].str.strip().tolist() if facts.group_column else [""] * len(ids)
    order = hash_order(ids, facts.fold_seed)
    units = connect([np.array(group, object)[order], duplicate_group[order]])
    if units.max() + 1 < facts.num_folds:
        raise UserError(
            f"{facts.train_csv}: has {units.max() + 1} rows or groups of rows that belong together, "
            f"fewer than num_folds = {facts.num_folds}: lower num_folds"
        )
    names = targets.labels if targets.values.shape[1] == 1 and targets.labels else targets.names
    rows = Rows(targets.values[order], names, units, read_time(table, facts)[order], facts.fold_seed)
    fold = np.zeros(len(ids), np.int64)
    try:
        fold[order] = SCHEMES[scheme](rows, facts.num_folds)
    except UserError as error:
        raise error.at(facts.train_csv) from None
    sizes = np.bincount(fold, minlength=facts.num_folds)
    if not sizes.all():
        raise UserError(
            f"{facts.train_csv}: fold_scheme {scheme} leaves fold {sizes.argmin()} without rows, because "
            f"{np.bincount(units).max()} of {len(ids)} rows belong together: lower num_folds, or take another scheme"
        )
    columns = [ids, fold.tolist(), group, duplicate_group.tolist()]
    columns += [table[name].tolist() for name in facts.target_columns]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*FOLDS_COLUMNS, *facts.target_columns])
    writer.writerows(sorted(zip(*columns, strict=True), key=itemgetter(0)))  # by id; of a million rows in 2.4 s
    return text.getvalue().encode()


def choose_scheme(facts: Competition) -> str:
    """The scheme that `auto` stands for, or the named one. Raises UserError when it does not fit the task."""
    fitting = FITTING[facts.task]
    if facts.fold_scheme == "auto":
        return fitting[-1] if facts.group_column else fitting[0]
    if facts.fold_scheme not in (*fitting, "group", "time", "random"):
        raise UserError(
            f"competition.yaml: fold_scheme {facts.fold_scheme} does not fit task {facts.task}: "
            f"take auto, {', '.join(fitting)}, group, time or random"
        )
    return facts.fold_scheme


def hash_order(ids: Sequence[str], seed: int) -> np.ndarray:
    """Positions (N,) of the ids in an order that looks random and depends on nothing but the ids and the seed."""
    digests = b"".join(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest() for name in ids)
    high, low = np.frombuffer(digests, ">u8").reshape(-1, 2).T
    return np.lexsort((low, high))


def connect(columns: Sequence[np.ndarray]) -> np.ndarray:
    """The unit of each row, (N,) int64 numbered by first appearance; "" in a column connects nothing.

    Rows with the same text in a column belong to one unit, and so do rows that are connected through others.
    """
    num_rows = num_nodes = len(columns[0])
    left, right = [], []
    for column in columns:
        filled = np.flatnonzero(column != "")
        codes, found = pd.factorize(column[filled])
        left.append(filled)
        right.append(num_nodes + codes)
        num_nodes += len(found)
    links = np.concatenate(left), np.concatenate(right)
    graph = coo_array((np.ones(len(links[0]), bool), links), shape=(num_nodes, num_nodes))
    return pd.factorize(connected_components(graph, directed=False)[1][:num_rows])[0].astype(np.int64)


def read_time(table: pd.DataFrame, facts: Competition) -> np.ndarray:
    """Rank of each row's time, (N,) int64: numbers where all are, else text; zeros unless the scheme is time.

    Raises UserError for blank cells, numbers among text, and dates that do not sort as text.
    """
    if facts.fold_scheme != "time":
        return np.zeros(len(table), np.int64)
    column, ids = table[facts.time_column].str.strip(), table[facts.id_column]
    numbers = read_numbers(column)
    is_number = np.isfinite(numbers)
    for wrong, what in (
        (column == "", "is blank: fill it in"),
        (~is_number if is_number.mean() > 0.5 else is_number, "is unlike the others: write all as numbers, or none"),
        (column.str.fullmatch(DAY_FIRST), "does not sort by time as text: write dates as 2026-01-31"),
    ):
        rows = np.flatnonzero(wrong)
        if len(rows):
            raise UserError(
                list_problems(
                    rows,
                    lambda row, what=what: (
                        f"{facts.time_column}: id '{ids.iloc[row]}': time '{column.iloc[row]}' {what}"
                    ),
                )
            ).at(facts.train_csv)
    values = numbers if is_number.all() else column.to_numpy(object)
    return np.unique(values, return_inverse=True)[1].astype(np.int64)
