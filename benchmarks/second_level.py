"""Seconds of the second level beside plain code and scikit-learn, on synthetic runs.

Command  python benchmarks/second_level.py            or --rows 5000 --rounds 1 for a quick look

The runs are softmax of true signal + noise that all share + noise of their own, each sharpened or softened by a factor
of its own, as networks are. One process: a round runs every way once, one after the other, after a warm-up on few rows.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable

import numpy as np
from machine import load
from project import PACKAGE
from rows import hand_over, make_row
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import HistGradientBoostingClassifier, StackingClassifier
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(PACKAGE))

from kfold.ensemble.blend import MOST_STEPS, hill_climb
from kfold.ensemble.nested import METHODS, nested_predictions
from kfold.ensemble.second_level import Rows
from kfold.metrics import Metric, resolve_metric

NUM_CLASSES, NUM_FOLDS = 10, 5
LOG_LOSS, ACCURACY = (resolve_metric(name, "multiclass") for name in ("log_loss", "accuracy"))
WARM_UP_ROWS = 500


def main(num_rows: int, rounds: int) -> list[dict]:
    """Rows of hill climbing beside a plain loop, and of each method of METHODS beside its like in scikit-learn."""
    print(f"{num_rows:,} rows, {NUM_CLASSES} classes, float32; {os.cpu_count()} CPU cores; {load()}")
    return [*climb_rows(num_rows, rounds), *nested_rows(num_rows, rounds)]


def climb_rows(num_rows: int, rounds: int) -> list[dict]:
    found = []
    for metric in (ACCURACY, LOG_LOSS):
        climb(*make_runs(40, WARM_UP_ROWS), metric)
        runs, targets = make_runs(40, num_rows)
        pairs = [climb(runs, targets, metric) for _ in range(rounds)]
        seconds = {"ours": [pair[0] for pair in pairs], "plain code": [pair[1] for pair in pairs]}
        found.append(
            make_row("5 hill climbing", f"40 runs, {num_rows:,} rows, 10 classes, {metric.name}", "s", seconds)
        )
        print(f"  {found[-1]['what']}: {seconds}", flush=True)
    return found


def nested_rows(num_rows: int, rounds: int) -> list[dict]:
    ways = {**SCIKIT_LEARN, **{name: our_method(name) for name in METHODS}}
    rows, targets = make_runs(5, num_rows)
    seconds, scores = {name: [] for name in ways}, {}
    for way in ways.values():
        way(*make_runs(5, WARM_UP_ROWS))
    for _ in range(rounds):
        for name, way in ways.items():
            predictions, taken = timed(lambda way=way: way(rows, targets))
            seconds[name].append(taken)
            scores[name] = scores_of(targets, predictions)
            print(f"  {name}: {taken:.3f} s, {scores[name]}", flush=True)
    single = scores_of(targets, min(rows.predictions, key=lambda run: LOG_LOSS.function(targets, run)))
    found = []
    for name in METHODS:
        peer = LIKE_OURS.get(name, "StackingClassifier")
        what = f"{name} of 5 runs, {NUM_FOLDS} fits, {num_rows:,} rows, beside {peer}"
        facts = {"ours": scores[name], "scikit-learn": scores[peer], "best single run": single}
        sides = {"ours": seconds[name], "scikit-learn": seconds[peer]}
        found.append(make_row("5 nested stack", what, "s", sides, scores=facts))
    return found


def make_runs(num_runs: int, num_rows: int) -> tuple[Rows, np.ndarray]:
    """Predictions of every run in five folds, and one-hot targets (N, C)."""
    generator = np.random.default_rng(0)
    targets = np.eye(NUM_CLASSES, dtype=np.float32)[generator.integers(NUM_CLASSES, size=num_rows)]
    shared = generator.normal(size=targets.shape)
    predictions = np.empty((num_runs, *targets.shape), np.float32)
    for run in range(num_runs):
        own = generator.uniform(0.7, 1.5) * generator.normal(size=targets.shape)
        predictions[run] = softmax(generator.uniform(0.6, 2.5) * (2 * targets + shared + own), axis=1)
    return Rows(predictions, generator.permutation(num_rows) % NUM_FOLDS), targets


def timed(work: Callable[[], object]) -> tuple[object, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


# Hill climbing


def climb(rows: Rows, targets: np.ndarray, metric: Metric) -> tuple[float, float]:
    """Seconds of ours and of the plain loop; stops where the two do not find the same weights."""
    fitted, ours = timed(lambda: hill_climb(rows, targets, "multiclass", metric))
    counts, plain = timed(lambda: plain_hill_climb(rows.predictions, targets, metric))
    np.testing.assert_allclose(fitted.model, counts / counts.sum())
    return ours, plain


def plain_hill_climb(predictions: np.ndarray, targets: np.ndarray, metric: Metric) -> np.ndarray:
    """How often each run is taken: the metric is called for every candidate of every step."""
    counts = np.zeros(len(predictions), np.int64)
    total, best = np.zeros(targets.shape), float("nan")
    for step in range(MOST_STEPS):
        scores = [metric.function(targets, ((total + run) / (step + 1)).astype(np.float32)) for run in predictions]
        pick = int(np.argmax(scores) if metric.greater_is_better else np.argmin(scores))
        if not metric.better(scores[pick], best):
            return counts
        best = scores[pick]
        counts[pick] += 1
        total += predictions[pick]
    return counts


# Nested stacks: each way is (rows, targets) -> predictions (N, C), every fold's by a fit to the other folds


def our_method(name: str) -> Callable[[Rows, np.ndarray], np.ndarray]:
    return lambda rows, targets: nested_predictions(METHODS[name].fit, rows, targets, "multiclass", LOG_LOSS)[0]


class OneRun(ClassifierMixin, BaseEstimator):
    """A classifier that is fitted already: its probabilities are the columns of one run."""

    def __init__(self, run: int = 0):
        self.run = run
        self.classes_ = np.arange(NUM_CLASSES)

    def fit(self, columns: np.ndarray, classes: np.ndarray) -> "OneRun":
        return self

    def predict_proba(self, columns: np.ndarray) -> np.ndarray:
        return columns[:, self.run * NUM_CLASSES : (self.run + 1) * NUM_CLASSES]


def stacking_classifier(num_runs: int) -> StackingClassifier:
    runs = [(f"run{run}", OneRun(run)) for run in range(num_runs)]
    return StackingClassifier(runs, LogisticRegression(max_iter=1000), cv="prefit", stack_method="predict_proba")


def scikit_learn(make_model: Callable[[int], ClassifierMixin]) -> Callable[[Rows, np.ndarray], np.ndarray]:
    def way(rows: Rows, targets: np.ndarray) -> np.ndarray:
        columns = rows.predictions.transpose(1, 0, 2).reshape(len(targets), -1)
        classes, predictions = targets.argmax(axis=1), np.zeros_like(targets)
        for number in range(NUM_FOLDS):
            held_out = rows.fold == number
            model = make_model(len(rows.predictions)).fit(columns[~held_out], classes[~held_out])
            predictions[held_out] = model.predict_proba(columns[held_out])
        return predictions

    return way


SCIKIT_LEARN = {
    "StackingClassifier": scikit_learn(stacking_classifier),
    "HistGradientBoostingClassifier": scikit_learn(lambda num_runs: HistGradientBoostingClassifier(random_state=0)),
}


LIKE_OURS = {"lightgbm": "HistGradientBoostingClassifier"}  # the others: StackingClassifier


def scores_of(targets: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    return {metric.name: float(metric.function(targets, predictions)) for metric in (LOG_LOSS, ACCURACY)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help="default: 50000")
    parser.add_argument("--rounds", type=int, default=1, help="default: 1")
    parser.add_argument("--json", default="", help="a file for the rows")
    given = parser.parse_args()
    hand_over(main(given.rows, given.rounds), given.json)
