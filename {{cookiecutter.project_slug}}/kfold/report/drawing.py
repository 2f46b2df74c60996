"""Drawings for a page that may be bright or dark: no background, and colours that show on both."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

# Of the palette that people who confuse colours can tell apart (Okabe and Ito, jfly.uni-koeln.de/color), those that
# stand out on white and on black.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
GREY = "#808080"  # of lines that only guide the eye
SIDE = 4.5  # inches, of one drawing


def make_axes(num_columns: int = 1, width: float = SIDE, height: float = SIDE) -> tuple[Figure, list[Axes]]:
    """A figure without background, and its drawings side by side, each width x height inches."""
    figure = Figure(figsize=(num_columns * width, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = list(figure.subplots(1, num_columns, squeeze=False)[0])
    for one in axes:
        one.patch.set_visible(False)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def finish(figure: Figure) -> Figure:
    """The figure, whose texts mean themselves: a $ in a name is no formula."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure
