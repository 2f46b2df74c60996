"""What to leave out when the time does not suffice: views at test time first, then the models that help least."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kfold.metrics import Metric

SHARE = 0.8  # of the time that is left, for predictions; the rest is for stacking, and for disks slower than at first


@dataclass(frozen=True)
class Cost:
    """Seconds that an image takes in all models of a run: with its views, and with the plain one alone."""

    with_views: float
    plain: float


@dataclass(frozen=True)
class Planned:
    run: str
    with_views: bool
    seconds: float  # forecast


def order_by_use(oof: Mapping[str, np.ndarray], targets: np.ndarray, metric: Metric) -> list[str]:
    """Runs, the most useful first: one by one, that one goes without which the mean of the others scores best.

    oof: out-of-fold predictions (N, C) by run. targets: (N, C).
    """
    left, dropped = list(oof), []
    while len(left) > 1:
        worst = left[-1]
        scores = {run: metric.function(targets, mean_without(oof, left, run)) for run in left}
        for run in left:
            worst = run if metric.better(scores[run], scores[worst]) else worst
        left.remove(worst)
        dropped.append(worst)
    return [*left, *reversed(dropped)]


def mean_without(oof: Mapping[str, np.ndarray], runs: Sequence[str], left_out: str) -> np.ndarray:
    return np.mean([oof[run] for run in runs if run != left_out], axis=0, dtype=np.float64).astype(np.float32)


def fit_into(costs: Mapping[str, Cost], num_images: int, seconds: float) -> list[Planned]:
    """The runs to predict, the most useful first as in `costs`; empty where not even one fits into the seconds."""
    runs, plain = list(costs), set()

    def plan() -> list[Planned]:
        seconds_of = {run: costs[run].plain if run in plain else costs[run].with_views for run in runs}
        return [Planned(run, run not in plain, cost * num_images) for run, cost in seconds_of.items()]

    for run in reversed(list(costs)):
        if total(plan()) <= seconds:
            return plan()
        if costs[run].plain < costs[run].with_views:
            plain.add(run)
    while runs and total(plan()) > seconds:
        runs.pop()
    return plan()


def total(planned: Sequence[Planned]) -> float:
    return sum(one.seconds for one in planned)
