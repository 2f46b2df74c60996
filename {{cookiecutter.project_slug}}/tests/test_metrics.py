"""Scores: against definitions worked out by hand, and properties that hold for all of them."""

import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from kfold.errors import UserError
from kfold.intervals import bootstrap_interval, paired_difference, resamples
from kfold.metrics import METRICS, TASKS, Metric, decide, resolve_metric

NAMES_AND_TASKS = [(name, task) for name, choice in METRICS.items() for task in choice.tasks]
PERFECT = {name: 0.0 if name in ("log_loss", "rmse", "mae") else 1.0 for name in METRICS}


def make_rows(task: str, num_rows: int = 200, num_columns: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Targets and better-than-chance predictions, (N, C) float32."""
    generator = np.random.default_rng(seed)
    noise = generator.random((num_rows, num_columns))
    if task == "multiclass":
        targets = np.eye(num_columns)[generator.integers(num_columns, size=num_rows)]
        predictions = targets + 2 * noise
        predictions /= predictions.sum(axis=1, keepdims=True)
    elif task == "regression":
        targets = generator.integers(0, 5, size=(num_rows, num_columns)).astype(float)
        predictions = targets + 2 * noise - 1
    else:
        columns = 1 if task == "binary" else num_columns
        targets = (generator.random((num_rows, columns)) < 0.4).astype(float)
        predictions = 0.4 * targets + 0.6 * noise[:, :columns]
    return targets.astype(np.float32), predictions.astype(np.float32)


@pytest.mark.parametrize(("name", "task"), NAMES_AND_TASKS)
def test_permuting_the_rows_changes_no_score(name, task):
    targets, predictions = make_rows(task)
    order = np.random.default_rng(1).permutation(len(targets))
    score = resolve_metric(name, task).function
    assert score(targets[order], predictions[order]) == pytest.approx(score(targets, predictions), abs=1e-9)


@pytest.mark.parametrize(("name", "task"), NAMES_AND_TASKS)
def test_a_perfect_prediction_has_the_best_score_and_none_is_better(name, task):
    targets, predictions = make_rows(task)
    metric = resolve_metric(name, task)
    best, score = metric.function(targets, targets), metric.function(targets, predictions)
    assert best == pytest.approx(PERFECT[name], abs=1e-6)
    assert metric.better(best, score)
    assert not metric.better(score, best)
    assert isinstance(score, float)


@pytest.mark.parametrize(("name", "task"), [pair for pair in NAMES_AND_TASKS if pair[0] != "quadratic_kappa"])
def test_permuting_the_columns_changes_no_score_but_that_of_ordered_grades(name, task):
    targets, predictions = make_rows(task)
    order = np.random.default_rng(2).permutation(targets.shape[1])
    score = resolve_metric(name, task).function
    assert score(targets[:, order], predictions[:, order]) == pytest.approx(score(targets, predictions), abs=1e-6)


@given(st.integers(1, 30), st.integers(2, 8), st.integers(0, 10**6))
@settings(max_examples=60)
def test_map_at_5_equals_brute_force(num_rows, num_classes, seed):
    generator = np.random.default_rng(seed)
    targets = np.eye(num_classes)[generator.integers(num_classes, size=num_rows)]
    predictions = generator.integers(0, 5, size=(num_rows, num_classes)) / 4  # ties on purpose
    total = 0.0
    for truth, row in zip(targets, predictions, strict=True):
        ranked = sorted(range(num_classes), key=lambda c: (-row[c], c))[:5]
        total += sum(1 / rank for rank, c in enumerate(ranked, start=1) if truth[c] == 1)
    assert resolve_metric("map_at_5", "multiclass").function(targets, predictions) == pytest.approx(total / num_rows)


@given(st.integers(2, 40), st.integers(0, 10**6))
@settings(max_examples=40)
def test_roc_auc_is_the_share_of_pairs_in_the_right_order(num_rows, seed):
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 2, size=(num_rows, 1)).astype(float)
    predictions = generator.integers(0, 6, size=(num_rows, 1)) / 5
    score = resolve_metric("roc_auc", "binary").function(targets, predictions)
    positive, negative = predictions[targets == 1], predictions[targets == 0]
    if not len(positive) or not len(negative):
        assert np.isnan(score)
        return
    difference = positive[:, None] - negative[None, :]
    assert score == pytest.approx((difference > 0).mean() + 0.5 * (difference == 0).mean())


def test_roc_auc_of_classes_is_one_against_the_rest():
    targets, predictions = make_rows("multiclass")
    expected = sk.roc_auc_score(targets.argmax(axis=1), predictions, multi_class="ovr", average="macro")
    assert resolve_metric("roc_auc", "multiclass").function(targets, predictions) == pytest.approx(expected)


def test_labels_are_argmax_or_at_least_one_half():
    row = np.array([[0.5, 0.49999, 0.2]])
    assert decide("multiclass", row).tolist() == [0]
    assert decide("multilabel", row).tolist() == [[1, 0, 0]]
    assert decide("binary", np.array([[0.5], [0.4999]])).tolist() == [1, 0]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=40))
@settings(max_examples=60)
def test_quadratic_kappa_is_one_minus_observed_over_expected_disagreement(pairs):
    truth, grades = np.array(pairs).T
    score = resolve_metric("quadratic_kappa", "multiclass").function(np.eye(5)[truth], np.eye(5)[grades])
    observed = ((truth - grades) ** 2).mean()
    expected = ((truth[:, None] - grades[None, :]) ** 2).mean()
    if truth.min() == truth.max():
        assert np.isnan(score)
    else:
        assert score == pytest.approx(1 - observed / expected)


def test_quadratic_kappa_of_values_rounds_them_into_the_range_seen():
    targets = np.array([[0], [1], [3], [4]], np.float32)
    predictions = np.array([[-2.0], [1.4], [2.6], [9.0]], np.float32)
    assert resolve_metric("quadratic_kappa", "regression").function(targets, predictions) == pytest.approx(1)


def test_f_beta_micro_counts_all_cells_with_recall_four_times_precision():
    targets, predictions = make_rows("multilabel")
    labels = predictions >= 0.5
    truth = targets == 1
    hits, false, missed = (truth & labels).sum(), (~truth & labels).sum(), (truth & ~labels).sum()
    expected = 5 * hits / (5 * hits + 4 * missed + false)
    assert resolve_metric("f_beta_micro", "multilabel").function(targets, predictions) == pytest.approx(expected)


def test_f1_samples_takes_a_row_rightly_left_empty_for_right():
    targets = np.array([[0, 0], [1, 0]], np.float32)
    predictions = np.array([[0.1, 0.1], [0.9, 0.9]], np.float32)
    assert resolve_metric("f1_samples", "multilabel").function(targets, predictions) == pytest.approx((1 + 2 / 3) / 2)


def test_log_loss_scales_rows_to_one_and_never_is_infinite():
    score = resolve_metric("log_loss", "multiclass").function
    assert score(np.eye(2), np.array([[2.0, 2.0], [0.0, 4.0]])) == pytest.approx(np.log(2) / 2)
    assert np.isfinite(score(np.eye(2), 1 - np.eye(2)))
    targets, predictions = make_rows("multilabel")
    expected = -np.where(targets == 1, np.log(predictions), np.log1p(-predictions.astype(float))).mean()
    assert resolve_metric("log_loss", "multilabel").function(targets, predictions) == pytest.approx(expected, rel=1e-5)


def test_rmse_of_several_columns_is_the_mean_of_their_rmse():
    targets, predictions = np.zeros((2, 2), np.float32), np.array([[3, 0], [3, 2]], np.float32)
    assert resolve_metric("rmse", "regression").function(targets, predictions) == pytest.approx((3 + 2**0.5) / 2)


@pytest.mark.parametrize(("name", "task"), NAMES_AND_TASKS)
def test_no_score_warns_where_a_class_is_absent(name, task):
    targets, predictions = make_rows(task)
    first = np.flatnonzero((targets == targets[0]).all(axis=1))[:3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve_metric(name, task).function(targets[first], predictions[first])


@pytest.mark.parametrize(
    ("task", "name"),
    [("multiclass", "accuracy"), ("binary", "roc_auc"), ("multilabel", "roc_auc"), ("regression", "rmse")],
)
def test_auto_is_the_usual_metric_of_the_task(task, name):
    assert resolve_metric("auto", task).name == name


@pytest.mark.parametrize("task", TASKS)
def test_a_metric_that_does_not_fit_is_refused_with_those_that_do(task):
    wrong = next(name for name, choice in METRICS.items() if task not in choice.tasks)
    for name in (wrong, "acuracy"):
        with pytest.raises(UserError) as caught:
            resolve_metric(name, task)
        assert len(caught.value.problems) == 1
        for fitting in (key for key, choice in METRICS.items() if task in choice.tasks):
            assert fitting in caught.value.problems[0]


def test_any_score_beats_an_undefined_one():
    metric = resolve_metric("rmse", "regression")
    assert metric.better(3.0, float("nan"))
    assert not metric.better(float("nan"), 3.0)
    assert not metric.better(float("nan"), float("nan"))


# Noise


@pytest.mark.parametrize(("name", "task"), [("accuracy", "multiclass"), ("roc_auc", "binary"), ("mae", "regression")])
def test_the_interval_holds_the_score_and_shrinks_with_more_rows(name, task, all_resamples):
    metric, widths = resolve_metric(name, task), []
    for num_rows in (60, 960):
        targets, predictions = make_rows(task, num_rows)
        low, high = bootstrap_interval(metric, targets, predictions)
        assert low <= metric.function(targets, predictions) <= high
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0]  # 4 times narrower, give or take


def test_the_interval_of_a_share_is_as_wide_as_theory_says(all_resamples):
    targets, predictions = make_rows("multiclass", 1000)
    metric = resolve_metric("accuracy", "multiclass")
    share = metric.function(targets, predictions)
    low, high = bootstrap_interval(metric, targets, predictions)
    assert high - low == pytest.approx(2 * 1.96 * (share * (1 - share) / 1000) ** 0.5, rel=0.15)


def test_the_interval_covers_the_truth_about_95_times_in_100(all_resamples):
    metric, covered = resolve_metric("accuracy", "binary"), 0
    generator = np.random.default_rng(0)
    for _ in range(100):
        predictions = (generator.random((150, 1)) < 0.8).astype(np.float32)  # right with probability 0.8
        low, high = bootstrap_interval(fast_accuracy(metric), np.ones((150, 1), np.float32), predictions)
        covered += low <= 0.8 <= high
    assert 88 <= covered <= 99


def fast_accuracy(metric: Metric) -> Metric:
    return Metric(metric.name, lambda targets, predictions: float((targets == predictions).mean()), True, "labels")


def test_rows_that_belong_together_give_a_wider_interval(all_resamples):
    """64 patients with 16 equal rows each know as much as 64 rows, not as 1,024."""
    metric = resolve_metric("accuracy", "multiclass")
    targets, predictions = make_rows("multiclass", 64)
    patients = np.repeat(np.array([f"p{i}" for i in range(64)], dtype=object), 16)
    repeated = np.repeat(targets, 16, axis=0), np.repeat(predictions, 16, axis=0)
    low, high = bootstrap_interval(metric, *repeated, patients)
    narrow_low, narrow_high = bootstrap_interval(metric, *repeated)
    single_low, single_high = bootstrap_interval(metric, targets, predictions)
    assert high - low > 3 * (narrow_high - narrow_low)
    assert high - low == pytest.approx(single_high - single_low, rel=0.15)


def test_a_resample_takes_whole_groups_and_rows_without_group_alone():
    groups = np.array(["a", "", "b", "a", "", "b", "b"], dtype=object)
    members = [{0, 3}, {1}, {2, 5, 6}, {4}]
    seen = set()
    for rows in resamples(len(groups), groups, seed=3):
        counts = np.bincount(rows, minlength=len(groups))
        assert all(len({counts[row] for row in unit}) == 1 for unit in members)
        assert sum(counts[min(unit)] for unit in members) == len(members)
        seen.update(rows.tolist())
    assert seen == set(range(len(groups)))


def test_empty_groups_are_as_no_groups():
    targets, predictions = make_rows("binary")
    metric, none = resolve_metric("roc_auc", "binary"), np.full(len(targets), "", object)
    assert bootstrap_interval(metric, targets, predictions, none) == bootstrap_interval(metric, targets, predictions)


def test_resamples_without_a_class_are_left_out():
    targets, predictions = make_rows("binary", 30)
    targets[:] = 0
    targets[4] = 1  # absent from a third of the resamples
    low, high = bootstrap_interval(resolve_metric("roc_auc", "binary"), targets, predictions)
    assert 0 <= low <= high <= 1


def test_an_interval_that_cannot_be_known_is_nan():
    metric = resolve_metric("accuracy", "multiclass")
    targets, predictions = make_rows("multiclass", 10)
    assert np.isnan(bootstrap_interval(metric, targets[:1], predictions[:1])).all()
    assert np.isnan(bootstrap_interval(metric, targets, predictions, np.full(10, "one patient", object))).all()


def test_a_seed_gives_the_same_interval_and_another_seed_another():
    metric, rows = resolve_metric("rmse", "regression"), make_rows("regression")
    assert bootstrap_interval(metric, *rows, seed=1) == bootstrap_interval(metric, *rows, seed=1)
    assert bootstrap_interval(metric, *rows, seed=1) != bootstrap_interval(metric, *rows, seed=2)


def test_equal_predictions_differ_by_exactly_nothing():
    targets, predictions = make_rows("multiclass")
    metric = resolve_metric("accuracy", "multiclass")
    assert paired_difference(metric, targets, predictions, predictions.copy()) == (0.0, 0.0, 0.0)


def test_pairing_finds_a_small_gain_that_two_separate_intervals_hide(all_resamples):
    targets, worse = make_rows("multiclass", 400)
    better = worse.copy()
    wrong = np.flatnonzero(worse.argmax(axis=1) != targets.argmax(axis=1))[:12]
    better[wrong] = targets[wrong]
    metric = resolve_metric("accuracy", "multiclass")
    difference, low, high = paired_difference(metric, targets, better, worse)
    assert difference == pytest.approx(12 / 400)
    assert 0 < low <= difference <= high
    assert bootstrap_interval(metric, targets, better)[0] < bootstrap_interval(metric, targets, worse)[1]
    assert paired_difference(metric, targets, worse, better)[0] == pytest.approx(-12 / 400)


def test_fifty_thousand_rows_of_ten_classes_take_seconds(all_resamples):
    targets, predictions = make_rows("multiclass", 50_000, 10)
    started = time.perf_counter()
    bootstrap_interval(resolve_metric("accuracy", "multiclass"), targets, predictions)
    assert time.perf_counter() - started < 20  # 1.6 s alone on one core
