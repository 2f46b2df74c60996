import numpy as np
import pytest

from kfold.ensemble.choice import Candidate, choice_table, compare_candidates, read_wishes
from kfold.intervals import simplest_within_noise
from kfold.metrics import resolve_metric

ACCURACY, RMSE = resolve_metric("accuracy", "multiclass"), resolve_metric("rmse", "regression")


def make_targets(num_rows=400):
    return np.eye(2, dtype=np.float32)[np.arange(num_rows) % 2]


def right_in(targets, share, seed=0):
    """Predictions that are right in a share of the rows."""
    wrong = np.random.default_rng(seed).permutation(len(targets)) >= share * len(targets)
    return np.where(wrong[:, None], 1 - targets, targets)


def test_the_simplest_within_noise_of_the_best_is_taken():
    targets = make_targets()
    simple, better, clearly_worse = right_in(targets, 0.90), right_in(targets, 0.91, 1), right_in(targets, 0.7, 2)
    assert simplest_within_noise(ACCURACY, targets, {"a": simple, "b": better}) == "a"
    assert simplest_within_noise(ACCURACY, targets, {"a": clearly_worse, "b": better}) == "b"
    assert simplest_within_noise(ACCURACY, targets, {"a": clearly_worse, "b": simple, "c": better}) == "b"


def test_where_less_is_better_the_smaller_error_wins():
    targets = np.random.default_rng(0).normal(size=(300, 1)).astype(np.float32)
    near, far = targets + 0.1, targets + np.where(np.arange(300) % 2, 1.0, -1.0)[:, None].astype(np.float32)
    assert simplest_within_noise(RMSE, targets, {"far": far, "near": near}) == "near"
    assert simplest_within_noise(RMSE, targets, {"near": near, "far": far}) == "near"


def test_a_score_that_is_undefined_is_passed_over():
    spearman = resolve_metric("spearman", "regression")
    targets = np.random.default_rng(0).normal(size=(50, 1)).astype(np.float32)
    constant, noisy = np.zeros_like(targets), targets + 0.1
    assert simplest_within_noise(spearman, targets, {"constant": constant, "noisy": noisy}) == "noisy"
    assert simplest_within_noise(spearman, targets, {"constant": constant, "other": constant + 1}) == "constant"


def test_a_choice_that_is_optimistic_is_shown_but_never_taken_by_itself():
    targets = make_targets()
    candidates = {
        "last": Candidate(right_in(targets, 0.7), 1.0),
        "ema": Candidate(right_in(targets, 0.9, 1), 1.0),
        "best": Candidate(targets, 1.0),
    }
    chosen, rows = compare_candidates(candidates, targets, ACCURACY)
    assert chosen == "ema"
    assert rows.set_index("name")["verdict"]["best"].startswith("optimistic")
    assert compare_candidates(candidates, targets, ACCURACY, wish="best")[0] == "best"


def test_the_table_says_whether_a_gain_is_larger_than_noise():
    targets = make_targets()
    candidates = {
        "none": Candidate(right_in(targets, 0.8), 1.25),
        "hflip": Candidate(right_in(targets, 0.81, 1), 2.5),
        "flips": Candidate(right_in(targets, 0.5, 2), 5.0),
        "d4": Candidate(right_in(targets, 0.95, 3), 10.0),
    }
    chosen, rows = compare_candidates(candidates, targets, ACCURACY)
    assert chosen == "d4"
    verdicts = rows.set_index("name")["verdict"]
    assert list(verdicts[["hflip", "flips", "d4"]]) == ["within noise", "worse beyond noise", "better beyond noise"]
    text = choice_table("tta", "accuracy", rows)
    assert [line.split()[0] for line in text.splitlines()] == ["tta", "none", "hflip", "flips", "d4"]
    assert "10.00" in text
    assert [line for line in text.splitlines() if "taken" in line][0].split()[0] == "d4"


def test_wishes_are_read_in_the_order_of_the_offer():
    assert read_wishes("auto", ["last", "ema"]) == ["last", "ema"]
    assert read_wishes("ema, last", ["last", "swa", "ema"]) == ["last", "ema"]
    with pytest.raises(ValueError, match="emma"):
        read_wishes("last,emma", ["last", "ema"])
