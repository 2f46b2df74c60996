"""Target columns, from text to numbers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kfold.config import Competition
from kfold.data.labels import read_classes, refuse_separators
from kfold.errors import UserError, list_problems
from kfold.numbers import NUMBER, number_remedy


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
    (blank: none). Raises UserError that lists every problem and names file, column and id.
    """
    columns = list(facts.target_columns)
    try:
        return DECODERS[facts.task](table[columns], np.array(table[facts.id_column], dtype=object))
    except UserError as error:
        raise error.at(facts.train_csv) from None


def decode_multiclass(table: pd.DataFrame, ids: np.ndarray) -> Targets:
    classes, codes = read_classes(table.iloc[:, 0], ids)
    if len(classes) < 2:
        raise UserError(
            f"{table.columns[0]}: all rows are of class '{classes[0]}', there is nothing to tell apart: "
            f"set target_columns in competition.yaml"
        )
    values = np.zeros((len(codes), len(classes)), np.float32)
    values[np.arange(len(codes)), codes] = 1
    return Targets(values, classes, classes)


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
    refuse_cells(table, ids, ~(is_one | is_zero), "is neither 0 nor 1")
    return Targets(is_one.astype(np.float32), tuple(map(str, table.columns)))


def refuse_cells(table: pd.DataFrame, ids: np.ndarray, wrong: np.ndarray, what: str) -> None:
    """Raise UserError where a cell is wrong; (N, C) bool. A comma inside a number is said to be one."""

    def describe(place: np.ndarray) -> str:
        cell = table.iat[place[0], place[1]]
        return f"{table.columns[place[1]]}: id '{ids[place[0]]}': '{cell}' {what}: {number_remedy(cell)}"

    if wrong.any():
        raise UserError(list_problems(np.argwhere(wrong), describe))


def decode_label_lists(cells: pd.Series, ids: np.ndarray) -> Targets:
    has_bars = cells.str.contains("|", regex=False).any()
    split = [[part.strip() for part in cell.split("|")] if has_bars else cell.split() for cell in cells]
    row_of = np.repeat(np.arange(len(cells)), [len(parts) for parts in split])
    parts = np.array([part for parts in split for part in parts], dtype=object)
    filled = parts != ""  # a blank cell is a row without labels
    row_of, parts = row_of[filled], pd.Series(parts[filled], name=cells.name, dtype=str)
    if not len(parts):
        raise UserError(f"{cells.name}: no row has a label: fill them in, or set target_columns in competition.yaml")
    labels, codes = read_classes(parts, ids[row_of])
    refuse_separators(cells, ids, set(labels))
    values = np.zeros((len(cells), len(labels)), np.float32)
    values[row_of, codes] = 1
    return Targets(values, labels)


def decode_regression(table: pd.DataFrame, ids: np.ndarray) -> Targets:
    with np.errstate(over="ignore"):
        values = np.column_stack([read_numbers(table[name]).astype(np.float32) for name in table])
    refuse_cells(table, ids, ~np.isfinite(values), "is not a finite number")
    return Targets(values, tuple(map(str, table.columns)))


def read_numbers(column: pd.Series) -> np.ndarray:
    """The numbers of a column of text, (N,) float64; NaN where a cell holds anything else (also `nan`, `inf`)."""
    column = column.str.strip()
    return pd.to_numeric(column.where(column.str.fullmatch(NUMBER)), errors="coerce").to_numpy(np.float64)


DECODERS: dict[str, Callable[[pd.DataFrame, np.ndarray], Targets]] = {
    "multiclass": decode_multiclass,
    "binary": decode_binary,
    "multilabel": decode_multilabel,
    "regression": decode_regression,
}
