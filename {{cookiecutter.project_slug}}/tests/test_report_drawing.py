"""Drawings show on a bright and on a dark page."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.transforms import Bbox

from kfold.report.drawing import COLORS, GREY, finish, make_axes, name_points


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


@pytest.mark.parametrize("points", [[(0.9, 0.8)] * 4, [(0.1, 0.2), (0.1001, 0.2001), (0.9, 0.2), (0.5, 0.2)]])
def test_names_beside_points_lie_within_the_drawing_and_on_no_other_name_or_point(points):
    figure, (axes,) = make_axes(1, 5.2, 4)
    for x, y in [*points, (0, 0), (1, 1)]:
        axes.plot(x, y, "o")
    names = ["baseline", "efficientnet_b0-seed1-p12", "x" * 60, "stack"]
    spans = [(x - 0.3, x + 0.05) for x, _ in points]
    name_points(axes, points, names, spans)
    FigureCanvasAgg(finish(figure)).draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert sorted(text.get_text()[:5] for text in axes.texts) == sorted(name[:5] for name in names)
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[place + 1 :])
    dots = axes.transData.transform(points)
    assert not any(box.contains(*dot) for box in boxes for dot in dots)
    lines = [
        Bbox(axes.transData.transform([(left, y), (right, y)]))
        for (left, right), (_, y) in zip(spans, points, strict=True)
    ]
    assert not any(
        box.y0 < line.y0 < box.y1 and box.x0 < line.x1 and line.x0 < box.x1 for box in boxes for line in lines
    )
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1


def test_the_background_is_the_pages_and_names_are_no_formulas():
    figure, (axes,) = make_axes()
    axes.set_title("$broken_{formula")  # would raise if it were read as one
    FigureCanvasAgg(finish(figure)).draw()
    assert np.asarray(figure.canvas.buffer_rgba())[0, 0, 3] == 0
