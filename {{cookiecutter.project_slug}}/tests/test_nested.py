"""kfold/ensemble/nested.py: that a nested score is honest, and that an optimistic one is not."""

import io

import numpy as np
import pandas as pd
import pytest

from kfold.ensemble import gbdt
from kfold.ensemble.nested import (
    BEST_SINGLE,
    METHODS,
    compare,
    comparison_table,
    fitting_methods,
    nested_predictions,
    optimistic_predictions,
)
from kfold.ensemble.second_level import Rows
from kfold.intervals import bootstrap_interval, paired_difference, simplest_within_noise
from kfold.metrics import TASKS, resolve_metric

METHODS_AND_TASKS = [(name, task) for name, method in METHODS.items() for task in method.tasks]


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch):
    """Trees have tests of their own."""
    monkeypatch.setitem(gbdt.PARAMETERS, "num_threads", 1)
    monkeypatch.setattr(gbdt, "MAX_ROUNDS", 20)


def make_rows(task="multiclass", num_rows=90, num_runs=3, seed=0, signal=1.0) -> tuple[Rows, np.ndarray]:
    """Runs with errors of their own in three folds, and the targets (N, C). signal 0: nothing to find."""
    generator = np.random.default_rng(seed)
    num_columns = {"multiclass": 3, "binary": 1, "multilabel": 2, "regression": 2}[task]
    noise = generator.normal(size=(num_runs, num_rows, num_columns))
    if task == "regression":
        targets = generator.normal(size=(num_rows, num_columns))
        predictions = signal * targets + noise
    elif task == "multiclass":
        targets = np.eye(num_columns)[generator.integers(num_columns, size=num_rows)]
        scores = np.exp(signal * targets + noise)
        predictions = scores / scores.sum(axis=2, keepdims=True)
    else:
        targets = (generator.random((num_rows, num_columns)) < 0.5).astype(float)
        predictions = 1 / (1 + np.exp(signal * (1 - 2 * targets) - noise))
    return Rows(predictions.astype(np.float32), generator.permutation(num_rows) % 3), targets.astype(np.float32)


def nested(name, rows, targets, task):
    return nested_predictions(METHODS[name].fit, rows, targets, task, resolve_metric("auto", task))


# Honesty


@pytest.mark.parametrize(("name", "task"), METHODS_AND_TASKS)
def test_a_folds_predictions_know_nothing_of_its_targets(name, task):
    rows, targets = make_rows(task)
    before, fitted = nested(name, rows, targets, task)
    assert sorted(fitted) == [0, 1, 2]
    for fold in range(3):
        held_out = rows.fold == fold
        changed = targets.copy()
        changed[held_out] = np.roll(targets[held_out], 1, axis=1) if task == "multiclass" else 1 - targets[held_out]
        after, _ = nested(name, rows, changed, task)
        np.testing.assert_array_equal(after[held_out], before[held_out])
        if name in ("simplex", "log_linear_pool", "linear", "lightgbm"):  # or the test would pass with no fit at all
            assert (after[~held_out] != before[~held_out]).any()


@pytest.mark.parametrize(("name", "task"), METHODS_AND_TASKS)
def test_a_folds_predictions_are_those_of_its_own_fit(name, task):
    rows, targets = make_rows(task)
    predictions, fitted = nested(name, rows, targets, task)
    assert predictions.shape == targets.shape
    assert predictions.dtype == np.float32
    for fold, fit in fitted.items():
        np.testing.assert_array_equal(fit.predict(rows.take(rows.fold == fold)), predictions[rows.fold == fold])


def test_features_stay_with_their_rows():
    rows, targets = make_rows(num_rows=300, signal=0.0)
    features = pd.DataFrame({"metadata_answer": targets.argmax(axis=1).astype(float)})
    telling = Rows(rows.predictions, rows.fold, features)
    predictions, _ = nested("lightgbm", telling, targets, "multiclass")
    assert (predictions.argmax(axis=1) == targets.argmax(axis=1)).mean() > 0.9


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["hill_climb", "simplex", "log_linear_pool", "linear", "lightgbm"])
def test_optimistic_predictions_do_know_the_targets_that_they_are_scored_on(name, task):
    if task not in METHODS[name].tasks:
        return
    rows, targets = make_rows(task)
    fold, metric = rows.fold == 0, resolve_metric("auto", task)
    changed = targets.copy()
    changed[fold] = rows.predictions[1, fold]  # as if run 1 were right in this fold
    if task == "multiclass":
        changed[fold] = np.eye(3)[changed[fold].argmax(axis=1)]
    elif task != "regression":
        changed[fold] = changed[fold] > 0.5
    before, after = (
        optimistic_predictions(METHODS[name].fit, rows, given, task, metric) for given in (targets, changed)
    )
    assert (after[fold] != before[fold]).any()


def random_classes(fold, num_classes, seed) -> np.ndarray:
    """Balanced within each fold: else what a fold has more of, the others have less of, and a fit to them is below
    chance on it. From a generator of their own, that has not drawn the runs."""
    generator, classes = np.random.default_rng(1000 + seed), np.empty(len(fold), np.int64)
    for number in np.unique(fold):
        classes[fold == number] = generator.permutation((fold == number).sum()) % num_classes
    return classes


@pytest.mark.parametrize("name", ["hill_climb", "log_linear_pool", "linear", "lightgbm"])
def test_canary_on_pure_noise_the_optimistic_score_rises_and_the_nested_one_does_not(name):
    """30 runs of noise, 150 rows of two random classes, 5 seeds.

    The share of right rows among 5 x 150 has a standard error of 0.018 around 0.5, and 0.073 is four of them. The
    optimistic means are 0.64 (hill climbing), 0.70, 0.71 and 0.76 (LightGBM); over 40 seeds the nested ones are 0.495,
    0.495, 0.497 and 0.514, with a standard error of 0.0065.
    """
    metric, honest, optimistic = resolve_metric("accuracy", "binary"), [], []
    for seed in range(5):
        rows, _ = make_rows("binary", num_rows=150, num_runs=30, seed=seed, signal=0.0)
        targets = random_classes(rows.fold, 2, seed).astype(np.float32)[:, None]
        fit = METHODS[name].fit
        honest.append(metric.function(targets, nested_predictions(fit, rows, targets, "binary", metric)[0]))
        optimistic.append(metric.function(targets, optimistic_predictions(fit, rows, targets, "binary", metric)))
    assert np.mean(optimistic) > 0.6
    assert abs(np.mean(honest) - 0.5) < 0.073


@pytest.mark.parametrize("name", METHODS)
def test_canary_random_labels_score_as_chance(name):
    """3 runs that agree with each other, 5 seeds of 150 rows in 3 classes: the standard error is 0.017, the bound 4."""
    scores = []
    for seed in range(5):
        rows, _ = make_rows(num_rows=150, seed=seed)
        targets = np.eye(3, dtype=np.float32)[random_classes(rows.fold, 3, seed)]
        predictions, _ = nested(name, rows, targets, "multiclass")
        scores.append(resolve_metric("accuracy", "multiclass").function(targets, predictions))
    assert abs(np.mean(scores) - 1 / 3) < 0.069


# Comparison


def compared(task="multiclass", metric="auto", names="abc", groups=None, methods=None, **options):
    rows, targets = make_rows(task, num_runs=len(names), **options)
    found = resolve_metric(metric, task)
    return compare(rows, list(names), targets, task, found, groups, methods), rows, targets, found


@pytest.mark.parametrize("task", TASKS)
def test_every_number_of_the_table_is_the_score_that_its_name_says(task):
    comparison, rows, targets, metric = compared(task)
    table = comparison.table
    assert table["name"].tolist() == ["a", "b", "c", *fitting_methods(task, 3)]
    assert table["kind"].tolist() == ["run"] * 3 + ["method"] * (len(table) - 3)
    assert table.columns[2] == "nested"
    assert table.columns[-1] == "optimistic"
    scores = [metric.function(targets, predictions) for predictions in rows.predictions]
    best = "abc"[np.argmax(scores) if metric.greater_is_better else np.argmin(scores)]
    assert comparison.best_single == best
    best_predictions = rows.predictions["abc".index(best)]
    for row in table.to_dict("records"):
        is_run = row["kind"] == "run"
        predictions = rows.predictions["abc".index(row["name"])] if is_run else comparison.nested[row["name"]]
        assert row["nested"] == metric.function(targets, predictions)
        assert (row["low"], row["high"]) == bootstrap_interval(metric, targets, predictions)
        if is_run:
            continue
        np.testing.assert_array_equal(predictions, nested(row["name"], rows, targets, task)[0])
        difference = paired_difference(metric, targets, predictions, best_predictions)
        assert (row["difference"], row["difference_low"], row["difference_high"]) == difference
        all_rows = optimistic_predictions(METHODS[row["name"]].fit, rows, targets, task, metric)
        assert row["optimistic"] == metric.function(targets, all_rows)
    candidates = {BEST_SINGLE: best_predictions} | dict(comparison.nested)
    assert comparison.chosen == simplest_within_noise(metric, targets, candidates)


def test_errors_of_their_own_make_the_plain_mean_the_choice():
    comparison, *_ = compared(num_rows=300, metric="log_loss", names="abcde", methods=["mean", "hill_climb"])
    assert comparison.chosen == "mean"


def test_equal_runs_leave_the_best_single_run_as_the_choice():
    rows, targets = make_rows()
    equal = Rows(np.repeat(rows.predictions[:1], 3, axis=0), rows.fold)
    metric = resolve_metric("accuracy", "multiclass")
    comparison = compare(equal, list("abc"), targets, "multiclass", metric, methods=["mean", "hill_climb", "simplex"])
    assert comparison.chosen == BEST_SINGLE
    assert comparison.best_single == "a"
    assert (comparison.table["difference"].dropna() == 0).all()


def test_methods_are_in_order_of_simplicity_however_they_are_asked_for():
    comparison, *_ = compared("regression", methods=["linear", "simplex", "rank_mean", "mean"])
    assert list(comparison.nested) == ["mean", "simplex", "linear"]


def test_one_run_is_compared_without_the_methods_that_need_several():
    comparison, *_ = compared(names="a")
    assert list(comparison.nested) == ["log_linear_pool", "linear", "lightgbm"]
    assert comparison.best_single == "a"
    single, *_ = compared(names="a", methods=["mean"])
    assert single.chosen == BEST_SINGLE
    assert comparison_table(single, "accuracy").count("\n") == 2


def test_groups_widen_the_intervals():
    groups = np.repeat([f"patient {number}" for number in range(6)], 15).astype(object)
    comparison, rows, targets, metric = compared(methods=["mean"], groups=groups)
    found = comparison.table.set_index("name").loc["mean", ["low", "high"]].tolist()
    assert tuple(found) == bootstrap_interval(metric, targets, comparison.nested["mean"], groups)
    assert tuple(found) != bootstrap_interval(metric, targets, comparison.nested["mean"])


# The table


@pytest.mark.parametrize("metric", ["accuracy", "log_loss", "average_precision"])
def test_the_table_shows_nested_first_optimistic_last_and_marks_the_choice(metric):
    comparison, *_ = compared(methods=["mean", "linear"], names=["baseline", "b", "efficientnet"], metric=metric)
    head, *lines, legend = comparison_table(comparison, metric).split("\n")
    places = [head.index(word) for word in (f"{metric} (nested)", f"minus {comparison.best_single}", "optimistic")]
    assert places == sorted(places)
    assert "optimistic: fitted and scored on the same rows" in legend
    assert len(lines) == len(comparison.table) == 5
    taken = comparison.best_single if comparison.chosen == BEST_SINGLE else comparison.chosen
    for line, row in zip(lines, comparison.table.to_dict("records"), strict=True):
        assert line.split()[0] == row["name"]
        is_method = row["kind"] == "method"
        shown = [row["nested"], row["difference"], row["optimistic"]] if is_method else [row["nested"]]
        for place, number, form in zip(places, shown, [".5f", "+.5f", ".5f"], strict=False):
            assert line[place:].startswith(format(number, form))  # aligned with its heading
        assert ("<-" in line) == (row["name"] == taken)
        assert line == line.rstrip()


def test_the_table_survives_a_csv():
    table = compared(methods=["mean", "linear"])[0].table
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(table.to_csv(index=False))), table)
