"""Thresholds per label, cuts between grades, a temperature: each fitted for one metric, each a function of predictions.

To add one: its fit, its apply, a line in TUNERS, a test.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field, model_validator
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit, softmax

from kfold.config import Task
from kfold.metrics import THRESHOLD, Metric, decide
from kfold.settings import Settings

NUM_CANDIDATES = 24  # values that are tried for one threshold or cut
NUM_PASSES = 4  # over all thresholds or cuts, at most
BELOW_THRESHOLD = np.nextafter(np.float32(THRESHOLD), np.float32(0))
LOG_TEMPERATURE = 3.0  # greatest size: T from 0.05 to 20


class Tuning(Settings):
    """The fitted numbers; those of another kind keep their default.

    thresholds: (C,), one a label. cuts: of each value column, or of the classes as grades, ascending; a row's grade is
    the number of cuts at or below its value, plus the lowest grade. temperature: above 1 makes probabilities less sure.
    """

    kind: Literal["none", "thresholds", "cuts", "temperature"] = "none"
    thresholds: tuple[float, ...] = ()
    cuts: tuple[tuple[float, ...], ...] = ()
    lowest_grades: tuple[int, ...] = ()
    temperature: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def check_numbers(self) -> "Tuning":
        if not all(0 < threshold < 1 for threshold in self.thresholds):
            raise ValueError("thresholds must lie between 0 and 1")
        if any(list(row) != sorted(row) for row in self.cuts) or len(self.cuts) != len(self.lowest_grades):
            raise ValueError("cuts must ascend, and each row of them needs its lowest grade")
        return self


# How predictions are changed


def apply_thresholds(task: Task, tuning: Tuning, predictions: np.ndarray) -> np.ndarray:
    """Probabilities (N, C) with each label's threshold moved to 0.5, piecewise linearly: 0, 1 and the ranking stay."""
    thresholds, values = np.array(tuning.thresholds), predictions.astype(np.float64)
    above = THRESHOLD + (1 - THRESHOLD) * (values - thresholds) / (1 - thresholds)
    below = (THRESHOLD * values / thresholds).astype(np.float32)
    return np.where(values >= thresholds, above.astype(np.float32), np.minimum(below, BELOW_THRESHOLD))


def apply_cuts(task: Task, tuning: Tuning, predictions: np.ndarray) -> np.ndarray:
    """Grades of values (N, C); for classes, probabilities (N, C) that are 1 for the grade and 0 elsewhere."""
    columns = graded_values(task, predictions)
    rows = zip(columns.T, tuning.cuts, tuning.lowest_grades, strict=True)
    grades = np.column_stack([lowest + np.searchsorted(cuts, column, side="right") for column, cuts, lowest in rows])
    if task == "regression":
        return grades.astype(np.float32)
    return np.eye(predictions.shape[1], dtype=np.float32)[grades[:, 0]]


def graded_values(task: Task, predictions: np.ndarray) -> np.ndarray:
    """What the cuts cut: values as they are, (N, C), or the expected grade of class probabilities, (N, 1)."""
    values = predictions.astype(np.float64)
    if task == "regression":
        return values
    return (values @ np.arange(values.shape[1]) / values.sum(axis=1))[:, None]


def apply_temperature(task: Task, tuning: Tuning, predictions: np.ndarray) -> np.ndarray:
    """Probabilities p^(1/T), scaled to sum 1 (a row for multiclass, p and 1 - p else); argmax and ranking stay.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2: https://arxiv.org/abs/1706.04599
    """
    smallest = np.finfo(np.float64).eps  # as the metric clips them
    probabilities = np.clip(predictions.astype(np.float64), smallest, 1 - smallest)
    if task == "multiclass":
        return softmax(np.log(probabilities) / tuning.temperature, axis=1).astype(np.float32)
    return expit(logit(probabilities) / tuning.temperature).astype(np.float32)


# How the numbers are found


def fit_thresholds(task: Task, metric: Metric, predictions: np.ndarray, targets: np.ndarray) -> Tuning:
    """The threshold of each label that the metric likes best; ties go to the one nearest to 0.5.

    Candidates are quantiles of the positive rows' probabilities: for a rare label, those of all rows say little.
    """
    num_labels = targets.shape[1]
    candidates = [threshold_candidates(predictions[targets[:, c] > THRESHOLD, c]) for c in range(num_labels)]

    def score(columns: Sequence[int], thresholds: np.ndarray) -> float:
        tuning = Tuning(kind="thresholds", thresholds=tuple(thresholds.tolist()))
        return metric.function(targets[:, columns], apply_thresholds(task, tuning, predictions[:, columns]))

    if (task, metric.name) == ("multilabel", "macro_f1"):
        # A term a label, so one label at a time; its column twice, or scikit-learn would count its zeros as a class.
        found = [
            coordinate_search(
                lambda one, c=c: score([c, c], np.repeat(one, 2)),
                metric,
                np.full(1, THRESHOLD),
                lambda values, place, c=c: candidates[c],
            )
            for c in range(num_labels)
        ]
        best = np.concatenate(found)
    else:
        best = coordinate_search(
            lambda thresholds: score(range(num_labels), thresholds),
            metric,
            np.full(num_labels, THRESHOLD),
            lambda values, place: candidates[place],
        )
    return Tuning(kind="thresholds", thresholds=tuple(best.tolist()))


def threshold_candidates(of_positives: np.ndarray) -> np.ndarray:
    """Thresholds that let through a share of the positives each; nearest to 0.5 first."""
    if not len(of_positives):
        return np.empty(0)
    quantiles = np.quantile(of_positives.astype(np.float64), np.linspace(0, 1, NUM_CANDIDATES), method="lower")
    quantiles = np.unique(np.clip(quantiles, 1e-6, 1 - 1e-6))
    return quantiles[np.argsort(np.abs(quantiles - THRESHOLD), kind="stable")]


def fit_cuts(task: Task, metric: Metric, predictions: np.ndarray, targets: np.ndarray) -> Tuning:
    """Cuts between the grades seen in the targets: from midpoints, moved one at a time while the metric gains."""
    values = graded_values(task, predictions)
    truth = np.rint(targets) if task == "regression" else decide(task, targets)[:, None]
    lowest = truth.min(axis=0).astype(int).tolist()
    sizes = (truth.max(axis=0).astype(int) - lowest).tolist()
    start = np.concatenate([low + 0.5 + np.arange(size) for low, size in zip(lowest, sizes, strict=True)])
    ends = np.cumsum(sizes)

    def tuning_of(cuts: np.ndarray) -> Tuning:
        rows = tuple(tuple(row.tolist()) for row in np.split(cuts, ends[:-1]))
        return Tuning(kind="cuts", cuts=rows, lowest_grades=tuple(lowest))

    def candidates(cuts: np.ndarray, place: int) -> np.ndarray:
        column = int(np.searchsorted(ends, place, side="right"))
        first, last = ends[column] - sizes[column], ends[column] - 1
        low = cuts[place - 1] if place > first else -np.inf
        high = cuts[place + 1] if place < last else np.inf
        between = values[(values[:, column] > low) & (values[:, column] < high), column]
        return np.unique(np.quantile(between, np.linspace(0, 1, NUM_CANDIDATES))) if len(between) else between

    def score(cuts: np.ndarray) -> float:
        return metric.function(targets, apply_cuts(task, tuning_of(cuts), predictions))

    return tuning_of(coordinate_search(score, metric, start, candidates))


def coordinate_search(
    score: Callable[[np.ndarray], float],
    metric: Metric,
    start: np.ndarray,
    candidates: Callable[[np.ndarray, int], np.ndarray],
) -> np.ndarray:
    """Numbers (D,) with a better score than `start`: one at a time is moved, until a pass over all gains nothing."""
    values, best = start.astype(np.float64), score(start)
    for _ in range(NUM_PASSES):
        before = values
        for place in range(len(values)):
            for candidate in candidates(values, place):
                trial = np.concatenate([values[:place], [candidate], values[place + 1 :]])
                if metric.better(found := score(trial), best):
                    values, best = trial, found
        if values is before:
            break
    return values


def fit_temperature(task: Task, metric: Metric, predictions: np.ndarray, targets: np.ndarray) -> Tuning:
    """The temperature with the best score, between e^-3 and e^3."""
    sign = -1 if metric.greater_is_better else 1

    def loss(log_temperature: float) -> float:
        tuning = Tuning(kind="temperature", temperature=float(np.exp(log_temperature)))
        return sign * metric.function(targets, apply_temperature(task, tuning, predictions))

    found = minimize_scalar(loss, bounds=(-LOG_TEMPERATURE, LOG_TEMPERATURE), method="bounded")
    return Tuning(kind="temperature", temperature=float(np.exp(found.x)))


# The choice


@dataclass(frozen=True)
class Tuner:
    """suits: whether it helps a metric of a task. fit: (task, metric, predictions (N, C), targets (N, C)) -> Tuning.
    apply: (task, tuning, predictions (N, C)) -> (N, C)."""

    suits: Callable[[Task, Metric], bool]
    fit: Callable[[Task, Metric, np.ndarray, np.ndarray], Tuning]
    apply: Callable[[Task, Tuning, np.ndarray], np.ndarray]


def suits_cuts(task: Task, metric: Metric) -> bool:
    return metric.takes == "labels" and (
        task == "regression" or (task, metric.name) == ("multiclass", "quadratic_kappa")
    )


TUNERS: dict[str, Tuner] = {
    "thresholds": Tuner(
        lambda task, metric: metric.takes == "labels" and task in ("binary", "multilabel"),
        fit_thresholds,
        apply_thresholds,
    ),
    "cuts": Tuner(suits_cuts, fit_cuts, apply_cuts),
    "temperature": Tuner(lambda task, metric: metric.name == "log_loss", fit_temperature, apply_temperature),
}
