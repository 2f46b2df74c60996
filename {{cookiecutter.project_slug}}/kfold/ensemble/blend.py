"""Blends: combinations of M runs' predictions with no numbers to fit, or with one weight a run.

Each is a `Fit` of second_level.py. `model` of what it gives is the weights (M,), or None where there are none.
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import rankdata

from kfold.config import Task
from kfold.ensemble.second_level import Fitted, Rows
from kfold.metrics import METRICS, Metric

SMALLEST = 1e-7  # probabilities are kept this far from 0 and 1 before a logarithm; float32 resolves 6e-8 below 1
MOST_STEPS = 50  # of hill climbing: weights are multiples of 1/50 at the finest

# Without anything to fit


def mean(rows: Rows, targets: np.ndarray, task: Task, metric: Metric) -> Fitted:
    weights = np.full(len(rows.predictions), 1 / len(rows.predictions))
    return Fitted(lambda rows: combine(rows.predictions, np.ones(len(weights))), "equal weights", weights)


def combine(predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted mean (N, C) float32 of predictions (M, N, C); weights (M,) of any sum above 0."""
    return (np.einsum("m,mnc->nc", weights, predictions) / weights.sum()).astype(np.float32)


def geometric_mean(rows: Rows, targets: np.ndarray, task: Task, metric: Metric) -> Fitted:
    """Mean of log probabilities, each row scaled to sum 1 (binary, multilabel: mean of logits)."""

    def predict(rows: Rows) -> np.ndarray:
        probabilities = np.clip(rows.predictions.astype(np.float64), SMALLEST, 1 - SMALLEST)
        if task != "multiclass":
            return expit(logit(probabilities).mean(axis=0)).astype(np.float32)
        return unit_rows(np.exp(np.log(probabilities).mean(axis=0)))

    return Fitted(predict, "no weights")


def rank_mean(rows: Rows, targets: np.ndarray, task: Task, metric: Metric) -> Fitted:
    """Mean over the runs of each row's rank within its fold and column, in (0, 1); equal values share their mean rank.

    Within the fold, because the models of different folds are not calibrated alike. It takes each fold, and the test
    set, to have the same mix of classes: fit for metrics of order such as AUC. Rows of multiclass are scaled to
    sum 1, as probabilities must.
    """

    def predict(rows: Rows) -> np.ndarray:
        ranks = np.zeros(rows.predictions.shape[1:])
        for number in np.unique(rows.fold):
            of_fold = rows.fold == number
            places = (rankdata(rows.predictions[:, of_fold], axis=1) - 0.5) / of_fold.sum()
            ranks[of_fold] = places.mean(axis=0)
        return unit_rows(ranks) if task == "multiclass" else ranks.astype(np.float32)

    return Fitted(predict, "no weights")


def unit_rows(values: np.ndarray) -> np.ndarray:
    """Values (N, C) above 0 -> float32, each row of sum 1."""
    return (values / values.sum(axis=1, keepdims=True)).astype(np.float32)


# Hill climbing: Caruana and others, Ensemble Selection from Libraries of Models, ICML 2004


def hill_climb(rows: Rows, targets: np.ndarray, task: Task, metric: Metric) -> Fitted:
    """Weights from adding runs one by one, the same one again if it helps, while the metric improves.

    It starts from the best single run, and on the rows that it is fitted to it is never worse. Ties go to the earlier
    run. Where the metric is undefined on these rows, the first run is taken alone.
    """
    score = candidate_scorer(rows.predictions, targets, task, metric)
    total = np.zeros(rows.predictions.shape[1:], np.float64)
    best, taken = float("nan"), []
    while len(taken) < MOST_STEPS:
        scores = score(total, len(taken))
        pick = best_of(scores, metric)
        if taken and not metric.better(scores[pick], best):
            break
        best = scores[pick]
        taken.append(pick)
        total += rows.predictions[pick]
    counts, alone = (np.bincount(picks, minlength=len(rows.predictions)) for picks in (taken, taken[:1]))
    single, blend = (metric.function(targets, combine(rows.predictions, weights)) for weights in (alone, counts))
    if metric.better(single, blend):  # a gain of 1e-16 to a fast scorer may be a loss to the metric
        counts = alone
    weights = counts / counts.sum()
    return Fitted(lambda rows: combine(rows.predictions, counts), weights_text(weights), weights)


def best_of(scores: np.ndarray, metric: Metric) -> int:
    """The first position of the best score."""
    best = 0
    for position, score in enumerate(scores):
        best = position if metric.better(score, scores[best]) else best
    return best


def candidate_scorer(
    predictions: np.ndarray, targets: np.ndarray, task: Task, metric: Metric
) -> Callable[[np.ndarray, int], np.ndarray]:
    """(sum (N, C) of the runs taken so far, their number) -> the score (M,) of each mean with one run more.

    Some metrics have forms here that give the same numbers faster than scikit-learn, which checks its arguments at
    each call. They serve our own metrics alone: one of competition.py may have the same name.
    """
    is_ours = metric.name in METRICS and getattr(metric.function, "func", None) is METRICS[metric.name].function
    make = FAST_SCORERS.get((task, metric.name)) if is_ours else None
    return (make or blend_scorer(metric.function))(predictions, targets)


def blend_scorer(score: Callable[[np.ndarray, np.ndarray], float]) -> Callable:
    """What makes a scorer that calls score(targets, blend) for each candidate."""

    def make(predictions: np.ndarray, targets: np.ndarray) -> Callable[[np.ndarray, int], np.ndarray]:
        def scorer(total: np.ndarray, count: int) -> np.ndarray:
            blends = (((total + one) / (count + 1)).astype(np.float32) for one in predictions)
            return np.array([score(targets, blend) for blend in blends])

        return scorer

    return make


def accuracy_scorer(predictions: np.ndarray, targets: np.ndarray) -> Callable[[np.ndarray, int], np.ndarray]:
    """Class by class, as (C, n) to compare along memory; the first of equal classes wins, as in argmax."""
    truth = targets.argmax(axis=1)
    of_class = [np.flatnonzero(truth == number) for number in range(targets.shape[1])]
    parts = [np.ascontiguousarray(predictions[:, rows].transpose(0, 2, 1)) for rows in of_class]

    def scorer(total: np.ndarray, count: int) -> np.ndarray:
        num_right = np.zeros(len(predictions), np.int64)
        for number, (rows, part) in enumerate(zip(of_class, parts, strict=True)):
            start = np.ascontiguousarray(total[rows].T)
            for run, one in enumerate(part):
                blend = ((start + one) / (count + 1)).astype(np.float32)
                before, after = blend[:number].max(axis=0, initial=-np.inf), blend[number:].max(axis=0)
                num_right[run] += np.count_nonzero((before < blend[number]) & (after == blend[number]))
        return num_right / len(truth)

    return scorer


def log_loss_scorer(predictions: np.ndarray, targets: np.ndarray) -> Callable[[np.ndarray, int], np.ndarray]:
    """Multiclass: only the true class's probability and the row's sum count, and both are linear in the blend."""
    smallest = np.finfo(np.float64).eps
    rows, truth = np.arange(len(targets)), targets.argmax(axis=1)
    true = likelihoods(predictions, targets, "multiclass")  # (M, N)
    sums = predictions.sum(axis=2, dtype=np.float64)
    smallest_sum = smallest * targets.shape[1]  # of a row of zeros, whose cells the metric clips

    def scorer(total: np.ndarray, count: int) -> np.ndarray:
        likely = np.clip((total[rows, truth] + true) / (count + 1), smallest, 1 - smallest)
        of_row = np.maximum((total.sum(axis=1) + sums) / (count + 1), smallest_sum)
        return -np.log(likely / of_row).mean(axis=1)

    return scorer


def cell_log_loss(targets: np.ndarray, blend: np.ndarray) -> float:
    """Binary, multilabel: of the blend as float32, for near 1 its rounding is what decides the loss of an error."""
    smallest = np.finfo(np.float64).eps
    likely = np.where(targets > 0.5, blend, 1 - blend.astype(np.float64))
    return -np.log(np.clip(likely, smallest, 1 - smallest)).mean()


def root_mean_squared_error(targets: np.ndarray, blend: np.ndarray) -> float:
    return np.sqrt(np.square(blend.astype(np.float64) - targets).mean(axis=0)).mean()


def mean_absolute_error(targets: np.ndarray, blend: np.ndarray) -> float:
    return np.abs(blend.astype(np.float64) - targets).mean()


FAST_SCORERS = {
    ("multiclass", "accuracy"): accuracy_scorer,
    ("multiclass", "log_loss"): log_loss_scorer,
    ("binary", "log_loss"): blend_scorer(cell_log_loss),
    ("multilabel", "log_loss"): blend_scorer(cell_log_loss),
    ("regression", "rmse"): blend_scorer(root_mean_squared_error),
    ("regression", "mae"): blend_scorer(mean_absolute_error),
}


def likelihoods(predictions: np.ndarray, targets: np.ndarray, task: Task) -> np.ndarray:
    """What each run gave to the truth, (M, N) for multiclass, (M, N x C) for binary and multilabel; float64."""
    if task == "multiclass":
        return predictions[:, np.arange(len(targets)), targets.argmax(axis=1)].astype(np.float64)
    true = targets * predictions + (1 - targets) * (1 - predictions.astype(np.float64))
    return true.reshape(len(predictions), -1)


# Weights on the simplex


def simplex(rows: Rows, targets: np.ndarray, task: Task, metric: Metric) -> Fitted:
    """Weights of at least 0 and sum 1 with the least log loss (regression: mean squared error), by SLSQP of scipy.

    Both are convex in the weights. Kept only if no worse than equal weights and each single run, in case the solver
    stops early.
    """
    loss = squared_error(rows.predictions, targets) if task == "regression" else mixture_loss(rows, targets, task)
    num_runs = len(rows.predictions)
    equal = np.full(num_runs, 1 / num_runs)
    found = minimize(
        loss,
        equal,
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * num_runs,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones_like(w)},
        options={"ftol": 1e-9, "maxiter": 200},
    ).x
    found = np.clip(found, 0, None) / np.clip(found, 0, None).sum()
    weights = min([found, equal, *np.eye(num_runs)], key=lambda w: loss(w)[0])
    return Fitted(lambda rows: combine(rows.predictions, weights), weights_text(weights), weights)


def mixture_loss(rows: Rows, targets: np.ndarray, task: Task) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """Weights (M,) -> log loss of the weighted mean and its gradient."""
    true = np.maximum(likelihoods(rows.predictions, targets, task), SMALLEST)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        likely = np.maximum(weights @ true, SMALLEST)
        return float(-np.log(likely).mean()), -(true @ (1 / likely)) / len(likely)

    return loss


def squared_error(predictions: np.ndarray, targets: np.ndarray) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """Weights (M,) of sum 1 -> mean squared error, in units of the targets' variance, and its gradient."""
    is_constant = targets.min(axis=0) == targets.max(axis=0)
    errors = (predictions.astype(np.float64) - targets) / np.where(is_constant, 1, targets.std(axis=0))
    flat = errors.reshape(len(errors), -1)
    products = flat @ flat.T / flat.shape[1]  # (M, M)
    return lambda weights: (float(weights @ products @ weights), 2 * products @ weights)


def weights_text(weights: np.ndarray) -> str:
    return " ".join(f"{weight:.2f}" for weight in weights)
