"""The numbers of each label are scikit-learn's, and no threshold does better than the best one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sklearn import metrics as sk

from kfold.report.parts import Picture, Table
from kfold.report.per_label import MOST_CURVES, best_threshold, per_label_section


def simulate(num_labels, num_rows=300, seed=0):
    generator = np.random.default_rng(seed)
    targets = (generator.random((num_rows, num_labels)) < 0.3).astype(np.float32)
    noise = generator.random((num_rows, num_labels))
    return targets, (0.4 * targets + 0.6 * noise).astype(np.float32)


def tables(section):
    return [part for part in section.parts if isinstance(part, Table)]


@pytest.mark.parametrize("num_labels", [1, 3, 20])
def test_areas_and_scores_equal_scikit_learns(num_labels):
    targets, predictions = simulate(num_labels)
    section = per_label_section(targets, predictions, [f"_{column}$" for column in range(num_labels)])
    rows = tables(section)[0].rows
    assert len(rows) == num_labels
    for column, row in enumerate(rows):
        one = targets[:, column], predictions[:, column]
        assert float(row[2]) == pytest.approx(sk.roc_auc_score(*one), abs=1e-4)
        assert float(row[3]) == pytest.approx(sk.average_precision_score(*one), abs=1e-4)
        assert float(row[4]) == pytest.approx(sk.f1_score(one[0], one[1] >= 0.5), abs=1e-4)
    (picture,) = (part for part in section.parts if isinstance(part, Picture))
    FigureCanvasAgg(picture.figure).draw()
    legend = picture.figure.axes[0].get_legend().get_texts()
    assert len(legend) == min(num_labels, MOST_CURVES)
    areas = sk.roc_auc_score(targets, predictions, average=None) if num_labels > 1 else [float(rows[0][2])]
    drawn = [float(text.get_text().split()[0]) for text in legend]
    assert drawn == pytest.approx(sorted(areas)[:MOST_CURVES], abs=6e-4)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10)), min_size=2, max_size=30))
def test_no_threshold_has_a_higher_f1_than_the_best(rows):
    truth, predictions = np.array([row[0] for row in rows]), np.array([row[1] for row in rows]) / 10
    if not truth.any():
        return
    threshold, score = best_threshold(truth, predictions)
    assert score == pytest.approx(sk.f1_score(truth, predictions >= threshold))
    others = [sk.f1_score(truth, predictions >= at / 10, zero_division=0) for at in range(11)]
    assert score >= max(others) - 1e-9


def test_binary_has_a_table_of_thresholds():
    targets, predictions = simulate(1)
    table = tables(per_label_section(targets, predictions, ["ill"]))[1]
    for threshold, called, precision, recall, score in table.rows:
        decided = predictions[:, 0] >= float(threshold)
        assert int(called) == decided.sum()
        found = sk.precision_recall_fscore_support(targets[:, 0], decided, average="binary", zero_division=0)
        assert [float(precision), float(recall), float(score)] == pytest.approx(found[:3], abs=1e-4)
    assert len(table.rows) == 9


def test_a_label_of_one_kind_has_dashes_and_no_curve():
    targets, predictions = simulate(2)
    targets[:, 1] = 0
    section = per_label_section(targets, predictions, ["common", "never"])
    assert tables(section)[0].rows[1] == ("never", "0 of 300", *5 * ["-"])
    targets[:, 0] = 1
    assert not any(isinstance(part, Picture) for part in per_label_section(targets, predictions, ["a", "b"]).parts)
