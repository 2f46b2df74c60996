"""Scores of parts of the rows: of each class or label, and of each group."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kfold.intervals import bootstrap_interval, percentiles, resamples
from kfold.metrics import THRESHOLD, Metric
from kfold.report.parts import Section, Table
from kfold.report.scores import show, show_interval

FEW_ROWS = 20  # a share of so few is only good to about 0.2
MOST_CLASSES = 200  # in the table
MOST_GROUPS = 15
INTERVALS = "Intervals: 95%, from a bootstrap"
FEW = f"few: under {FEW_ROWS} rows, the score says little."


def class_section(
    task: str, targets: np.ndarray, predictions: np.ndarray, names: Sequence[str], groups: np.ndarray | None = None
) -> Section:
    """Precision, recall and F1 of each class or label, the worst F1 first. targets, predictions: (N, C) of multiclass,
    binary or multilabel; names: of the C columns; groups: (N,) text, to draw whole ones for the intervals."""
    truth, decided = indicators(task, targets), indicators(task, predictions)
    cells = truth * decided, truth, decided
    found = [part.sum(axis=0, dtype=np.int64) for part in cells]
    scores = f1(*found)
    of_resamples = []
    for drawn in resamples(len(truth), groups, 0):
        times = np.bincount(drawn, minlength=len(truth)).astype(np.float32)  # that the resample has each row
        of_resamples.append(f1(*(times @ part for part in cells)))
    order = np.argsort(np.nan_to_num(scores, nan=np.inf), kind="stable")[:MOST_CLASSES]
    rows = []
    for column in order:
        right, true, called = (int(part[column]) for part in found)
        between = percentiles([float(resampled[column]) for resampled in of_resamples])
        few = "few" if true < FEW_ROWS else ""
        shares = share(right, called), share(right, true), show(scores[column])
        rows.append((names[column], str(true), *shares, show_interval(*between), few))
    left_out = f" The {len(order)} of {len(names)} with the lowest F1." if len(order) < len(names) else ""
    caption = f"{INTERVALS} of all {unit(groups)}. {FEW}{left_out}"
    header = ("class", "rows", "precision", "recall", "F1", "95% of F1", "")
    return Section("Scores of each class", [Table(header, rows, caption)])


def indicators(task: str, values: np.ndarray) -> np.ndarray:
    """(N, C) float32 of 0 and 1: the class or labels that probabilities, or targets, decide for."""
    if task == "multiclass":
        return np.eye(values.shape[1], dtype=np.float32)[values.argmax(axis=1)]
    return (values >= THRESHOLD).astype(np.float32)


def f1(right: np.ndarray, true: np.ndarray, called: np.ndarray) -> np.ndarray:
    """(C,), of the rows decided right, those of the class, and those decided for it; NaN for a class without any."""
    both = true + called
    return np.divide(2 * right, both, out=np.full(len(both), np.nan), where=both > 0)


def group_section(
    metric: Metric, targets: np.ndarray, predictions: np.ndarray, parts: np.ndarray, title: str
) -> Section:
    """The metric on the rows of each part, the worst first, those with few rows last.

    parts: (N,) text, such as groups or a column of train.csv; "" = none.
    """
    rows_of = pd.Series(range(len(parts))).groupby(parts).indices
    rows_of.pop("", None)
    scores = {name: metric.function(targets[rows], predictions[rows]) for name, rows in rows_of.items()}

    def place(name: str) -> tuple[bool, bool, float]:
        score = scores[name]
        worse = score if metric.greater_is_better else -score
        return len(rows_of[name]) < FEW_ROWS, bool(np.isnan(score)), 0.0 if np.isnan(score) else worse

    cells = []
    for name in sorted(scores, key=place)[:MOST_GROUPS]:
        rows = rows_of[name]
        between = bootstrap_interval(metric, targets[rows], predictions[rows])
        few = "few" if len(rows) < FEW_ROWS else ""
        cells.append((str(name), str(len(rows)), show(scores[name]), show_interval(*between), few))
    sizes = [len(rows) for rows in rows_of.values()]
    few = sum(size < FEW_ROWS for size in sizes)
    caption = f"{len(sizes)} in all, {few} of them with under {FEW_ROWS} rows. {INTERVALS} of the rows of each. {FEW}"
    if len(cells) < len(sizes):
        caption += f" The worst {len(cells)} are listed."
    return Section(title, [Table(("group", "rows", metric.name, "95%", ""), cells, caption)])


def target_section(
    metric: Metric, targets: np.ndarray, predictions: np.ndarray, names: Sequence[str], groups: np.ndarray | None = None
) -> Section:
    """The metric on each column alone, for regression with several targets, in their order."""
    cells = []
    for column, name in enumerate(names):
        one = targets[:, [column]], predictions[:, [column]]
        between = bootstrap_interval(metric, *one, groups)
        cells.append((name, show(metric.function(*one)), show_interval(*between)))
    caption = f"{INTERVALS} of all {unit(groups)}."
    return Section("Scores of each target", [Table(("target", metric.name, "95%"), cells, caption)])


def unit(groups: np.ndarray | None) -> str:
    return "rows" if groups is None else "groups"


def share(part: int, whole: int) -> str:
    return show(part / whole if whole else np.nan)
