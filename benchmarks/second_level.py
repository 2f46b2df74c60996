"""Seconds of the second level beside plain code and scikit-learn, on synthetic runs, as Markdown tables.

Command  python benchmarks/second_level.py            or --rows 5000 for a quick look
Writes   nothing: the tables go to stdout, and from there into benchmarks/README.md

The runs are softmax of true signal + noise that all share + noise of their own, each sharpened or softened by a factor
of its own, as networks are. Both sides of a table run in one process, one after the other, each once, after a warm-up
on few rows.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import HistGradientBoostingClassifier, StackingClassifier
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(next(Path(__file__).resolve().parents[1].glob("*/kfold")).parent))

from kfold.ensemble.blend import MOST_STEPS, hill_climb
from kfold.ensemble.nested import METHODS, nested_predictions
from kfold.ensemble.second_level import Rows
from kfold.metrics import Metric, resolve_metric

NUM_CLASSES, NUM_FOLDS = 10, 5
LOG_LOSS, ACCURACY = (resolve_metric(name, "multiclass") for name in ("log_loss", "accuracy"))
WARM_UP_ROWS = 500


def main(num_rows: int) -> None:
    print(f"{num_rows:,} rows, {NUM_CLASSES} classes, float32; {os.cpu_count()} CPU cores; {load()}")
    print("\n| hill climbing over 40 runs | steps | ours, s | plain loop, s | plain / ours |\n|---|---|---|---|---|")
    for metric in (ACCURACY, LOG_LOSS):
        climb_line(*make_runs(40, WARM_UP_ROWS), metric)
        print(climb_line(*make_runs(40, num_rows), metric), flush=True)

    peers = " | ".join(f"{peer} / it" for peer in SCIKIT_LEARN)
    print(f"\n| nested stack of 5 runs, {NUM_FOLDS} fits | s | {peers} | nested log loss | accuracy |")
    print("|---|---|---|---|---|---|")
    ways = {f"scikit-learn {name}": way for name, way in SCIKIT_LEARN.items()}
    ways |= {f"ours: {name}": our_method(name) for name in METHODS}
    rows, targets = make_runs(5, num_rows)
    print_single(rows, targets)
    seconds = {}
    for name, way in ways.items():
        way(*make_runs(5, WARM_UP_ROWS))
        predictions, seconds[name] = timed(lambda way=way: way(rows, targets))
        by_peer = [seconds.get(f"scikit-learn {peer}", float("nan")) / seconds[name] for peer in SCIKIT_LEARN]
        ratios = " | ".join("" if np.isnan(ratio) else f"{float(f'{ratio:.2g}'):,g}" for ratio in by_peer)
        print(f"| {name} | {seconds[name]:.3f} | {ratios} | {scores(targets, predictions)} |", flush=True)
    print(f"\nat the end: {load()}")


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


def load() -> str:
    return f"load of the machine {os.getloadavg()[0]:.1f} (mean of the last minute, this process included)"


# Hill climbing


def climb_line(rows: Rows, targets: np.ndarray, metric: Metric) -> str:
    """A line of the table; stops where the two do not find the same weights."""
    fitted, ours = timed(lambda: hill_climb(rows, targets, "multiclass", metric))
    (counts, num_steps), plain = timed(lambda: plain_hill_climb(rows.predictions, targets, metric))
    np.testing.assert_allclose(fitted.model, counts / counts.sum())
    return f"| {metric.name} | {num_steps} | {ours:.2f} | {plain:.2f} | {plain / ours:.1f} |"


def plain_hill_climb(predictions: np.ndarray, targets: np.ndarray, metric: Metric) -> tuple[np.ndarray, int]:
    """How often each run is taken, and the steps looked at: the metric is called for every candidate of every step."""
    counts = np.zeros(len(predictions), np.int64)
    total, best = np.zeros(targets.shape), float("nan")
    for step in range(MOST_STEPS):
        scores = [metric.function(targets, ((total + run) / (step + 1)).astype(np.float32)) for run in predictions]
        pick = int(np.argmax(scores) if metric.greater_is_better else np.argmin(scores))
        if not metric.better(scores[pick], best):
            return counts, step + 1
        best = scores[pick]
        counts[pick] += 1
        total += predictions[pick]
    return counts, MOST_STEPS


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


def print_single(rows: Rows, targets: np.ndarray) -> None:
    best = min(rows.predictions, key=lambda run: LOG_LOSS.function(targets, run))
    print(f"| best single run | | | | {scores(targets, best)} |")


def scores(targets: np.ndarray, predictions: np.ndarray) -> str:
    return f"{LOG_LOSS.function(targets, predictions):.4f} | {ACCURACY.function(targets, predictions):.4f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help="default: 50000")
    main(parser.parse_args().rows)
