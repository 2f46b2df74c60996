"""Target columns, from text to numbers."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kfold.config import Competition
from kfold.data.tables import shorten
from kfold.errors import UserError


@dataclass(frozen=True)
class Targets:
    """What the model learns to predict, row by row.

    values: (N, C) float32; one-hot for multiclass, 0/1 for binary (C = 1) and multilabel, numbers for regression.
    names: of the C columns: classes, the target column, labels, or the target columns.
    labels: texts that a submission's label cell can take: the classes; (negative, positive) for binary; else none.
    """

    values: np.ndarray
    names: tuple[str, ...]
    labels: tuple[str, ...] = ()


def decode(table: pd.DataFrame, facts: Competition) -> Targets:
    """The targets of a table of text, by the competition's task.

    Classes sort as integers where all are, else as text; the last of two is the positive one. Texts such as "NA" are
    ordinary classes. Multilabel reads one column of 0/1 per label, or one column of labels separated by `|` or spaces
    (blank: none). Raises UserError that lists every problem and names the id.
    """
    columns = list(facts.target_columns)
    return DECODERS[facts.task](table[columns], np.array(table[facts.id_column], dtype=object))


def decode_multiclass(table: pd.DataFrame, ids: np.ndarray) -> Targets:
    classes, codes = read_classes(table.iloc[:, 0], ids)
    if len(classes) < 2:
        raise UserError(f"{table.columns[0]}: all rows are of class '{classes[0]}': there is nothing to tell apart")
    return Targets(np.eye(len(classes), dtype=np.float32)[codes], classes, classes)


def decode_binary(table: pd.DataFrame, ids: np.ndarray) -> Targets:
    classes, codes = read_classes(table.iloc[:, 0], ids)
    if len(classes) != 2:
        listed = ", ".join(repr(name) for name in classes[:6])
        raise UserError(
            f"{table.columns[0]}: task binary needs two classes, there are {len(classes)} ({listed}): "
            f"mend the labels or the task in competition.yaml"
        )
    return Targets(codes.astype(np.float32)[:, None], (str(table.columns[0]),), classes)


def decode_multilabel(table: pd.DataFrame, ids: np.ndarray) -> Targets:
    if table.shape[1] == 1:
        return decode_label_lists(table.iloc[:, 0], ids)
    is_one, is_zero = table.isin(["1", "1.0"]).to_numpy(), table.isin(["0", "0.0"]).to_numpy()
    rows, columns = np.nonzero(~(is_one | is_zero))
    problems = [
        f"{table.columns[column]}: id '{ids[row]}': '{table.iat[row, column]}' is neither 0 nor 1: mend the cell"
        for row, column in zip(rows[:1000], columns[:1000], strict=True)
    ]
    if problems:
        raise UserError(shorten(problems))
    return Targets(is_one.astype(np.float32), tuple(map(str, table.columns)))


def decode_label_lists(cells: pd.Series, ids: np.ndarray) -> Targets:
    has_bars = cells.str.contains("|", regex=False).any()
    split = [[part.strip() for part in cell.split("|")] if has_bars else cell.split() for cell in cells]
    row_of = np.repeat(np.arange(len(cells)), [len(parts) for parts in split])
    parts = np.array([part for parts in split for part in parts], dtype=object)
    filled = parts != ""  # a blank cell is a row without labels
    row_of, parts = row_of[filled], pd.Series(parts[filled], name=cells.name, dtype=str)
    if not len(parts):
        raise UserError(f"{cells.name}: no row has a label: mend the column in train.csv")
    labels, codes = read_classes(parts, ids[row_of])
    values = np.zeros((len(cells), len(labels)), np.float32)
    values[row_of, codes] = 1
    return Targets(values, labels)


def decode_regression(table: pd.DataFrame, ids: np.ndarray) -> Targets:
    with np.errstate(over="ignore"):
        values = np.column_stack(
            [pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64).astype(np.float32) for name in table]
        )
    rows, columns = np.nonzero(~np.isfinite(values))
    problems = [
        f"{table.columns[column]}: id '{ids[row]}': '{table.iat[row, column]}' is not a finite number: mend the cell"
        for row, column in zip(rows[:1000], columns[:1000], strict=True)
    ]
    if problems:
        raise UserError(shorten(problems))
    return Targets(values, tuple(map(str, table.columns)))


DECODERS: dict[str, Callable[[pd.DataFrame, np.ndarray], Targets]] = {
    "multiclass": decode_multiclass,
    "binary": decode_binary,
    "multilabel": decode_multilabel,
    "regression": decode_regression,
}


def read_classes(column: pd.Series, ids: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """The distinct texts of a column, sorted, and their positions (N,). Refuses blanks and near twins."""
    codes, found = pd.factorize(column)
    first_row = {str(name): int(row) for name, row in zip(found, np.unique(codes, return_index=True)[1], strict=True)}
    blank = np.flatnonzero(column.str.strip() == "")
    problems = shorten([f"{column.name}: id '{ids[row]}' has no label: fill it in or delete the row" for row in blank])
    problems += near_twins(str(column.name), first_row, ids)
    if problems:
        raise UserError(problems)
    classes = sort_classes(list(first_row))
    position = {name: place for place, name in enumerate(classes)}
    return classes, np.array([position[str(name)] for name in found], dtype=np.int64)[codes]


def near_twins(column: str, first_row: dict[str, int], ids: np.ndarray) -> list[str]:
    """Labels that differ only by case or spaces are typing slips."""
    twins: dict[str, list[str]] = {}
    for name in first_row:
        twins.setdefault(" ".join(name.casefold().split()), []).append(name)
    problems = []
    for key, names in twins.items():
        if key and len(names) > 1:
            listed = " and ".join(f"'{name}' (id '{ids[first_row[name]]}')" for name in names)
            problems.append(f"{column}: labels {listed} differ only by case or spaces: write them alike")
    return shorten(problems)


def sort_classes(names: Sequence[str]) -> tuple[str, ...]:
    if all(re.fullmatch(r"[+-]?[0-9]+", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
