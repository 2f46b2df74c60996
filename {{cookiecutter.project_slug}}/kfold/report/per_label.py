"""How well each label is told apart, at every threshold: ROC and precision-recall curves."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from sklearn import metrics as sk

from kfold.metrics import THRESHOLD
from kfold.report.drawing import COLORS, GREY, finish, make_axes
from kfold.report.parts import Part, Picture, Section, Table, Text
from kfold.report.pictures import shorten_label

STYLES = ("-", "--")
MOST_CURVES = len(STYLES) * len(COLORS)  # with a colour and a name; of more labels the worst
MOST_POINTS = 200  # of a curve: more cannot be seen
TABLE_THRESHOLDS = np.arange(1, 10) / 10


def per_label_section(targets: np.ndarray, predictions: np.ndarray, names: Sequence[str]) -> Section:
    """The section of targets (N, C) of 0 and 1 and probabilities (N, C): multilabel, or binary with C = 1."""
    truth = targets >= THRESHOLD
    varied = [column for column in range(len(names)) if 0 < truth[:, column].sum() < len(truth)]
    areas = {column: sk.roc_auc_score(truth[:, column], predictions[:, column]) for column in varied}
    worst = sorted(varied, key=areas.__getitem__)[:MOST_CURVES]
    parts: list[Part] = []
    if worst:
        figure = draw(truth[:, worst], predictions[:, worst], [names[column] for column in worst])
        said = ", ".join(f"{names[column]} {areas[column]:.4f}" for column in worst)
        parts.append(Picture(figure, f"ROC and precision-recall curves. Area under ROC: {said}."))
    if len(worst) < len(varied):
        parts.append(Text(f"Drawn are the {len(worst)} of {len(varied)} labels with the smallest area under ROC."))
    rows = [label_row(names[column], truth[:, column], predictions[:, column]) for column in range(len(names))]
    header = ("label", "positive", "area under ROC", "average precision", f"F1 at {THRESHOLD}", "best threshold", "F1")
    caption = (
        "The best threshold (for F1) is chosen on the rows that it is scored on: optimistic. stack.py scores "
        "thresholds on rows that they were not chosen on."
    )
    parts.append(Table(header, rows, caption))
    if len(names) == 1 and varied:
        header = ("threshold", "decided positive", "precision", "recall", "F1")
        parts.append(Table(header, [threshold_row(truth[:, 0], predictions[:, 0], at) for at in TABLE_THRESHOLDS]))
    return Section("Labels and thresholds", parts)


def label_row(name: str, truth: np.ndarray, predictions: np.ndarray) -> tuple[str, ...]:
    positive = f"{truth.sum()} of {len(truth)}"
    if truth.all() or not truth.any():
        return name, positive, "-", "-", "-", "-", "-"
    area, precision = sk.roc_auc_score(truth, predictions), sk.average_precision_score(truth, predictions)
    threshold, best = best_threshold(truth, predictions)
    at_default = sk.f1_score(truth, predictions >= THRESHOLD, zero_division=0)
    numbers = (area, precision, at_default, threshold, best)
    return name, positive, *(f"{number:.4f}" for number in numbers)


def best_threshold(truth: np.ndarray, predictions: np.ndarray) -> tuple[float, float]:
    """The threshold with the highest F1, and that F1; positive is a probability of at least the threshold."""
    precision, recall, thresholds = sk.precision_recall_curve(truth, predictions)
    scores = 2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], 1e-12)
    best = int(scores.argmax())
    return float(thresholds[best]), float(scores[best])


def threshold_row(truth: np.ndarray, predictions: np.ndarray, threshold: float) -> tuple[str, ...]:
    decided = predictions >= threshold
    scores = (score(truth, decided, zero_division=0) for score in (sk.precision_score, sk.recall_score, sk.f1_score))
    return f"{threshold:.1f}", str(decided.sum()), *(f"{value:.4f}" for value in scores)


def draw(truth: np.ndarray, predictions: np.ndarray, names: Sequence[str]) -> Figure:
    """ROC on the left and precision over recall on the right, a line for each column."""
    figure, (roc, recall_axes) = make_axes(2)
    roc.plot([0, 1], [0, 1], ":", color=GREY)  # chance
    for column, name in enumerate(names):
        style = {"color": COLORS[column % len(COLORS)], "linestyle": STYLES[column // len(COLORS) % len(STYLES)]}
        false_rate, true_rate, _ = sk.roc_curve(truth[:, column], predictions[:, column])
        precision, recall, _ = sk.precision_recall_curve(truth[:, column], predictions[:, column])
        # A label that begins with _ would be left out of the legend.
        label = f"{sk.auc(false_rate, true_rate):.3f} {shorten_label(name)}"
        roc.plot(*thinned(false_rate, true_rate), label=label, **style)
        recall_axes.step(*thinned(recall, precision), where="post", **style)
    roc.set_xlabel("share of the negative rows that is decided positive")
    roc.set_ylabel("share of the positive rows that is found (recall)")
    recall_axes.set_xlabel("recall")
    recall_axes.set_ylabel("precision")
    recall_axes.set_ylim(0, 1.02)
    roc.legend(frameon=False, title="area under ROC", fontsize="small", loc="lower right")
    return finish(figure)


def thinned(*lines: np.ndarray) -> list[np.ndarray]:
    """The lines at the same few of their points, first and last among them."""
    kept = np.unique(np.linspace(0, len(lines[0]) - 1, MOST_POINTS).round().astype(int))
    return [line[kept] for line in lines]
