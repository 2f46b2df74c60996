"""Two runs beside each other, on the rows that both predict."""

import numpy as np

from kfold.config import Task
from kfold.intervals import verdict
from kfold.metrics import Metric, decide
from kfold.report.leaderboard import compare_runs
from kfold.report.parts import Part, Section, Table, Text
from kfold.report.reading import RunFound
from kfold.report.scores import show, show_interval


def comparison_section(
    one: RunFound,
    other: RunFound,
    targets: np.ndarray,
    fold: np.ndarray,
    groups: np.ndarray | None,
    task: Task,
    metric: Metric,
) -> Section:
    """The paired difference over all shared rows and fold by fold, and who is right where. targets: (N, C)."""
    title = f"{one.name} against {other.name}"
    rows = one.has_oof & other.has_oof
    parts: list[Part] = [Text(difference_line(one, other, targets, groups, metric))]
    if not rows.any():
        return Section(title, parts)
    lines = []
    for number in np.unique(fold[rows]):
        inside = rows & (fold == number)
        a, b = (metric.function(targets[inside], run.oof[inside]) for run in (one, other))
        lines.append((f"fold {number}", str(inside.sum()), show(a), show(b), show(a - b, "+")))
    parts.append(Table(("", "rows", one.name, other.name, "difference"), lines, f"{metric.name}, fold by fold"))
    if task in ("multiclass", "binary"):
        truth, a, b = (decide(task, values[rows]) for values in (targets, one.oof, other.oof))
        counts = [
            ("both right", (a == truth) & (b == truth)),
            (f"only {one.name} right", (a == truth) & (b != truth)),
            (f"only {other.name} right", (a != truth) & (b == truth)),
            ("both wrong", (a != truth) & (b != truth)),
        ]
        parts.append(Table(("rows where", "number"), [(name, str(mask.sum())) for name, mask in counts]))
    return Section(title, parts)


def difference_line(
    one: RunFound, other: RunFound, targets: np.ndarray, groups: np.ndarray | None, metric: Metric
) -> str:
    """The paired difference in a sentence."""
    difference = compare_runs(one, other, targets, groups, metric)
    if difference is None:
        return f"{one.name} and {other.name} predict no row in common, out of fold: there is nothing to compare."
    value, low, high = difference
    num_rows = int((one.has_oof & other.has_oof).sum())
    return (
        f"{one.name} minus {other.name}, {metric.name} of {num_rows} rows: {value:+.5f}, 95% interval "
        f"{show_interval(low, high, '+')}: {verdict(metric, difference)}"
    )
