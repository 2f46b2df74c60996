"""Which classes are taken for which: the confusion matrix, and its worst pairs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from kfold.report.drawing import COLORS, finish, make_axes
from kfold.report.parts import Part, Picture, Section, Table, Text
from kfold.report.pictures import shorten_label

MOST_CLASSES = 30  # in one picture; of more classes only the worst are drawn
WORST_CLASSES = 20
WORST_PAIRS = 15
OTHERS = "all others"
CELL = 0.42  # inches


def confusion_section(truth: np.ndarray, decided: np.ndarray, names: Sequence[str]) -> Section:
    """The section of true and decided class numbers, (N,) int both, of the classes `names`."""
    counts = confusion_matrix(truth, decided, labels=np.arange(len(names)))
    chosen = worst_classes(counts)
    shown = drawn_part(counts, chosen)
    rows, columns = [names[number] for number in chosen], [names[number] for number in chosen]
    parts: list[Part] = [Text(f"{np.trace(counts)} of {counts.sum()} rows are decided right (out of fold).")]
    if len(chosen) < len(names):
        columns = [*columns, OTHERS]
        parts.append(
            Text(
                f"Of {len(names)} classes these are the {len(chosen)} with the most wrong rows (theirs, or taken for "
                f"theirs); the last column counts all others."
            )
        )
    shares = row_shares(shown)
    worst = worst_pairs(counts)
    said = f"The most frequent confusion: {describe(worst[0], names)}." if worst else "Nothing is confused."
    parts.append(Picture(draw(shown, shown / max(shown.max(), 1), "{:.0f}", rows, columns, "rows"), said))
    percent = draw(100 * shares, shares, "{:.0f}", rows, columns, "percent of the true class")
    parts.append(Picture(percent, f"The same as shares of each true class. {said}"))
    if worst:
        cells = [(names[true], names[other], str(count), f"{share:.1%}") for true, other, count, share in worst]
        parts.append(Table(("true", "decided", "rows", "of the true class"), cells, "The worst pairs."))
    return Section("Confusion", parts)


def describe(pair: tuple[int, int, int, float], names: Sequence[str]) -> str:
    true, other, count, share = pair
    return f"{names[true]} taken for {names[other]}, {count} rows, {share:.1%} of the class"


def worst_classes(counts: np.ndarray) -> np.ndarray:
    """The classes to draw, in their order: all, or those with the most wrong rows."""
    if len(counts) <= MOST_CLASSES:
        return np.arange(len(counts))
    wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    return np.sort(np.argsort(-wrong, kind="stable")[:WORST_CLASSES])


def drawn_part(counts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The chosen rows and columns, and, where classes are left out, a last column that sums them: rows keep sums."""
    part = counts[np.ix_(chosen, chosen)]
    if len(chosen) == len(counts):
        return part
    return np.column_stack([part, counts[chosen].sum(axis=1) - part.sum(axis=1)])


def row_shares(counts: np.ndarray) -> np.ndarray:
    """Each row divided by its sum; a class without rows stays 0."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def worst_pairs(counts: np.ndarray, limit: int = WORST_PAIRS) -> list[tuple[int, int, int, float]]:
    """(true class, decided class, rows, share of the true class) of the most frequent confusions."""
    wrong, shares = counts - np.diag(np.diag(counts)), row_shares(counts)
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = [divmod(int(place), len(counts)) for place in order]
    return [(true, other, int(wrong[true, other]), shares[true, other]) for true, other in pairs if wrong[true, other]]


def draw(
    values: np.ndarray, strengths: np.ndarray, form: str, rows: Sequence[str], columns: Sequence[str], unit: str
) -> Figure:
    """Cells coloured by strength (0 to 1), with their values written in them; 0 is left blank."""
    side = 2.2 + CELL * max(len(columns), 4)
    figure, (axes,) = make_axes(1, side + 0.6, side)
    # Strength is opacity, so that weak cells vanish in a bright page as in a dark one, and letters stay readable.
    colors = np.concatenate([np.broadcast_to(to_rgb(COLORS[0]), (*strengths.shape, 3)), strengths[..., None]], axis=2)
    axes.pcolormesh(np.arange(len(columns) + 1) - 0.5, np.arange(len(rows) + 1) - 0.5, colors)
    for row, column in np.argwhere(values):
        color = "white" if strengths[row, column] > 0.5 else "black"  # black is the page's own, bright on a dark one
        said = form.format(values[row, column])
        axes.text(column, row, said, color=color, ha="center", va="center", fontsize="small")
    axes.set_xticks(range(len(columns)), [shorten_label(name) for name in columns], rotation=90)
    axes.set_yticks(range(len(rows)), [shorten_label(name) for name in rows])
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.set_xlabel("decided")
    axes.set_ylabel("true")
    axes.set_title(unit)
    return finish(figure)
