"""Thresholds, cuts and temperature: what they do to predictions, and that only a gain beyond noise is adopted."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit, softmax

from kfold.ensemble import tuning as tuning_module
from kfold.ensemble.tuners import TUNERS, Tuning, coordinate_search, threshold_candidates
from kfold.ensemble.tuning import Tuned, read_tuned, tune
from kfold.errors import UserError
from kfold.metrics import decide, resolve_metric

NUM_FOLDS = 3
few = settings(max_examples=30)
probability = st.floats(0, 1, width=32)


def folds_of(num_rows: int) -> np.ndarray:
    return np.arange(num_rows) % NUM_FOLDS


# What is done to predictions


@few
@given(st.floats(1e-6, 1 - 1e-6), st.lists(probability, min_size=2, max_size=20))
def test_a_threshold_is_moved_to_a_half_and_nothing_changes_order(threshold, cells):
    values = np.sort(np.array([0, *cells, 1], np.float32))[:, None]
    tuned = TUNERS["thresholds"].apply("binary", Tuning(kind="thresholds", thresholds=(threshold,)), values)
    assert (np.diff(tuned[:, 0]) >= 0).all()
    assert (tuned[0], tuned[-1]) == (0, 1)
    assert decide("binary", tuned).tolist() == (values[:, 0].astype(float) >= threshold).tolist()
    at = TUNERS["thresholds"].apply("binary", Tuning(thresholds=(threshold,)), np.array([[threshold]]))
    assert at[0, 0] == 0.5  # a value at the threshold has the label


def test_a_threshold_of_a_half_is_the_identity():
    values = np.random.default_rng(0).random((50, 3)).astype(np.float32)
    tuned = TUNERS["thresholds"].apply("multilabel", Tuning(thresholds=(0.5, 0.5, 0.5)), values)
    np.testing.assert_allclose(tuned, values, atol=1e-7)


@few
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 20), st.sampled_from(["multiclass", "binary", "multilabel"]))
def test_a_temperature_keeps_the_argmax_the_ranking_and_the_sum(seed, temperature, task):
    logits = np.random.default_rng(seed).normal(0, 2, (20, 1 if task == "binary" else 4))
    values = (softmax(logits, axis=1) if task == "multiclass" else expit(logits)).astype(np.float32)
    apply = TUNERS["temperature"].apply
    np.testing.assert_allclose(apply(task, Tuning(temperature=1.0), values), values, atol=1e-6)
    tuned = apply(task, Tuning(temperature=temperature), values)
    assert tuned.dtype == np.float32
    if task == "multiclass":
        np.testing.assert_allclose(tuned.sum(axis=1), 1, atol=1e-5)
        chosen = tuned[np.arange(20), values.argmax(axis=1)]
        assert (chosen == tuned.max(axis=1)).all()
    else:
        order = np.argsort(values[:, 0], kind="stable")
        assert (np.diff(tuned[order, 0]) >= 0).all()


@few
@given(st.lists(st.floats(-2, 7).filter(lambda value: value % 1 != 0.5), min_size=1, max_size=20))
def test_cuts_at_the_midpoints_are_rounding_within_the_grades(cells):
    values = np.array(cells, np.float64)[:, None]
    tuning = Tuning(kind="cuts", cuts=((0.5, 1.5, 2.5, 3.5),), lowest_grades=(0,))
    expected = np.clip(np.rint(values), 0, 4)
    assert TUNERS["cuts"].apply("regression", tuning, values).tolist() == expected.tolist()


def test_cuts_of_classes_give_rows_that_sum_to_one_with_the_grade_on_top():
    values = softmax(np.random.default_rng(0).normal(0, 1, (60, 4)), axis=1)
    tuning = Tuning(kind="cuts", cuts=((0.9, 1.5, 2.0),), lowest_grades=(0,))
    tuned = TUNERS["cuts"].apply("multiclass", tuning, values)
    expected = values @ np.arange(4)
    assert (tuned.sum(axis=1) == 1).all()
    assert decide("multiclass", tuned).tolist() == np.digitize(expected, [0.9, 1.5, 2.0]).tolist()


@few
@given(st.integers(0, 2**32 - 1))
def test_a_search_never_ends_worse_than_it_started(seed):
    generator = np.random.default_rng(seed)
    metric = resolve_metric("accuracy", "binary")
    targets, values = generator.integers(0, 2, (30, 1)).astype(float), generator.random((30, 1))

    def score(thresholds):
        return float(((values >= thresholds) == targets).mean())

    found = coordinate_search(score, metric, np.array([0.5]), lambda now, place: generator.random(5))
    assert score(found) >= score(np.array([0.5]))


# What is fitted


def test_the_thresholds_found_are_the_best_of_all_candidates_for_one_label():
    generator = np.random.default_rng(1)
    targets = (generator.random((300, 1)) < 0.2).astype(np.float32)
    values = np.clip(0.15 * targets + generator.normal(0.2, 0.1, (300, 1)), 0, 1).astype(np.float32)
    metric = resolve_metric("mcc", "binary")
    tuning = TUNERS["thresholds"].fit("binary", metric, values, targets)
    found = metric.function(targets, TUNERS["thresholds"].apply("binary", tuning, values))
    every = [metric.function(targets, (values >= t).astype(float)) for t in np.unique(values)]
    assert found > max(every) - 0.03
    assert found > metric.function(targets, values) + 0.2


@pytest.mark.parametrize("name", ["macro_f1", "f1_samples", "f_beta_micro"])
def test_each_label_gets_its_own_threshold(name):
    generator = np.random.default_rng(2)
    targets = (generator.random((400, 2)) < 0.5).astype(np.float32)
    noise = generator.normal(0, 0.03, targets.shape)
    values = np.where(targets, [0.3, 0.9], [0.1, 0.7]) + noise
    tuning = TUNERS["thresholds"].fit("multilabel", resolve_metric(name, "multilabel"), values, targets)
    assert 0.12 < tuning.thresholds[0] < 0.3
    assert 0.72 < tuning.thresholds[1] < 0.9


def test_no_candidate_beats_the_threshold_found_for_macro_f1():
    generator = np.random.default_rng(6)
    targets = (generator.random((200, 2)) < [0.1, 0.5]).astype(np.float32)
    values = np.clip(generator.normal(0.3 + 0.1 * targets, 0.2), 0, 1).astype(np.float32)
    metric = resolve_metric("macro_f1", "multilabel")
    found = TUNERS["thresholds"].fit("multilabel", metric, values, targets).thresholds
    labels = (values >= found).astype(float)
    for column in range(2):
        for candidate in threshold_candidates(values[targets[:, column] == 1, column]):
            other = labels.copy()
            other[:, column] = values[:, column] >= candidate
            assert metric.function(targets, other) <= metric.function(targets, labels)


def test_cuts_are_found_where_values_are_squeezed():
    generator = np.random.default_rng(3)
    grades = generator.integers(1, 5, (400, 2)).astype(np.float32)
    values = np.column_stack([2 + 0.3 * grades[:, 0], grades[:, 1] + 1.0]) + generator.normal(0, 0.02, grades.shape)
    metric = resolve_metric("quadratic_kappa", "regression")
    tuning = TUNERS["cuts"].fit("regression", metric, values, grades)
    assert metric.function(grades, TUNERS["cuts"].apply("regression", tuning, values)) > 0.99
    assert metric.function(grades, values) < 0.8


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_the_temperature_that_was_applied_is_found(task, temperature):
    values, targets = drawn(task, 3000)
    logits = np.log(values) if task == "multiclass" else logit(values)
    distorted = softmax(logits / temperature, axis=1) if task == "multiclass" else expit(logits / temperature)
    found = TUNERS["temperature"].fit(task, resolve_metric("log_loss", task), distorted.astype(np.float32), targets)
    assert found.temperature == pytest.approx(1 / temperature, rel=0.15)


# Whether it is adopted


def drawn(task: str, num_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities (N, C), and targets drawn from them."""
    generator = np.random.default_rng(seed)
    if task == "multiclass":
        values = softmax(generator.normal(0, 1.5, (num_rows, 3)), axis=1)
        return values, np.eye(3)[[generator.choice(3, p=row) for row in values]].astype(np.float32)
    values = expit(generator.normal(0, 1.5, (num_rows, 1 if task == "binary" else 3)))
    return values, (generator.random(values.shape) < values).astype(np.float32)


CASES = [("multiclass", "log_loss"), ("binary", "log_loss"), ("multilabel", "log_loss"), ("binary", "accuracy")]


@pytest.mark.parametrize(("task", "name"), CASES)
def test_on_calibrated_predictions_nothing_is_adopted(task, name):
    values, targets = drawn(task, 600)
    tuned = tune(task, resolve_metric(name, task), values, targets, folds_of(600))
    assert tuned.is_neutral
    assert tuned.tried
    assert tuned.apply(values) is values
    assert "not adopted" in tuned.describe()


@pytest.mark.parametrize(("task", "name"), [*CASES, ("multilabel", "macro_f1")])
def test_on_miscalibrated_predictions_the_tuning_is_adopted(task, name):
    values, targets = drawn(task, 600)
    logits = np.log(values) if task == "multiclass" else logit(values)
    logits = 4 * logits if name == "log_loss" else logits - 2
    wrong = softmax(logits, axis=1) if task == "multiclass" else expit(logits)
    metric = resolve_metric(name, task)
    tuned = tune(task, metric, wrong.astype(np.float32), targets, folds_of(600))
    assert not tuned.is_neutral
    assert "beyond noise, adopted" in tuned.describe()
    assert metric.better(metric.function(targets, tuned.apply(wrong)), metric.function(targets, wrong))
    assert tuned.nested == pytest.approx(tuned.untuned + tuned.gain)
    assert not metric.better(tuned.nested, tuned.optimistic + (0.01 if metric.greater_is_better else -0.01))


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_cuts_are_adopted_where_grades_are_pulled_to_the_mean(task):
    generator = np.random.default_rng(4)
    grades = generator.choice(5, 500, p=[0.4, 0.25, 0.2, 0.1, 0.05])
    expected = 1.2 + 0.4 * (grades - 1.2) + generator.normal(0, 0.15, 500)
    if task == "regression":
        values, targets = expected[:, None], grades[:, None].astype(np.float32)
    else:
        values = softmax(-2.5 * (expected[:, None] - np.arange(5)) ** 2, axis=1)
        targets = np.eye(5, dtype=np.float32)[grades]
    tuned = tune(task, resolve_metric("quadratic_kappa", task), values, targets, folds_of(500))
    assert tuned.tried == "cuts"
    assert not tuned.is_neutral
    assert tuned.nested > tuned.untuned + 0.05


def test_labels_drawn_at_random_are_never_tuned_into_a_score():
    generator = np.random.default_rng(5)
    for seed in range(2):
        values, targets = generator.random((200, 1)), np.random.default_rng(seed).integers(0, 2, (200, 1)).astype(float)
        tuned = tune("binary", resolve_metric("mcc", "binary"), values, targets, folds_of(200))
        assert abs(tuned.nested) < 0.2
        assert tuned.optimistic > tuned.nested


@pytest.mark.parametrize(("task", "name"), [("binary", "mcc"), ("multiclass", "log_loss")])
def test_nested_predictions_of_a_fold_do_not_change_with_its_own_targets(task, name, monkeypatch):
    values, targets = drawn(task, 150)
    values = expit(logit(values) - 2) if task == "binary" else softmax(4 * np.log(values), axis=1)
    fold, seen = folds_of(150), []

    def spy(metric, truth, nested, untuned, groups):
        seen.append(nested.copy())
        return 0.0, -1.0, 1.0

    monkeypatch.setattr(tuning_module, "paired_difference", spy)
    tune(task, resolve_metric(name, task), values, targets, fold)
    changed = targets.copy()
    changed[fold == 1] = 1 - changed[fold == 1] if task == "binary" else np.roll(changed[fold == 1], 1, axis=1)
    tune(task, resolve_metric(name, task), values, changed, fold)
    assert (seen[0][fold == 1] == seen[1][fold == 1]).all()
    assert (seen[0][fold != 1] != seen[1][fold != 1]).any()


def test_a_metric_without_a_tuner_stays_untuned():
    values, targets = drawn("binary", 60)
    tuned = tune("binary", resolve_metric("roc_auc", "binary"), values, targets, folds_of(60))
    assert (tuned.tried, tuned.is_neutral) == ("", True)
    assert tuned.describe() == "no tuning applies to roc_auc"


def test_an_undefined_score_is_stored_as_none_and_nothing_adopted():
    values, targets = np.full((30, 1), 2.2), np.full((30, 1), 2.0)
    tuned = tune("regression", resolve_metric("quadratic_kappa", "regression"), values, targets, folds_of(30))
    assert tuned.untuned is None
    assert tuned.is_neutral
    assert read_tuned(tuned.model_dump_json(), "tuned.json") == tuned


# On disk


def test_what_is_written_reads_back_equal():
    values, targets = drawn("multilabel", 300)
    wrong = expit(logit(values) - 2)
    tuned = tune(
        "multilabel", resolve_metric("macro_f1", "multilabel"), wrong, targets, folds_of(300), names=("a", "b", "c")
    )
    again = read_tuned(tuned.model_dump_json(indent=1), "tuned.json")
    assert again == tuned
    assert (again.apply(wrong) == tuned.apply(wrong)).all()


def tuning_text(kind: str, key: str, numbers) -> str:
    return json.dumps({"task": "binary", "names": ["a"], "tuning": {"kind": kind, key: numbers}})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "json"),
        ('{"names": ["a"]}', "task"),
        ('{"task": "binary", "names": ["a"], "threshold": 0.3}', "unknown key 'threshold'"),
        (tuning_text("thresholds", "thresholds", [1.5]), "between 0 and 1"),
        (tuning_text("thresholds", "thresholds", ["0.5"]), "thresholds"),
        (tuning_text("thresholds", "thresholds", []), "1 columns"),
        (tuning_text("cuts", "cuts", [[2, 1]]), "ascend"),
        (tuning_text("temperature", "temperature", 0), "temperature"),
    ],
)
def test_whatever_else_lies_there_is_refused_in_one_line(text, problem):
    with pytest.raises(UserError) as caught:
        read_tuned(text, "tuned.json")
    (line,) = caught.value.problems
    assert line.startswith("tuned.json: ")
    assert problem in line
    assert Tuned(task="binary", names=("a",)).is_neutral
