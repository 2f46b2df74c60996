"""Pseudo-labels: which test rows are sure enough to train on, and with which targets.

The recipe is Lee, "Pseudo-Label" (2013), with the winners' additions: a share of each class instead of a threshold, a
limit per class, soft targets. Arrays in, arrays out; where the predictions may come from is pseudo_files.py's business.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kfold.config import Task
from kfold.data.assign import hash_order
from kfold.errors import UserError
from kfold.metrics import decide

NUM_BINS = 10  # regression: the "classes" that top_share and per_class look at are deciles of the predicted values


@dataclass(frozen=True)
class PseudoRows:
    """Labelled test rows.

    ids: (P,) text; targets: (P, C) float32; weights: (P, C) float32 of each target in the loss, 0: not taken;
    confidence: (P,) float32, 0..1, the mean over a row's taken cells.
    """

    ids: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    confidence: np.ndarray


def label_rows(
    ids: np.ndarray,
    predictions: np.ndarray,
    task: Task,
    target_spread: np.ndarray,
    threshold: float,
    top_share: float = 0.0,
    per_class: int = 0,
    kind: str = "hard",
) -> PseudoRows:
    """The rows with at least one taken cell, sorted by id, labelled with the teachers' mean.

    ids: (N,); predictions: (T, N, C) of T teachers; target_spread: (C,) standard deviation of the training targets,
    which only regression reads; the rest as in `confidence`, `select` and `make_targets`.
    """
    mean = predictions.mean(axis=0, dtype=np.float64).astype(np.float32)
    sure = confidence(predictions, task, target_spread)
    weights = select(ids, mean, sure, task, threshold, top_share, per_class)
    targets = make_targets(mean, task, kind)
    taken = np.flatnonzero(weights.any(axis=1))
    taken = taken[np.argsort(ids[taken])]
    weights = weights[taken]
    row_confidence = (sure[taken] * weights).sum(axis=1, dtype=np.float64) / weights.sum(axis=1)
    return PseudoRows(ids[taken], targets[taken], weights, row_confidence.astype(np.float32))


def confidence(predictions: np.ndarray, task: Task, target_spread: np.ndarray) -> np.ndarray:
    """How sure the mean of T teachers is, (N, C) float32, 0..1.

    predictions: (T, N, C). multiclass: the row's largest probability, in every column. binary, multilabel: max(p, 1-p).
    regression: 1 minus the standard deviation over the teachers, in units of target_spread (C,), at least 0. Raises
    UserError for regression with one teacher, which has no spread.
    """
    if task == "regression":
        if len(predictions) < 2:
            raise UserError(
                "regression: one teacher cannot say how sure it is: name two runs (two backbones, or two seeds), "
                "for example --run baseline baseline-seed2"
            )
        spread = predictions.std(axis=0, dtype=np.float64)
        sure = 1 - spread / np.maximum(target_spread, np.finfo(np.float32).tiny)
        return np.clip(sure, 0, 1).astype(np.float32)
    mean = predictions.mean(axis=0, dtype=np.float64)
    if task == "multiclass":
        sure = np.broadcast_to(mean.max(axis=1, keepdims=True), mean.shape)
    else:
        sure = np.maximum(mean, 1 - mean)
    return sure.astype(np.float32)


def select(
    ids: np.ndarray,
    mean: np.ndarray,
    sure: np.ndarray,
    task: Task,
    threshold: float,
    top_share: float = 0.0,
    per_class: int = 0,
) -> np.ndarray:
    """Weights (N, C) float32 of the cells: 1 taken, 0 not.

    ids: (N,); mean, sure: (N, C) predictions and their confidence. A cell is taken when it is at least `threshold`
    sure; with `top_share` above 0 instead when it is in that share of the surest of its class, at least one row of
    each. `per_class` above 0 then keeps that many of a class, the surest. Equally sure rows stand in an order that
    depends on their ids alone: many networks are exactly 1.0 sure of many rows. For the classes see `classes_of_cells`.
    """
    rank_of_id = np.empty(len(ids), np.int64)
    rank_of_id[hash_order(ids, seed=0)] = np.arange(len(ids))
    classes = classes_of_cells(mean, task)
    columns = range(1 if task == "multiclass" else mean.shape[1])  # multiclass: the same in every column
    taken = np.zeros(mean.shape, bool)
    for column in columns:
        for number in np.unique(classes[:, column]):
            rows = np.flatnonzero(classes[:, column] == number)
            rows = rows[np.lexsort((rank_of_id[rows], -sure[rows, column]))]
            count = max(1, round(top_share * len(rows))) if top_share else (sure[rows, column] >= threshold).sum()
            rows = rows[:count]  # the surest stand first
            taken[rows[: per_class or None], column] = True
    if task == "multiclass":
        taken[:] = taken[:, :1]
    return taken.astype(np.float32)


def classes_of_cells(mean: np.ndarray, task: Task) -> np.ndarray:
    """The class that each cell counts for, (N, C) int: what `top_share` and `per_class` are shares and limits of.

    multiclass: the likeliest class; binary, multilabel: the side, 0 or 1; regression: the decile of the predicted value
    within the column, because teachers agree most in the middle of the range and the surest rows alone would shrink it.
    """
    if task == "multiclass":
        return np.broadcast_to(decide(task, mean)[:, None], mean.shape)
    if task != "regression":
        return decide("multilabel", mean)
    shares = np.arange(1, NUM_BINS) / NUM_BINS
    edges = np.quantile(mean, shares, axis=0)
    return np.column_stack([np.searchsorted(edges[:, c], mean[:, c], side="right") for c in range(mean.shape[1])])


def make_targets(mean: np.ndarray, task: Task, kind: str) -> np.ndarray:
    """Targets (N, C) float32 from the teachers' mean: the likeliest class, or 0/1 a cell ("hard"), or it ("soft").

    Regression: the mean either way.
    """
    if kind == "soft" or task == "regression":
        return mean.astype(np.float32)
    labels = np.eye(mean.shape[1])[decide(task, mean)] if task == "multiclass" else decide("multilabel", mean)
    return labels.astype(np.float32)


def rows_per_class(rows: PseudoRows, task: Task, names: Sequence[str]) -> dict[str, int]:
    """Taken rows of each class: `name` for multiclass, `name=1` and `name=0` a label, a column for regression."""
    taken = rows.weights > 0
    if task == "multiclass":
        counts = np.bincount(decide(task, rows.targets), minlength=len(names))
        return dict(zip(names, counts.tolist(), strict=True))
    if task == "regression":
        return dict(zip(names, taken.sum(axis=0).tolist(), strict=True))
    sides = decide("multilabel", rows.targets)
    return {
        f"{name}={side}": int((taken[:, column] & (sides[:, column] == side)).sum())
        for column, name in enumerate(names)
        for side in (1, 0)
    }
