"""How far the predicted numbers are from the true ones, and whether they err to one side."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from sklearn import metrics as sk

from kfold.report.drawing import COLORS, GREY, finish, make_axes
from kfold.report.parts import Part, Picture, Section, Table, Text
from kfold.report.pictures import shorten_label

MOST_TARGETS = 12  # with a picture; of more, those with the lowest R2
MOST_POINTS = 1000  # of a picture


def residuals_section(targets: np.ndarray, predictions: np.ndarray, names: Sequence[str]) -> Section:
    """The section of true and predicted values, (N, C) both. A residual is predicted minus true."""
    truth, predicted = targets.astype(np.float64), predictions.astype(np.float64)
    fits = [explained(truth[:, column], predicted[:, column]) for column in range(len(names))]
    header = ("target", "root mean square", "mean absolute", "median absolute", "largest", "mean residual", "R2")
    rows = [
        residual_row(name, truth[:, column], predicted[:, column], fits[column]) for column, name in enumerate(names)
    ]
    caption = "Residuals (predicted minus true, out of fold); a mean residual above 0: predictions are too large."
    parts: list[Part] = [Table(header, rows, caption)]
    worst = np.argsort(np.nan_to_num(fits, nan=-np.inf), kind="stable")[:MOST_TARGETS]
    if len(worst) < len(names):
        parts.append(Text(f"Drawn are the {len(worst)} of {len(names)} targets with the lowest R2."))
    drawn = some_rows(len(truth))
    if len(drawn) < len(truth):
        parts.append(Text(f"Each picture shows the same {len(drawn)} of {len(truth)} rows, drawn at random."))
    for column in np.sort(worst):
        figure = draw(truth[drawn, column], predicted[drawn, column], names[column])
        said = f"Predicted against true {names[column]}, and the residuals; R2 {fits[column]:.4f}."
        parts.append(Picture(figure, said))
    return Section("Residuals", parts)


def residual_row(name: str, truth: np.ndarray, predicted: np.ndarray, fit: float) -> tuple[str, ...]:
    residuals = predicted - truth
    sizes = np.abs(residuals)
    numbers = (np.sqrt(np.mean(residuals**2)), sizes.mean(), np.median(sizes), sizes.max(), residuals.mean())
    return name, *(f"{number:.5g}" for number in numbers), "-" if np.isnan(fit) else f"{fit:.4f}"


def explained(truth: np.ndarray, predicted: np.ndarray) -> float:
    """R2, the share of the variance that is explained; NaN where all true values are equal."""
    return float("nan") if truth.min() == truth.max() else float(sk.r2_score(truth, predicted))


def some_rows(num_rows: int) -> np.ndarray:
    """At most MOST_POINTS of so many row numbers, the same each time."""
    if num_rows <= MOST_POINTS:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(0).choice(num_rows, MOST_POINTS, replace=False))


def draw(truth: np.ndarray, predicted: np.ndarray, name: str) -> Figure:
    """Predicted over true on the left, residuals over predicted on the right."""
    figure, (left, right) = make_axes(2)
    ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
    left.plot(ends, ends, "--", color=GREY)
    left.plot(truth, predicted, ".", color=COLORS[0], alpha=0.7)
    left.set_xlabel("true")
    left.set_ylabel("predicted")
    right.axhline(0, linestyle="--", color=GREY)
    right.plot(predicted, predicted - truth, ".", color=COLORS[0], alpha=0.7)
    right.set_xlabel("predicted")
    right.set_ylabel("predicted minus true")
    figure.suptitle(shorten_label(name))
    return finish(figure)
