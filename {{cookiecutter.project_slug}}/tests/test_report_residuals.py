"""Residuals are predicted minus true, of every target."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sklearn import metrics as sk

from kfold.report.parts import Picture, Table
from kfold.report.residuals import MOST_POINTS, MOST_TARGETS, residuals_section


def simulate(num_targets, num_rows=200):
    generator = np.random.default_rng(0)
    targets = generator.normal(10, 3, (num_rows, num_targets)).astype(np.float32)
    return targets, targets + generator.normal(0.5, 1, targets.shape).astype(np.float32)


@pytest.mark.parametrize("num_targets", [1, 3])
def test_the_table_has_scikit_learns_numbers_and_the_side_of_the_error(num_targets):
    targets, predictions = simulate(num_targets)
    section = residuals_section(targets, predictions, [f"$t_{column}" for column in range(num_targets)])
    table = section.parts[0]
    assert isinstance(table, Table)
    for column, row in enumerate(table.rows):
        one = targets[:, column].astype(float), predictions[:, column].astype(float)
        expected = [
            sk.root_mean_squared_error(*one), sk.mean_absolute_error(*one), sk.median_absolute_error(*one),
            sk.max_error(*one), np.mean(one[1] - one[0]), sk.r2_score(*one),
        ]  # fmt: skip
        assert [float(cell) for cell in row[1:]] == pytest.approx(expected, rel=1e-3)
        assert float(row[5]) > 0  # predictions are too large
    pictures = [part for part in section.parts if isinstance(part, Picture)]
    assert len(pictures) == num_targets
    for column, picture in enumerate(pictures):
        FigureCanvasAgg(picture.figure).draw()
        points = picture.figure.axes[1].lines[-1]
        np.testing.assert_allclose(points.get_ydata(), predictions[:, column] - targets[:, column], atol=1e-5)


def test_many_rows_and_targets_are_drawn_in_part_and_all_counted():
    targets, predictions = simulate(MOST_TARGETS + 2, 3 * MOST_POINTS)
    predictions[:, 0] += 40
    section = residuals_section(targets, predictions, [str(column) for column in range(targets.shape[1])])
    pictures = [part for part in section.parts if isinstance(part, Picture)]
    assert len(pictures) == MOST_TARGETS
    assert pictures[0].figure.get_suptitle() == "0"  # the worst is among them
    assert len(pictures[0].figure.axes[1].lines[-1].get_ydata()) == MOST_POINTS
    assert len(section.parts[0].rows) == MOST_TARGETS + 2
    whole = residuals_section(targets[:, :1], predictions[:, :1], ["0"]).parts[0].rows[0]
    assert section.parts[0].rows[0] == whole


def test_a_constant_target_has_no_r2():
    section = residuals_section(np.ones((9, 1)), np.linspace(0, 1, 9)[:, None], ["same"])
    assert section.parts[0].rows[0][-1] == "-"
