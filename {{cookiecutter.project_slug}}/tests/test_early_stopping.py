"""Early stopping: when a fold ends, that a resumed one ends there too, and that its score is called optimistic."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupted import fingerprint, train_in_pieces
from test_pipeline import prepare

import make_folds
import predict
import submit
import train
from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import Config
from kfold.ensemble.pseudo_files import read_teachers
from kfold.errors import Interrupted, UserError
from kfold.metrics import resolve_metric
from kfold.runs import is_optimistic
from kfold.training.early_stopping import is_stalled

ACCURACY, RMSE = resolve_metric("accuracy", "multiclass"), resolve_metric("rmse", "regression")
WORDS = ["early_stopping=2", "epochs=9", "lr=1e-12", "min_lr=0", "backbone=test_vit"]  # without progress
SCORES = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, float("nan")]), max_size=12)


@settings(max_examples=200)
@given(SCORES, st.integers(1, 5), st.sampled_from([ACCURACY, RMSE]))
def test_it_ends_where_a_loop_that_counts_would(scores, patience, metric):
    best, num_bad, ended = float("nan"), 0, None
    for epoch, score in enumerate(scores, start=1):
        if metric.better(score, best):
            best, num_bad = score, 0
        else:
            num_bad += 1
        if num_bad >= patience:
            ended = epoch
            break
    asked = [epoch for epoch in range(1, len(scores) + 1) if is_stalled(scores[:epoch], patience, metric.better)]
    assert (asked[0] if asked else None) == ended


@given(SCORES)
def test_without_patience_it_never_ends(scores):
    assert not is_stalled(scores, 0, ACCURACY.better)


def test_a_score_that_is_only_equal_is_no_better_and_less_is_better_for_an_error():
    assert is_stalled([0.5, 0.5, 0.5], 2, ACCURACY.better)
    assert not is_stalled([0.5, 0.4, 0.3], 1, RMSE.better)
    assert is_stalled([0.5, 0.4, 0.3], 2, ACCURACY.better)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run whose first fold stopped early, and its two other ones."""
    root = prepare(tmp_path_factory.mktemp("stopped"), "multiclass", 60, 12, batch_size=16)
    train.main(overrides=WORDS, name="short", root=root)
    return root


def test_a_fold_without_progress_ends_after_so_many_epochs_and_its_manifest_says_how(stopped, capsys):
    folder = Workspace(stopped).fold_dir("short", 0)
    scores = pd.read_csv(folder / "log.csv")["score"]
    assert len(scores) == 3
    assert scores.nunique() == 1
    assert artifacts.read_manifest(folder)["length_from_validation"]
    train.main(overrides=WORDS, name="short", root=stopped)
    said = capsys.readouterr().out
    assert said.count("done before") == 3
    assert "optimistic: early_stopping chose the length" in said


def test_a_run_that_stopped_early_is_optimistic_wherever_a_score_is_shown(stopped, capsys):
    workspace = Workspace(stopped)
    predict.main(run="short", root=stopped)
    assert "its score is optimistic" in capsys.readouterr().out
    assert is_optimistic(workspace, "short")  # after predict.py, too, which writes the manifest anew
    submit.main(run="short", root=stopped)
    assert "its score is optimistic" in capsys.readouterr().out
    make_folds.verify(["short"], stopped)
    with pytest.raises(UserError, match=r"stopped by its score on fold 1 \(early_stopping\).*early_stopping=0"):
        read_teachers(workspace, ["short"], 1, 3, artifacts.read_manifest(workspace.fold_dir("short", 1))["fold_stamp"])


def test_a_run_without_it_is_not_optimistic(stopped):
    train.main(fold="0", overrides=["epochs=1"], name="plain", root=stopped)
    assert not is_optimistic(Workspace(stopped), "plain")


def test_a_training_in_pieces_ends_after_the_same_epoch_with_the_same_bytes(stopped):
    assert train_in_pieces(stopped, "pieces", WORDS, 3) > 2
    first, second = (fingerprint(stopped, run) for run in ("short", "pieces"))
    for key in ("last.safetensors", "best.safetensors", "log"):
        assert first[key] == second[key]


def test_a_training_that_is_interrupted_after_its_last_epoch_does_not_begin_another(stopped, monkeypatch):
    def interrupted(*_):
        raise Interrupted("enough")

    with monkeypatch.context() as patch:
        patch.setattr(train, "write_weights", interrupted)
        with pytest.raises(Interrupted):
            train.main(fold="0", overrides=WORDS, name="late", root=stopped)
    train.main(fold="0", overrides=WORDS, name="late", root=stopped)
    assert fingerprint(stopped, "late")["log"] == fingerprint(stopped, "short")["log"]


def test_the_full_data_fit_and_rounds_of_pseudo_labels_have_nothing_honest_to_stop_by(stopped):
    with pytest.raises(UserError, match="holds no row out to stop by"):
        train.main(fold="all-data", overrides=WORDS, name="full", root=stopped)
    with pytest.raises(ValueError, match="early_stopping with pseudo_from"):
        Config(early_stopping=2, pseudo_from=("teacher",))
