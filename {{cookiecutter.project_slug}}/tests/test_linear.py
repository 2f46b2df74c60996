"""kfold/ensemble/linear.py: the pool's fit and slope, and regressions on awkward rows."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime

from kfold.ensemble import linear as module
from kfold.ensemble.linear import linear, log_linear_pool, log_loss_and_slope, to_scores
from kfold.ensemble.second_level import Rows
from kfold.metrics import CLASSIFICATION, TASKS, resolve_metric


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    """Of scikit-learn and scipy too: a fit that did not converge must not pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # How scikit-learn 1.6, Kaggle's, calls scipy 1.16.
        warnings.filterwarnings("ignore", "scipy.optimize: The `disp` and `iprint` options", DeprecationWarning)
        yield


def make_rows(task="multiclass", num_rows=120, num_runs=3, seed=0) -> tuple[Rows, np.ndarray]:
    """Runs better than chance in three folds, and the targets (N, C)."""
    generator = np.random.default_rng(seed)
    num_columns = {"multiclass": 3, "binary": 1, "multilabel": 2, "regression": 2}[task]
    noise = generator.normal(size=(num_runs, num_rows, num_columns))
    if task == "regression":
        targets = generator.normal(size=(num_rows, num_columns)) * 10
        predictions = targets + noise
    elif task == "multiclass":
        targets = np.eye(num_columns)[generator.integers(num_columns, size=num_rows)]
        scores = np.exp(targets + noise)
        predictions = scores / scores.sum(axis=2, keepdims=True)
    else:
        targets = (generator.random((num_rows, num_columns)) < 0.4).astype(float)
        predictions = 1 / (1 + np.exp(1 - 2 * targets - noise))
    return Rows(predictions.astype(np.float32), generator.permutation(num_rows) % 3), targets.astype(np.float32)


def fit(method, rows, targets, task):
    return method(rows, targets, task, resolve_metric("auto", task))


def loss_of(predictions, targets, task) -> float:
    return resolve_metric("log_loss", task).function(targets, predictions)


FITS = [(log_linear_pool, task) for task in CLASSIFICATION] + [(linear, task) for task in TASKS]


@pytest.mark.parametrize(("method", "task"), FITS)
def test_a_fit_beats_the_mean_of_the_targets_on_rows_it_never_saw_and_repeats_to_the_byte(method, task):
    rows, targets = make_rows(task)
    held_out = rows.fold == 0
    first, second = (fit(method, rows.take(~held_out), targets[~held_out], task) for _ in range(2))
    predictions = first.predict(rows.take(held_out))
    assert predictions.shape == targets[held_out].shape
    assert predictions.dtype == np.float32
    assert predictions.tobytes() == second.predict(rows.take(held_out)).tobytes()
    assert first.note == second.note
    error = np.square(predictions - targets[held_out]).mean()
    assert error < 0.8 * np.square(targets[~held_out].mean(axis=0) - targets[held_out]).mean()
    if task == "multiclass":
        np.testing.assert_allclose(predictions.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(("method", "task"), FITS)
def test_a_row_is_predicted_the_same_whatever_rows_stand_beside_it(method, task):
    rows, targets = make_rows(task)
    fitted = fit(method, rows, targets, task)
    some = np.array([5, 3, 99])
    np.testing.assert_allclose(fitted.predict(rows.take(some)), fitted.predict(rows)[some], rtol=1e-5)


@pytest.mark.parametrize(("method", "task"), FITS)
def test_the_order_of_the_runs_does_not_matter(method, task):
    rows, targets = make_rows(task)
    order = [2, 0, 1]
    turned = Rows(rows.predictions[order], rows.fold)
    found, expected = (fit(method, given, targets, task).predict(given) for given in (turned, rows))
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-3)  # where the solvers stop


@pytest.mark.parametrize(("method", "task"), FITS)
def test_certain_equal_and_constant_runs_can_be_fitted(method, task):
    rows, targets = make_rows(task)
    constant = np.full_like(rows.predictions[0], 1 / 3)
    certain = targets[np.random.default_rng(1).permutation(len(targets))]
    awkward = Rows(np.stack([certain, certain, constant, rows.predictions[0]]), rows.fold)
    assert np.isfinite(fit(method, awkward, targets, task).predict(awkward)).all()


@pytest.mark.parametrize(("method", "task"), FITS)
def test_runs_that_are_right_everywhere_can_be_fitted(method, task):
    rows, targets = make_rows(task)
    perfect = Rows(np.stack([targets, targets]), rows.fold)
    found = fit(method, perfect, targets, task).predict(perfect)
    np.testing.assert_allclose(found, targets, atol=0.2 if task == "regression" else 0.05)  # penalised


# Pool


@given(st.sampled_from(CLASSIFICATION), st.integers(4, 60), st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=30)
def test_the_fitted_pool_is_no_worse_than_equal_weights_without_bias(task, num_rows, num_runs, seed):
    rows, targets = make_rows(task, num_rows, num_runs, seed)
    plain = to_scores(rows.predictions, task).mean(axis=0)
    fitted = fit(log_linear_pool, rows, targets, task).predict(rows)
    assert loss_of(fitted, targets, task) <= log_loss_and_slope(plain, targets, task)[0] + 1e-6


@pytest.mark.parametrize("task", CLASSIFICATION)
def test_the_slope_is_the_derivative_of_the_metrics_log_loss(task):
    rows, targets = make_rows(task, num_rows=5)
    scores = np.random.default_rng(1).normal(size=targets.shape)
    loss, slope = log_loss_and_slope(scores, targets, task)
    exponentials = np.exp(scores)
    total = exponentials.sum(axis=1, keepdims=True) if task == "multiclass" else 1 + exponentials
    assert loss == pytest.approx(loss_of(exponentials / total, targets, task))
    numeric = approx_fprime(
        scores.ravel(), lambda flat: log_loss_and_slope(flat.reshape(scores.shape), targets, task)[0]
    )
    np.testing.assert_allclose(slope.ravel(), numeric, atol=1e-6)


@pytest.mark.parametrize("task", CLASSIFICATION)
def test_the_pool_is_where_the_penalised_loss_is_flat(task):
    rows, targets = make_rows(task)
    weights, biases = fit(log_linear_pool, rows, targets, task).model
    scores = to_scores(rows.predictions, task)

    def loss(parameters):
        pooled = np.einsum("m,mnc->nc", parameters[:3], scores) + parameters[3:]
        away = parameters - np.array([1 / 3] * 3 + [0] * (len(parameters) - 3))
        return log_loss_and_slope(pooled, targets, task)[0] + module.PENALTY * away @ away

    np.testing.assert_allclose(approx_fprime(np.concatenate([weights, biases]), loss), 0, atol=1e-4)


def test_the_pool_mends_a_run_that_is_twice_too_sure_and_shifted():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 2))
    targets = (generator.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    shown = 2 * (logits - [1.0, -0.5])  # one bias a label
    rows = Rows((1 / (1 + np.exp(-shown)))[None].astype(np.float32), np.arange(20_000) % 3)
    weights, biases = fit(log_linear_pool, rows, targets, "multilabel").model
    np.testing.assert_allclose(weights, 0.5, atol=0.02)  # standard error 0.006
    np.testing.assert_allclose(biases, [1.0, -0.5], atol=0.06)


def test_the_note_is_the_weights_by_run():
    rows, targets = make_rows()
    fitted = fit(log_linear_pool, rows, targets, "multiclass")
    assert fitted.note == " ".join(f"{weight:.2f}" for weight in fitted.model[0])


# Regression on predictions


def test_linear_undoes_an_affine_distortion_of_each_column():
    rows, targets = make_rows("regression", num_rows=300)
    distorted = Rows((targets[:, ::-1] * [3, -0.5] + [7, 100])[None].astype(np.float32), rows.fold)
    fitted = fit(linear, distorted, targets, "regression")
    np.testing.assert_allclose(fitted.predict(distorted), targets, atol=0.01)
    assert fitted.note.startswith("ridge penalty")


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_a_label_with_one_class_is_predicted_but_never_certain(task, value):
    rows, targets = make_rows(task)
    targets[:, -1] = value
    found = fit(linear, rows, targets, task).predict(rows)
    np.testing.assert_allclose(found[:, -1], (120 * value + 1) / 122, rtol=1e-6)  # as LightGBM's stacker has it
    pooled = fit(log_linear_pool, rows, targets, task).predict(rows)
    assert ((pooled > 0) & (pooled < 1)).all()


@pytest.mark.parametrize("lacking", [0, 1, 2])
def test_a_class_that_the_rows_lack_keeps_its_column_and_a_small_probability(lacking):
    rows, targets = make_rows()
    chosen = targets[:, lacking] == 0
    found = fit(linear, rows.take(chosen), targets[chosen], "multiclass").predict(rows)
    np.testing.assert_allclose(found[:, lacking], 1 / (chosen.sum() + 3), rtol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    right = found.argmax(axis=1) == targets.argmax(axis=1)
    assert right[chosen].mean() > 0.7
    alone = targets[:, lacking] == 1
    found = fit(linear, rows.take(alone), targets[alone], "multiclass").predict(rows)
    np.testing.assert_allclose(found[:, lacking], 1 - 2 / (alone.sum() + 3), rtol=1e-5)
