"""Drawings for a page that may be bright or dark: no background, and colours that show on both."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from kfold.report.pictures import shorten_label

# Of the palette that people who confuse colours can tell apart (Okabe and Ito, jfly.uni-koeln.de/color), those that
# stand out on white and on black.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
GREY = "#808080"  # of lines that only guide the eye
SIDE = 4.5  # inches, of one drawing
LETTER, LINE, GAP, DOT = 5.5, 11, 5, 4  # points, of names beside dots: width, height, distance, half a dot
LONGEST_NAME = 24  # letters, beside a dot


def make_axes(num_columns: int = 1, width: float = SIDE, height: float = SIDE) -> tuple[Figure, list[Axes]]:
    """A figure without background, and its drawings side by side, each width x height inches."""
    figure = Figure(figsize=(num_columns * width, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = list(figure.subplots(1, num_columns, squeeze=False)[0])
    for one in axes:
        one.patch.set_visible(False)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def name_points(
    axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str], spans: Sequence[tuple[float, float]]
) -> None:
    """Write each name beside its point, towards the middle; one that would hide a name, a point, or the span from left
    to right that belongs to it, stands lower."""
    axes.margins(0.1)
    axes.get_xlim(), axes.get_ylim()  # settles them
    places = axes.transData.transform(points) * 72 / axes.figure.dpi
    middle = (axes.bbox.x0 + axes.bbox.x1) / 2 * 72 / axes.figure.dpi
    taken = [Bbox.from_bounds(x - DOT, y - DOT, 2 * DOT, 2 * DOT) for x, y in places]
    for (left, right), (_, y) in zip(spans, points, strict=True):
        ends = axes.transData.transform([(left, y), (right, y)]) * 72 / axes.figure.dpi
        taken.append(Bbox.from_extents(ends[0, 0], ends[0, 1] - 1, ends[1, 0], ends[1, 1] + 1))
    for number in np.argsort(-places[:, 1], kind="stable"):
        x, y = places[number]
        name = shorten_label(names[number], LONGEST_NAME)
        width, side = LETTER * len(name), -1 if x > middle else 1
        box = Bbox.from_bounds(x + GAP if side > 0 else x - GAP - width, y + GAP, width, LINE)
        while box.count_overlaps(taken):
            box = box.translated(0, -LINE)
        taken.append(box)
        axes.annotate(
            name,
            points[number],
            (side * GAP, box.y0 - y),
            textcoords="offset points",
            horizontalalignment="left" if side > 0 else "right",
            fontsize="small",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},  # the page's colour, over lines that guide
        )


def finish(figure: Figure) -> Figure:
    """The figure, whose texts mean themselves: a $ in a name is no formula."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure
