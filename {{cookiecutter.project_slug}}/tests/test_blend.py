"""kfold/ensemble/blend.py: what each blend promises on the rows that it is fitted to, and the formulas behind it."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime

from kfold.ensemble import blend
from kfold.ensemble.blend import (
    FAST_SCORERS,
    candidate_scorer,
    combine,
    geometric_mean,
    hill_climb,
    mean,
    mixture_loss,
    rank_mean,
    simplex,
    squared_error,
)
from kfold.ensemble.second_level import Rows
from kfold.metrics import CLASSIFICATION, METRICS, TASKS, Metric, resolve_metric

CLIMBED = [(task, name) for name in ("accuracy", "log_loss", "roc_auc", "rmse") for task in METRICS[name].tasks]
num_rows, num_runs, seeds = st.integers(5, 60), st.integers(1, 6), st.integers(0, 10**6)


def make_rows(task: str, num_rows=100, num_runs=3, seed=0, is_coarse=False) -> tuple[Rows, np.ndarray]:
    """Runs a little better than chance that share half of their noise, in four folds, and targets (N, C).

    Coarse: rounded to multiples of 1/4, so that there are ties, zeros and ones, and rows that do not sum to 1.
    """
    generator = np.random.default_rng(seed)
    num_columns = {"multiclass": 3, "binary": 1, "multilabel": 2, "regression": 2}[task]
    shape = num_rows, num_columns
    noise = generator.normal(size=shape) + generator.normal(size=(num_runs, *shape))
    if task == "multiclass":
        targets = np.eye(num_columns)[generator.integers(num_columns, size=num_rows)]
        scores = np.exp(targets + noise)
        predictions = scores / scores.sum(axis=2, keepdims=True)
    elif task == "regression":
        targets = generator.normal(size=shape) * [10, 1]
        predictions = targets + noise * [10, 1]
    else:
        targets = (generator.random(shape) < 0.4).astype(float)
        predictions = 1 / (1 + np.exp(-(2 * targets - 1 + noise)))
    if is_coarse:
        predictions = np.rint(predictions * 4) / 4
    return Rows(predictions.astype(np.float32), generator.permutation(num_rows) % 4), targets.astype(np.float32)


# Blends without anything to fit


@pytest.mark.parametrize("task", TASKS)
def test_the_mean_weighs_all_runs_alike_and_ignores_the_targets(task):
    rows, targets = make_rows(task)
    fitted = mean(rows, 1 - targets, task, resolve_metric("auto", task))
    np.testing.assert_allclose(fitted.predict(rows), rows.predictions.mean(axis=0), rtol=1e-5)
    assert fitted.predict(rows).dtype == np.float32
    assert fitted.model.tolist() == [pytest.approx(1 / 3)] * 3


@pytest.mark.parametrize("task", CLASSIFICATION)
@given(num_rows, num_runs, seeds)
@settings(max_examples=10)
def test_the_geometric_mean_of_equal_runs_is_the_run(task, num_rows, num_runs, seed):
    rows, targets = make_rows(task, num_rows, 1, seed)
    equal = Rows(np.repeat(rows.predictions, num_runs, axis=0), rows.fold)
    predictions = geometric_mean(equal, targets, task, resolve_metric("auto", task)).predict(equal)
    np.testing.assert_allclose(predictions, rows.predictions[0], rtol=1e-5)


@given(num_rows, num_runs, seeds, st.booleans())
@settings(max_examples=20)
def test_the_geometric_mean_of_classes_is_in_proportion_to_the_root_of_the_product(rows, runs, seed, is_coarse):
    rows, targets = make_rows("multiclass", rows, runs, seed, is_coarse)
    predictions = geometric_mean(rows, targets, "multiclass", resolve_metric("auto", "multiclass")).predict(rows)
    np.testing.assert_allclose(predictions.sum(axis=1), 1, atol=1e-6)
    if not is_coarse:
        expected = rows.predictions.astype(np.float64).prod(axis=0) ** (1 / len(rows.predictions))
        np.testing.assert_allclose(predictions, expected / expected.sum(axis=1, keepdims=True), rtol=1e-4)


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_the_geometric_mean_of_labels_is_the_same_for_yes_and_no(task):
    rows, targets = make_rows(task)
    predict = geometric_mean(rows, targets, task, resolve_metric("auto", task)).predict
    np.testing.assert_allclose(predict(Rows(1 - rows.predictions, rows.fold)), 1 - predict(rows), atol=1e-6)


BENT = (lambda p: 0.5 * p + 0.1, lambda p: p**3, np.exp, lambda p: -1 / (1 + p))


@pytest.mark.parametrize("task", CLASSIFICATION)
@given(num_rows, num_runs, seeds)
@settings(max_examples=10)
def test_the_rank_mean_ignores_any_monotone_transform_of_a_run_within_a_fold(task, num_rows, num_runs, seed):
    rows, targets = make_rows(task, num_rows, num_runs, seed)
    grid = np.rint(rows.predictions * 32).astype(np.float32) / 32  # coarse enough that no transform makes ties
    generator, bent = np.random.default_rng(seed), grid.copy()
    for run in range(num_runs):
        for number in range(4):
            of_fold = rows.fold == number
            bent[run, of_fold] = BENT[generator.integers(len(BENT))](grid[run, of_fold])
    predict = rank_mean(rows, targets, task, resolve_metric("auto", task)).predict
    np.testing.assert_array_equal(predict(Rows(bent, rows.fold)), predict(Rows(grid, rows.fold)))


def test_ranks_are_taken_within_the_fold_and_the_column_and_ties_share_theirs():
    predictions = np.array([[[0.9, 0.1], [0.8, 0.2], [0.8, 0.4], [0.1, 0.3], [0.2, 0.1]]], np.float32)
    rows = Rows(predictions, np.array([0, 0, 0, 1, 1]))
    ranks = rank_mean(rows, np.zeros((5, 2)), "multilabel", resolve_metric("auto", "multilabel")).predict(rows)
    expected = [[2.5 / 3, 0.5 / 3], [1 / 3, 0.5], [1 / 3, 2.5 / 3], [0.25, 0.75], [0.75, 0.25]]
    np.testing.assert_allclose(ranks, expected, rtol=1e-6)
    of_classes = rank_mean(rows, np.zeros((5, 2)), "multiclass", resolve_metric("auto", "multiclass")).predict(rows)
    np.testing.assert_allclose(of_classes, ranks / ranks.sum(axis=1, keepdims=True), rtol=1e-6)


# Hill climbing


@pytest.mark.parametrize(("task", "name"), CLIMBED)
@given(num_rows, num_runs, seeds, st.booleans())
@settings(max_examples=10)
def test_hill_climbing_is_never_worse_than_the_best_single_run_that_it_saw(task, name, rows, runs, seed, is_coarse):
    rows, targets = make_rows(task, rows, runs, seed, is_coarse)
    metric = resolve_metric(name, task)
    fitted = hill_climb(rows, targets, task, metric)
    score = metric.function(targets, fitted.predict(rows))
    for single in rows.predictions:
        expected = metric.function(targets, single)
        assert score == pytest.approx(expected, abs=1e-6, nan_ok=True) or not metric.better(expected, score)
    assert (fitted.model >= 0).all()
    assert fitted.model.sum() == pytest.approx(1)


def test_hill_climbing_takes_what_helps_and_leaves_what_does_not():
    """Two runs with opposite errors, one with both, and noise: half of each of the first two is without error."""
    _, targets = make_rows("regression")
    error, noise = np.random.default_rng(1).normal(size=(2, *targets.shape)).astype(np.float32)
    rows = Rows(np.stack([targets + 30 * noise, targets + error, targets + 3 * error, targets - error]), np.zeros(100))
    assert hill_climb(rows, targets, "regression", resolve_metric("rmse", "regression")).model.tolist() == [
        0,
        0.5,
        0,
        0.5,
    ]


def test_the_same_run_may_be_added_again():
    _, targets = make_rows("regression")
    error = np.random.default_rng(1).normal(size=targets.shape).astype(np.float32)
    rows = Rows(np.stack([targets + error, targets - 3 * error]), np.zeros(100))
    fitted = hill_climb(rows, targets, "regression", resolve_metric("rmse", "regression"))
    assert fitted.model.tolist() == [0.75, 0.25]
    assert fitted.note == "0.75 0.25"


def test_of_equal_runs_the_earlier_is_taken():
    rows, targets = make_rows("multiclass", num_runs=1)
    equal = Rows(np.repeat(rows.predictions, 3, axis=0), rows.fold)
    for name in ("accuracy", "macro_f1", "log_loss"):
        fitted = hill_climb(equal, targets, "multiclass", resolve_metric(name, "multiclass"))
        assert fitted.model.tolist() == [1, 0, 0], name


def test_where_the_score_is_undefined_the_first_run_is_taken():
    rows, targets = make_rows("binary")
    assert hill_climb(rows, 0 * targets, "binary", resolve_metric("roc_auc", "binary")).model.tolist() == [1, 0, 0]


@pytest.mark.parametrize(("task", "name"), sorted(FAST_SCORERS))
@given(num_rows, num_runs, seeds, st.booleans(), st.lists(st.integers(0, 5), max_size=5))
@settings(max_examples=15)
def test_the_fast_scorers_give_the_numbers_of_the_metric(task, name, rows, runs, seed, is_coarse, picks):
    rows, targets = make_rows(task, rows, runs, seed, is_coarse)
    metric = resolve_metric(name, task)
    taken = [pick % runs for pick in picks]
    total = rows.predictions[taken].sum(axis=0, dtype=np.float64)
    blends = [rows.predictions[[*taken, one]].mean(axis=0, dtype=np.float64).astype(np.float32) for one in range(runs)]
    expected = [metric.function(targets, values) for values in blends]
    scores = candidate_scorer(rows.predictions, targets, task, metric)(total, len(taken))
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-12)


def test_the_fast_log_loss_of_a_sure_mistake_is_the_metrics():
    """Means between the largest number below 1 and 1 do not exist in float32, and the metric sees float32."""
    predictions = np.array([1, np.nextafter(np.float32(1), np.float32(0))], np.float32).reshape(2, 1, 1)
    targets, metric = np.zeros((1, 1), np.float32), resolve_metric("log_loss", "binary")
    for total, count in ((np.zeros((1, 1)), 0), (predictions[0].astype(np.float64), 1)):
        means = ((total + predictions.astype(np.float64)) / (count + 1)).astype(np.float32)
        scores = candidate_scorer(predictions, targets, "binary", metric)(total, count)
        np.testing.assert_allclose(scores, [metric.function(targets, mean) for mean in means], rtol=1e-9)


def test_the_fast_log_loss_of_a_row_of_zeros_is_the_metrics():
    targets, metric = np.eye(3, dtype=np.float32), resolve_metric("log_loss", "multiclass")
    predictions = np.stack([np.zeros((3, 3), np.float32), np.eye(3, dtype=np.float32)[:, ::-1]])
    scores = candidate_scorer(predictions, targets, "multiclass", metric)(np.zeros((3, 3)), 0)
    np.testing.assert_allclose(scores, [metric.function(targets, run) for run in predictions], rtol=1e-9)


@pytest.mark.parametrize(("task", "name"), sorted(FAST_SCORERS))
def test_only_our_own_metric_takes_the_fast_path(task, name, monkeypatch):
    rows, targets = make_rows(task)
    taken = []
    monkeypatch.setitem(FAST_SCORERS, (task, name), lambda *given: taken.append(name) or (lambda total, count: [0.5]))
    candidate_scorer(rows.predictions, targets, task, resolve_metric(name, task))
    assert taken == [name]

    def of_a_user(targets, predictions):
        return float(predictions[0, 0])

    for function in (of_a_user, partial(lambda task, *values: of_a_user(*values), task)):
        scores = candidate_scorer(rows.predictions, targets, task, Metric(name, function, True, "labels"))(0, 0)
        np.testing.assert_array_equal(scores, rows.predictions[:, 0, 0])
    assert taken == [name]


def climb_plainly(predictions: np.ndarray, targets: np.ndarray, metric: Metric) -> np.ndarray:
    """Counts (M,) as the paper says it, a call of the metric for each candidate."""
    taken, best = [], float("nan")
    while len(taken) < blend.MOST_STEPS:
        blends = [predictions[[*taken, run]].mean(axis=0, dtype=np.float64) for run in range(len(predictions))]
        scores = [metric.function(targets, one.astype(np.float32)) for one in blends]
        pick = int(np.argmax(scores) if metric.greater_is_better else np.argmin(scores))
        if taken and not metric.better(scores[pick], best):
            break
        best = scores[pick]
        taken.append(pick)
    return np.bincount(taken, minlength=len(predictions))


@pytest.mark.parametrize(("task", "name"), [*FAST_SCORERS, ("multiclass", "map_at_5"), ("binary", "roc_auc")])
def test_hill_climbing_takes_the_steps_of_the_plain_loop(task, name):
    rows, targets = make_rows(task, num_rows=150, num_runs=5, seed=1)
    metric = resolve_metric(name, task)
    counts = climb_plainly(rows.predictions, targets, metric)
    np.testing.assert_allclose(hill_climb(rows, targets, task, metric).model, counts / counts.sum())
    assert (counts > 0).sum() > 1  # or this test says nothing


def test_a_gain_that_the_metric_does_not_see_leaves_the_best_single_run(monkeypatch):
    rows, targets = make_rows("regression")
    worse = Rows(np.stack([targets, targets + 1]).astype(np.float32), rows.fold)
    scores = iter([[0.0, 1.0], [1.0, -1.0], [1.0, 1.0]])  # a scorer that takes adding run 1 for a gain
    lying = {("regression", "rmse"): lambda predictions, targets: lambda total, count: np.array(next(scores))}
    monkeypatch.setattr(blend, "FAST_SCORERS", lying)
    metric = resolve_metric("rmse", "regression")
    np.testing.assert_array_equal(hill_climb(worse, targets, "regression", metric).model, [1, 0])


def test_hill_climbing_stops_after_so_many_steps(monkeypatch):
    rows, targets = make_rows("multiclass", num_rows=300, num_runs=6)
    monkeypatch.setattr(blend, "MOST_STEPS", 3)
    weights = hill_climb(rows, targets, "multiclass", resolve_metric("log_loss", "multiclass")).model
    np.testing.assert_allclose(weights * 3, np.rint(weights * 3))


# Weights on the simplex


def loss_of(task: str, targets: np.ndarray, predictions: np.ndarray) -> float:
    """What the weights should make least: log loss, or squared error in units of each column's variance."""
    if task == "regression":
        return float(np.square((predictions - targets) / targets.std(axis=0)).mean())
    return resolve_metric("log_loss", task).function(targets, predictions)


@pytest.mark.parametrize("task", TASKS)
@given(num_rows, num_runs, seeds)
@settings(max_examples=10)
def test_simplex_weights_lose_no_more_than_equal_weights_or_any_single_run(task, num_rows, num_runs, seed):
    rows, targets = make_rows(task, num_rows, num_runs, seed)
    fitted = simplex(rows, targets, task, resolve_metric("auto", task))
    assert (fitted.model >= 0).all()
    assert fitted.model.sum() == pytest.approx(1)
    loss = loss_of(task, targets, fitted.predict(rows))
    assert loss <= loss_of(task, targets, rows.predictions.mean(axis=0)) + 1e-6
    for single in rows.predictions:
        assert loss <= loss_of(task, targets, single) + 1e-6


@pytest.mark.parametrize("task", TASKS)
def test_no_weights_of_a_fine_grid_lose_less_than_the_simplex_finds(task):
    rows, targets = make_rows(task)
    found = loss_of(task, targets, simplex(rows, targets, task, resolve_metric("auto", task)).predict(rows))
    grid = [np.array([a, b, 20 - a - b]) / 20 for a in range(21) for b in range(21 - a)]
    assert found <= min(loss_of(task, targets, combine(rows.predictions, weights)) for weights in grid) + 1e-6


def test_a_solver_that_gives_up_costs_nothing(monkeypatch):
    """It answers with the worst single run: equal weights and the other runs are looked at too."""
    rows, targets = make_rows("regression")
    rows = Rows(rows.predictions + np.array([0, 9, 30], np.float32)[:, None, None], rows.fold)
    monkeypatch.setattr(blend, "minimize", lambda *_, **__: type("Result", (), {"x": np.array([0.0, 0, 1])}))
    assert simplex(rows, targets, "regression", resolve_metric("rmse", "regression")).model.tolist() == [1, 0, 0]


@pytest.mark.parametrize("task", TASKS)
@given(num_rows, num_runs, seeds)
@settings(max_examples=10)
def test_the_gradients_are_those_of_finite_differences(task, num_rows, num_runs, seed):
    rows, targets = make_rows(task, num_rows, num_runs, seed)
    loss = squared_error(rows.predictions, targets) if task == "regression" else mixture_loss(rows, targets, task)
    weights = np.random.default_rng(seed).uniform(0.1, 1, num_runs)
    weights /= weights.sum()
    numeric = approx_fprime(weights, lambda w: loss(w)[0], 1e-7)
    np.testing.assert_allclose(loss(weights)[1], numeric, rtol=1e-4, atol=1e-5)
    assert loss(weights)[0] == pytest.approx(loss_of(task, targets, combine(rows.predictions, weights)), rel=1e-4)


def test_a_constant_regression_column_does_not_decide_the_weights():
    rows, targets = make_rows("regression", num_rows=200, num_runs=2)
    targets[:, 1] = 7
    noise = np.random.default_rng(0).normal(size=(2, 200, 2)) * np.array([[[0.5, 0.2]], [[5.0, 0.1]]])
    noisy = Rows((targets + noise).astype(np.float32), rows.fold)
    weights = simplex(noisy, targets, "regression", resolve_metric("rmse", "regression")).model
    assert weights[0] > 0.5  # a tenth of the error where targets vary; twice the error where they do not


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("fit", [mean, geometric_mean, rank_mean, hill_climb, simplex])
def test_the_same_fit_gives_the_same_bytes(task, fit):
    rows, targets = make_rows(task, is_coarse=True)
    if task == "regression" and fit in (geometric_mean, rank_mean):
        return
    first, second = (fit(rows, targets, task, resolve_metric("auto", task)).predict(rows) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert first.dtype == np.float32
