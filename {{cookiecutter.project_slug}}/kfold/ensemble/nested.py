"""Honest scores of the second level: whatever is fitted, is fitted without the fold that it is scored on.

The base models behind fold j's out-of-fold rows did see fold k; what a stacker can learn of fold k's targets that way
is second order, and gone only with nested base models, K times the training.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from tqdm import tqdm

from kfold.config import Task
from kfold.ensemble.blend import geometric_mean, hill_climb, mean, rank_mean, simplex
from kfold.ensemble.gbdt import fit_lightgbm
from kfold.ensemble.linear import linear, log_linear_pool
from kfold.ensemble.second_level import Fit, Fitted, Rows
from kfold.intervals import bootstrap_interval, paired_difference, simplest_within_noise
from kfold.metrics import CLASSIFICATION, TASKS, Metric

BEST_SINGLE = "best_single"  # the run with the best out-of-fold score, as it is


@dataclass(frozen=True)
class Method:
    fit: Fit
    tasks: tuple[Task, ...]
    least_runs: int = 2  # with fewer it says nothing that another does not
    is_fitted: bool = True  # on targets; on top of a run that was fitted itself, its score would not be nested


METHODS: dict[str, Method] = {  # in order of simplicity
    "mean": Method(mean, TASKS, is_fitted=False),
    "geometric_mean": Method(geometric_mean, CLASSIFICATION, is_fitted=False),
    "rank_mean": Method(rank_mean, CLASSIFICATION, is_fitted=False),
    "hill_climb": Method(hill_climb, TASKS),
    "simplex": Method(simplex, TASKS),
    "log_linear_pool": Method(log_linear_pool, CLASSIFICATION, least_runs=1),
    "linear": Method(linear, TASKS, least_runs=1),
    "lightgbm": Method(fit_lightgbm, TASKS, least_runs=1),
}


def fitting_methods(task: Task, num_runs: int, on_fitted: bool = False) -> list[str]:
    """The methods that serve a task and have enough runs, in order of simplicity.

    on_fitted: a run among them was itself fitted on out-of-fold rows (a stack, climbed snapshots). Its row of fold j
    comes from a fit that looked at fold k's targets, so that a fit "without fold k" on such rows would know them:
    measured on random labels, an AUC of 0.57 that is called nested. Only what is not fitted may stand on it.
    """
    return [
        name
        for name, method in METHODS.items()
        if task in method.tasks and num_runs >= method.least_runs and not (on_fitted and method.is_fitted)
    ]


def nested_predictions(
    fit: Fit, rows: Rows, targets: np.ndarray, task: Task, metric: Metric
) -> tuple[np.ndarray, dict[int, Fitted]]:
    """Predictions (N, C) of each fold by the fit to all other folds, and these fits by fold."""
    predictions, fitted = np.zeros(targets.shape, np.float32), {}
    for number in np.unique(rows.fold).tolist():
        held_out = rows.fold == number
        fitted[number] = fit(rows.take(~held_out), targets[~held_out], task, metric)
        predictions[held_out] = fitted[number].predict(rows.take(held_out))
    return predictions, fitted


def optimistic_predictions(fit: Fit, rows: Rows, targets: np.ndarray, task: Task, metric: Metric) -> np.ndarray:
    """Predictions (N, C) by one fit to all rows, of these same rows: what a score that is not nested would look at."""
    return fit(rows, targets, task, metric).predict(rows)


@dataclass(frozen=True)
class Comparison:
    """table: a row for every run, then for every method; nested: by method, predictions (N, C); fitted: by method and
    fold, the fit without that fold; best_single: name of a run; chosen: a method, or BEST_SINGLE."""

    table: pd.DataFrame
    nested: Mapping[str, np.ndarray]
    fitted: Mapping[str, Mapping[int, Fitted]]
    best_single: str
    chosen: str


def compare(
    rows: Rows,
    names: Sequence[str],
    targets: np.ndarray,
    task: Task,
    metric: Metric,
    groups: np.ndarray | None = None,
    methods: Sequence[str] | None = None,
    optimistic: Collection[str] = (),
) -> Comparison:
    """Score every run and every method; the simplest within noise of the best is chosen.

    names: of the M runs. The order of simplicity: the best single run, then METHODS. methods: of those that fit
    the task and the number of runs; default: all of them. optimistic: runs whose epochs were chosen on these rows;
    their score stands in the last column, and they are no best single run where there is another.
    """
    singles = dict(zip(names, rows.predictions, strict=True))
    scores = {name: metric.function(targets, predictions) for name, predictions in singles.items()}
    honest = [name for name in names if name not in optimistic] or names
    best = honest[0]
    for name in honest:
        best = name if metric.better(scores[name], scores[best]) else best
    lines = [describe(name, "run", singles[name], targets, metric, groups) for name in names]
    for line in lines:
        if line["name"] in optimistic:
            line |= {"nested": np.nan, "low": np.nan, "high": np.nan, "optimistic": line["nested"]}
    nested, fitted = {}, {}
    fitting = fitting_methods(task, len(names))
    methods = [name for name in fitting if methods is None or name in methods]
    for name in (bar := tqdm(methods, desc="second level", disable=None, leave=False)):
        bar.set_postfix_str(name)
        fit = METHODS[name].fit
        nested[name], fitted[name] = nested_predictions(fit, rows, targets, task, metric)
        line = describe(name, "method", nested[name], targets, metric, groups)
        gain = paired_difference(metric, targets, nested[name], singles[best], groups)
        line |= dict(zip(("difference", "difference_low", "difference_high"), gain, strict=True))
        line["optimistic"] = metric.function(targets, optimistic_predictions(fit, rows, targets, task, metric))
        lines.append(line)
    eligible = {BEST_SINGLE: singles[best], **nested}
    if metric.takes == "labels":
        eligible.pop("rank_mean", None)  # ranks are no probabilities: where a label begins depends on the class mix
    chosen = simplest_within_noise(metric, targets, eligible, groups)
    return Comparison(pd.DataFrame(lines), nested, fitted, best, chosen)


def describe(
    name: str, kind: str, predictions: np.ndarray, targets: np.ndarray, metric: Metric, groups: np.ndarray | None
) -> dict:
    low, high = bootstrap_interval(metric, targets, predictions, groups)
    return {"name": name, "kind": kind, "nested": metric.function(targets, predictions), "low": low, "high": high}


def comparison_table(comparison: Comparison, metric_name: str) -> str:
    """Text lines for a person: nested score first, the optimistic one last."""
    best = comparison.best_single
    heads = ("", f"{metric_name} (nested), 95% interval", f"minus {best}", "optimistic")
    marks, cells = [""], [heads]
    for row in comparison.table.to_dict("records"):
        score, gain = f"{row['nested']:.5f}  {row['low']:.5f} to {row['high']:.5f}", "-"
        if row["kind"] == "method":
            gain = f"{row['difference']:+.5f} ({row['difference_low']:+.5f} to {row['difference_high']:+.5f})"
        optimistic = row.get("optimistic", np.nan)
        if np.isnan(row["nested"]) and not np.isnan(optimistic):
            score = "-"
        cells.append((row["name"], score, gain, "" if np.isnan(optimistic) else f"{optimistic:.5f}"))
        is_taken = row["name"] == (best if comparison.chosen == BEST_SINGLE else comparison.chosen)
        marks.append("  <- the simplest within noise of the best" if is_taken else "")
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in cells]
    lines = [f"{line}{mark}".rstrip() for line, mark in zip(lines, marks, strict=True)]
    lines.append(
        "  nested: fitted without the fold that is scored; optimistic: fitted and scored on the same rows; "
        "the choice among the lines looks at these rows, too"
    )
    return "\n".join(lines)
