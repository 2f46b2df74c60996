"""Scores of parts: scikit-learn's numbers, intervals that hold them, and a word where there are few rows."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from kfold import intervals
from kfold.intervals import bootstrap_interval
from kfold.metrics import Metric, resolve_metric
from kfold.report.breakdown import FEW_ROWS, class_section, group_section, indicators, target_section

NAMES = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def enough_resamples(monkeypatch):
    monkeypatch.setattr(intervals, "NUM_RESAMPLES_AT_MOST", 60)
    monkeypatch.setattr(intervals, "NUM_RESAMPLES_AT_LEAST", 60)


def simulate(task, num_rows=300):
    generator = np.random.default_rng(0)
    predictions = generator.dirichlet(np.ones(3), num_rows)
    truth = [generator.choice(3, p=row) for row in predictions]
    if task == "multiclass":
        return np.eye(3)[truth], predictions
    return (generator.random(predictions.shape) < predictions).astype(float), predictions


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_classes_have_scikit_learns_scores_the_worst_first(task):
    targets, predictions = simulate(task)
    rows = class_section(task, targets, predictions, NAMES).parts[0].rows
    truth, decided = indicators(task, targets), indicators(task, predictions)
    expected = precision_recall_fscore_support(truth, decided, average=None, zero_division=0)
    for row in rows:
        column = NAMES.index(row[0])
        assert int(row[1]) == targets[:, column].sum()
        assert [float(cell) for cell in row[2:5]] == pytest.approx([part[column] for part in expected[:3]], abs=1e-4)
        low, high = (float(cell) for cell in row[5].split(" to "))
        assert low < float(row[4]) < high
    assert [float(row[4]) for row in rows] == sorted(float(row[4]) for row in rows)


def test_the_interval_of_a_class_is_the_bootstraps_of_the_repository():
    targets, predictions = simulate("multiclass")
    groups = np.array([f"g{row // 4}" for row in range(300)], object)

    def f1_of_b(truth, predicted):
        found = indicators("multiclass", truth)[:, 1], indicators("multiclass", predicted)[:, 1]
        return 2 * (found[0] * found[1]).sum() / (found[0].sum() + found[1].sum())

    low, high = bootstrap_interval(Metric("f1", f1_of_b, True, "labels"), targets, predictions, groups)
    rows = {row[0]: row for row in class_section("multiclass", targets, predictions, NAMES, groups).parts[0].rows}
    assert rows["b"][5] == f"{low:.5f} to {high:.5f}"


def test_few_rows_are_said_and_an_absent_class_has_dashes():
    targets, predictions = np.eye(3)[[0] * 40 + [1] * 5], np.eye(3)[[0] * 40 + [1] * 5]
    rows = {row[0]: row for row in class_section("multiclass", targets, predictions, NAMES).parts[0].rows}
    assert rows["a"][6] == ""
    assert rows["b"][6] == "few"
    assert rows["c"][2:6] == ("-", "-", "-", "-")


@pytest.mark.parametrize("metric_name", ["accuracy", "log_loss"])
def test_groups_come_worst_first_and_those_with_few_rows_last(metric_name):
    targets, predictions = simulate("multiclass")
    metric = resolve_metric(metric_name, "multiclass")
    sizes = {"x": 120, "y": 100, "few": FEW_ROWS - 1}
    parts = np.array([name for name, size in sizes.items() for _ in range(size)] + [""] * 61, object)
    (table,) = group_section(metric, targets, predictions, parts, "Scores of each hospital").parts
    assert {row[0]: int(row[1]) for row in table.rows} == sizes
    assert table.rows[-1][0] == "few"
    assert [row[4] for row in table.rows] == ["", "", "few"]
    for name, _, score, _, _ in table.rows:
        mine = parts == name
        assert float(score) == pytest.approx(metric.function(targets[mine], predictions[mine]), abs=1e-4)
    first, second = (float(row[2]) for row in table.rows[:2])
    assert first < second if metric.greater_is_better else first > second


def test_a_group_where_the_score_is_undefined_has_a_dash():
    metric = resolve_metric("roc_auc", "binary")
    targets = np.array([[0.0], [1.0]] * 15 + [[1.0]] * 30)
    parts = np.array(["both"] * 30 + ["one"] * 30, object)
    rows = group_section(metric, targets, np.linspace(0, 1, 60)[:, None], parts, "").parts[0].rows
    assert rows[-1][:4] == ("one", "30", "-", "-")


def test_every_target_of_a_regression_has_its_score():
    generator = np.random.default_rng(0)
    targets = generator.normal(size=(50, 2))
    predictions = targets + [0.1, 1.0] * generator.normal(size=(50, 2))
    metric = resolve_metric("rmse", "regression")
    rows = target_section(metric, targets, predictions, ["near", "far"]).parts[0].rows
    assert [row[0] for row in rows] == ["near", "far"]
    for column, (_, score, between) in enumerate(rows):
        low, high = map(float, between.split(" to "))
        expected = np.sqrt(np.mean((predictions - targets)[:, column] ** 2))
        assert float(score) == pytest.approx(expected, abs=1e-4)
        assert low < float(score) < high
