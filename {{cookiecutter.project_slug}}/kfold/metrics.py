"""Scores on whole out-of-fold arrays, through scikit-learn. Their noise is in intervals.py.

To add one: a function (task, targets, predictions) -> float, a line in METRICS, a test. A metric that only one
competition needs goes into competition.py instead.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
from sklearn import metrics as sk

from kfold.config import Task
from kfold.errors import UserError

Takes = Literal["labels", "probabilities", "values"]
TASKS: tuple[Task, ...] = ("multiclass", "binary", "multilabel", "regression")
CLASSES: tuple[Task, ...] = ("multiclass", "binary")
CLASSIFICATION: tuple[Task, ...] = ("multiclass", "binary", "multilabel")
REGRESSION: tuple[Task, ...] = ("regression",)
USUAL = {"multiclass": "accuracy", "binary": "roc_auc", "multilabel": "roc_auc", "regression": "rmse"}
THRESHOLD = 0.5  # binary and multilabel: a label is a probability of at least this


@dataclass(frozen=True)
class Metric:
    """A score of a task.

    function: (targets (N, C), predictions (N, C)) -> float, NaN where it is undefined (a class absent for an AUC).
    Targets are one-hot for multiclass; predictions are always probabilities (values for regression), and a metric of
    labels decides them itself. takes: what a submission must hold for it.
    """

    name: str
    function: Callable[[np.ndarray, np.ndarray], float]
    greater_is_better: bool
    takes: Takes

    def better(self, score: float, than: float) -> bool:
        """Whether one score beats another; any score beats NaN."""
        if np.isnan(than):
            return not np.isnan(score)
        return bool(score > than if self.greater_is_better else score < than)


# Labels


def decide(task: Task, values: np.ndarray) -> np.ndarray:
    """Labels of probabilities (or of targets) (N, C): class numbers (N,) for multiclass, 0/1 (N,) for binary and
    0/1 (N, C) for multilabel."""
    if task == "multiclass":
        return values.argmax(axis=1)
    labels = (values >= THRESHOLD).astype(np.int64)
    return labels[:, 0] if task == "binary" else labels


def on_labels(score: Callable[..., float], **options: object) -> Callable[..., float]:
    """A score of scikit-learn on decided labels."""
    return lambda task, targets, predictions: float(score(decide(task, targets), decide(task, predictions), **options))


def balanced_accuracy(task: Task, targets: np.ndarray, predictions: np.ndarray) -> float:
    """Mean recall of the classes that occur (sk.balanced_accuracy_score, without its warning in resamples)."""
    truth = decide(task, targets)
    labels = decide(task, predictions)
    return float(sk.recall_score(truth, labels, labels=np.unique(truth), average="macro", zero_division=0))


def f_beta_micro(task: Task, targets: np.ndarray, predictions: np.ndarray) -> float:
    """F-beta with beta = 2 (recall weighs four times precision), over all cells together."""
    return float(
        sk.fbeta_score(decide(task, targets), decide(task, predictions), beta=2, average="micro", zero_division=0)
    )


def quadratic_kappa(task: Task, targets: np.ndarray, predictions: np.ndarray) -> float:
    """Cohen's kappa with quadratic weights; classes are grades in the order of the columns.

    Regression: values are rounded, and clipped to the range of grades seen in the targets; mean over columns.
    """
    if task != "regression":
        grades = np.arange(max(targets.shape[1], 2))
        return kappa_of_grades(decide(task, targets), decide(task, predictions), grades)
    scores = []
    for truth, values in zip(np.rint(targets).T, np.rint(predictions).T, strict=True):
        grades = np.arange(int(truth.min()), int(truth.max()) + 1)
        scores.append(kappa_of_grades(truth.astype(int), np.clip(values, grades[0], grades[-1]).astype(int), grades))
    return float(np.mean(scores))


def kappa_of_grades(truth: np.ndarray, labels: np.ndarray, grades: np.ndarray) -> float:
    if truth.min() == truth.max():
        return float("nan")  # 0 / 0 where all are right
    return float(sk.cohen_kappa_score(truth, labels, labels=grades, weights="quadratic"))


# Probabilities


def log_loss(task: Task, targets: np.ndarray, predictions: np.ndarray) -> float:
    """Cross entropy; multiclass rows are scaled to sum 1, multilabel is the mean over all cells."""
    smallest = np.finfo(np.float64).eps
    probabilities = np.clip(predictions.astype(np.float64), smallest, 1 - smallest)
    if task == "multiclass":
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        return float(sk.log_loss(targets.argmax(axis=1), probabilities, labels=np.arange(targets.shape[1])))
    return float(sk.log_loss(targets.ravel(), probabilities.ravel(), labels=[0, 1]))


def roc_auc(task: Task, targets: np.ndarray, predictions: np.ndarray) -> float:
    """Mean over columns: one-vs-rest for multiclass. NaN when a column has one class only."""
    if (targets.min(axis=0) == targets.max(axis=0)).any():
        return float("nan")
    return float(sk.roc_auc_score(targets, predictions, average="macro"))


def average_precision(task: Task, targets: np.ndarray, predictions: np.ndarray) -> float:
    """Mean over columns of the area under precision-recall steps. NaN when a column has no positive."""
    if not targets.any(axis=0).all():
        return float("nan")
    return float(sk.average_precision_score(targets, predictions, average="macro"))


def map_at_5(task: Task, targets: np.ndarray, predictions: np.ndarray) -> float:
    """Mean of 1 / rank of the true class among the five most probable, 0 below; ties go to the earlier column."""
    best_first = np.argsort(-predictions, axis=1, kind="stable")[:, :5]
    hits = best_first == targets.argmax(axis=1)[:, None]  # (N, 5), at most one a row
    return float((hits / np.arange(1, hits.shape[1] + 1)).sum(axis=1).mean())


# Values


def on_values(score: Callable[..., float]) -> Callable[..., float]:
    """A score of scikit-learn, the mean over columns where there are several."""
    return lambda task, targets, predictions: float(score(targets.astype(np.float64), predictions.astype(np.float64)))


def r2(task: Task, targets: np.ndarray, predictions: np.ndarray) -> float:
    """Share of the targets' variance that is explained, mean over columns. NaN when a column is constant."""
    if (targets.min(axis=0) == targets.max(axis=0)).any():
        return float("nan")
    return float(sk.r2_score(targets.astype(np.float64), predictions.astype(np.float64)))


def spearman(task: Task, targets: np.ndarray, predictions: np.ndarray) -> float:
    """Rank correlation, ties at their mean rank; mean over columns. NaN when a column is constant."""
    true_ranks, ranks = pd.DataFrame(targets).rank(), pd.DataFrame(predictions).rank()
    if (true_ranks.nunique() < 2).any() or (ranks.nunique() < 2).any():
        return float("nan")
    return float(np.mean([np.corrcoef(true_ranks[column], ranks[column])[0, 1] for column in ranks]))


# The choice


@dataclass(frozen=True)
class Choice:
    """A line of METRICS; function takes the task first. multilabel accuracy: all labels of a row right."""

    function: Callable[[Task, np.ndarray, np.ndarray], float]
    greater_is_better: bool
    takes: Takes
    tasks: tuple[Task, ...]


METRICS: dict[str, Choice] = {
    "accuracy": Choice(on_labels(sk.accuracy_score), True, "labels", CLASSIFICATION),
    "balanced_accuracy": Choice(balanced_accuracy, True, "labels", CLASSES),
    "log_loss": Choice(log_loss, False, "probabilities", CLASSIFICATION),
    "macro_f1": Choice(on_labels(sk.f1_score, average="macro", zero_division=0), True, "labels", CLASSIFICATION),
    "roc_auc": Choice(roc_auc, True, "probabilities", CLASSIFICATION),
    "average_precision": Choice(average_precision, True, "probabilities", CLASSIFICATION),
    "quadratic_kappa": Choice(quadratic_kappa, True, "labels", (*CLASSES, *REGRESSION)),
    "mcc": Choice(on_labels(sk.matthews_corrcoef), True, "labels", CLASSES),
    "map_at_5": Choice(map_at_5, True, "probabilities", ("multiclass",)),
    # A row without labels that is predicted without labels counts as right (1).
    "f1_samples": Choice(on_labels(sk.f1_score, average="samples", zero_division=1), True, "labels", ("multilabel",)),
    "f_beta_micro": Choice(f_beta_micro, True, "labels", ("multilabel",)),
    "rmse": Choice(on_values(sk.root_mean_squared_error), False, "values", REGRESSION),
    "mae": Choice(on_values(sk.mean_absolute_error), False, "values", REGRESSION),
    "r2": Choice(r2, True, "values", REGRESSION),
    "spearman": Choice(spearman, True, "values", REGRESSION),
}


def resolve_metric(name: str, task: Task) -> Metric:
    """The metric of a name; "auto" is the task's usual one. Raises UserError when it does not fit the task."""
    chosen = USUAL[task] if name == "auto" else name
    fitting = ", ".join(key for key, choice in METRICS.items() if task in choice.tasks)
    if chosen not in METRICS:
        raise UserError(f"competition.yaml: metric '{name}' is unknown: for {task} there are {fitting}")
    choice = METRICS[chosen]
    if task not in choice.tasks:
        raise UserError(f"competition.yaml: metric {name} does not fit task {task}: use one of {fitting}")
    return Metric(chosen, partial(choice.function, task), choice.greater_is_better, choice.takes)
