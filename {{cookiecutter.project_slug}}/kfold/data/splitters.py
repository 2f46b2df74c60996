"""Fold schemes: which fold each row goes to, so that folds are alike and no unit is cut.

A unit is what must stay together: rows that a group or a copy of an image connects. Rows come in the order of a hash.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kfold.data.deal import MAX_EVENED, chi_square_weights, deal, even_out
from kfold.errors import UserError, list_problems

MAX_BINS = 20  # of a regression target


class Rows(NamedTuple):
    """What schemes look at."""

    values: np.ndarray  # (N, C) targets, one-hot for multiclass
    names: tuple[str, ...]  # of the C columns, or of both classes where C = 1
    units: np.ndarray  # (N,) int64, from 0, numbered by first appearance
    time: np.ndarray  # (N,) int64 rank; zeros without a time column
    seed: int


def stratified(rows: Rows, num_folds: int) -> np.ndarray:
    """Class shares alike. Raises UserError for a class with fewer units than folds."""
    classes = rows.values.argmax(axis=1) if rows.values.shape[1] > 1 else rows.values[:, 0].astype(np.int64)
    refuse_rare(classes, rows, num_folds)
    return deal(classes, rows.units, num_folds)


def refuse_rare(classes: np.ndarray, rows: Rows, num_folds: int) -> None:
    num_classes = classes.max() + 1
    num_units = np.bincount(np.unique(rows.units * num_classes + classes) % num_classes)
    what = "rows" if len(rows.units) == rows.units.max() + 1 else "groups of rows that belong together"
    rare = np.flatnonzero((num_units > 0) & (num_units < num_folds))
    if len(rare):
        raise UserError(
            list_problems(
                rare,
                lambda position: (
                    f"class '{rows.names[position]}' has {num_units[position]} {what}, "
                    f"fewer than num_folds = {num_folds}: lower num_folds, add rows, or join it with another class in "
                    f"competition.py"
                ),
            )
        )


def sizes_only(rows: Rows, num_folds: int) -> np.ndarray:
    """Numbers of rows alike, whatever the targets."""
    return deal(np.zeros(len(rows.units), np.int64), rows.units, num_folds)


def binned(rows: Rows, num_folds: int) -> np.ndarray:
    """Distributions of a regression target alike: stratified by quantile bins (several targets: of their mean rank)."""
    ranks = sum(rank(column) for column in rows.values.T)
    num_bins = max(1, min(MAX_BINS, len(ranks) // (2 * num_folds)))
    return deal(rank(ranks) * num_bins // len(ranks), rows.units, num_folds)


def rank(values: np.ndarray) -> np.ndarray:
    """How many values are smaller, (N,) int64."""
    return np.searchsorted(np.sort(values), values).astype(np.int64)


def multilabel(rows: Rows, num_folds: int) -> np.ndarray:
    """Shares of every label alike, by iterative stratification of units (a unit has the labels of all its rows).

    Source: K. Sechidis et al., "On the Stratification of Multi-Label Data", ECML PKDD 2011.
    """
    if rows.values.shape[1] == 1:
        return deal(rows.values[:, 0].astype(np.int64), rows.units, num_folds)
    try:
        from iterstrat.ml_stratifiers import MultilabelStratifiedKFold
    except ImportError:
        raise UserError(
            "fold scheme multilabel needs a package: pip install iterative-stratification (only to make folds)"
        ) from None
    labels = np.zeros((rows.units.max() + 1, rows.values.shape[1]), bool)
    np.logical_or.at(labels, rows.units, rows.values > 0)
    splitter = MultilabelStratifiedKFold(num_folds, shuffle=True, random_state=rows.seed % 2**32)
    fold_of_unit = np.zeros(len(labels), np.int64)
    for fold, (_, members) in enumerate(splitter.split(labels, labels)):
        fold_of_unit[members] = fold
    if len(labels) == len(rows.units) or labels.size > MAX_EVENED:
        return fold_of_unit[rows.units]
    # Iterative stratification takes units for equally large; mend what that spoils.
    vectors = np.zeros((len(labels), labels.shape[1] + 1), np.int64)
    np.add.at(vectors, rows.units, np.column_stack([rows.values > 0, np.ones(len(rows.units), bool)]))
    return even_out(vectors, fold_of_unit, num_folds, chi_square_weights(vectors.sum(axis=0)))[rows.units]


def time_blocks(rows: Rows, num_folds: int) -> np.ndarray:
    """Contiguous blocks in the order of time, as many rows each as whole units allow; a unit counts from its start."""
    starts = np.full(rows.units.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(starts, rows.units, rows.time)
    sizes = np.bincount(rows.units)
    order = np.argsort(starts, kind="stable")
    before = np.cumsum(sizes[order]) - sizes[order]
    fold_of_unit = np.zeros(len(sizes), np.int64)
    fold_of_unit[order] = before * num_folds // len(rows.units)
    return fold_of_unit[rows.units]


SCHEMES: dict[str, Callable[[Rows, int], np.ndarray]] = {
    "stratified": stratified,
    "group": sizes_only,
    "stratified_group": stratified,
    "multilabel": multilabel,
    "binned": binned,
    "time": time_blocks,
    "random": sizes_only,
}
