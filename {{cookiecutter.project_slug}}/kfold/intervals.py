"""The noise of a score: bootstrap intervals on the rows, or groups, that it was measured on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kfold.metrics import Metric

NUM_RESAMPLES_AT_MOST, NUM_RESAMPLES_AT_LEAST = 500, 100


@dataclass(frozen=True)
class FoldScores:
    """What cross-validation says of a run: each fold's score, and that of all rows with its 95% interval."""

    by_fold: dict[int, float]
    pooled: float
    low: float
    high: float


def score_folds(
    metric: Metric, targets: np.ndarray, predictions: np.ndarray, fold: np.ndarray, groups: np.ndarray | None = None
) -> FoldScores:
    """The scores of out-of-fold predictions (N, C); fold: (N,) int."""
    by_fold = {
        int(number): metric.function(targets[fold == number], predictions[fold == number]) for number in np.unique(fold)
    }
    low, high = bootstrap_interval(metric, targets, predictions, groups)
    return FoldScores(by_fold, metric.function(targets, predictions), low, high)


def bootstrap_interval(
    metric: Metric, targets: np.ndarray, predictions: np.ndarray, groups: np.ndarray | None = None, seed: int = 0
) -> tuple[float, float]:
    """95% percentile interval (low, high) of the score, from `resamples`.

    NaN, NaN when the score is undefined in every resample, or when there is but one row or group.
    """
    scores = [metric.function(targets[rows], predictions[rows]) for rows in resamples(len(targets), groups, seed)]
    return percentiles(scores)


def paired_difference(
    metric: Metric,
    targets: np.ndarray,
    predictions_a: np.ndarray,
    predictions_b: np.ndarray,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Score of a minus score of b, and its 95% interval (low, high) over the same resamples for both.

    An interval around 0 says: within noise. Positive is a gain only where greater is better.
    """
    score = metric.function
    differences = [
        score(targets[rows], predictions_a[rows]) - score(targets[rows], predictions_b[rows])
        for rows in resamples(len(targets), groups, seed)
    ]
    return (score(targets, predictions_a) - score(targets, predictions_b), *percentiles(differences))


def is_gain(metric: Metric, difference: tuple[float, float, float]) -> bool:
    """Whether a paired difference (value, low, high) is a gain beyond noise: its whole interval is on the good side."""
    _, low, high = difference
    return low > 0 if metric.greater_is_better else high < 0


def verdict(metric: Metric, difference: tuple[float, float, float]) -> str:
    """A paired difference in words; undefined ones are within noise."""
    _, low, high = difference
    if is_gain(metric, difference):
        return "better beyond noise"
    return "worse beyond noise" if low > 0 or high < 0 else "within noise"


def simplest_within_noise(
    metric: Metric, targets: np.ndarray, candidates: Mapping[str, np.ndarray], groups: np.ndarray | None = None
) -> str:
    """The name of the first candidate, in order of simplicity, that the best one does not beat beyond noise.

    Candidates whose score is undefined (NaN) are passed over, unless all are.
    """
    scores = {name: metric.function(targets, predictions) for name, predictions in candidates.items()}
    scores = {name: score for name, score in scores.items() if not np.isnan(score)} or scores
    best = next(iter(scores))
    for name in scores:
        best = name if metric.better(scores[name], scores[best]) else best
    for name in scores:
        difference = paired_difference(metric, targets, candidates[best], candidates[name], groups)
        if name == best or not is_gain(metric, difference):
            return name
    return best


def percentiles(scores: list[float]) -> tuple[float, float]:
    finite = [score for score in scores if np.isfinite(score)]
    if not finite:
        return float("nan"), float("nan")
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def resamples(num_rows: int, groups: np.ndarray | None, seed: int) -> Iterator[np.ndarray]:
    """Row numbers of each bootstrap resample: rows drawn with replacement, or whole groups, given as `groups` (N,).

    An empty group name means a row on its own. Their number is 5,000,000 / rows, at most 500 (up to 10,000 rows) and at
    least 100 (from 50,000): each end of a 95% interval is then good to 6% and 14% of its half width (standard error).
    50,000 rows of 10 classes take 1 s (accuracy) to 11 s (F1 of rows) on one core.
    """
    generator = np.random.default_rng(seed)
    count = int(np.clip(5_000_000 // max(num_rows, 1), NUM_RESAMPLES_AT_LEAST, NUM_RESAMPLES_AT_MOST))
    if groups is None:
        groups = np.full(num_rows, "", object)
    names = [group or ("", row) for row, group in enumerate(groups)]
    codes = pd.factorize(pd.Series(names, dtype=object))[0]
    num_groups = codes.max(initial=-1) + 1
    if num_groups < 2:
        return
    rows_by_group = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes)
    starts = np.cumsum(sizes) - sizes
    for _ in range(count):
        drawn = generator.integers(num_groups, size=num_groups)
        ends = np.cumsum(sizes[drawn])  # position in the resample where each drawn group ends
        within = np.arange(ends[-1]) - np.repeat(ends - sizes[drawn], sizes[drawn])
        yield rows_by_group[np.repeat(starts[drawn], sizes[drawn]) + within]
