"""Rows are left out for their own doubtful labels, never for what the held-out fold says."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupted import StopAfter, fingerprint
from sklearn.metrics import roc_auc_score
from test_pipeline import prepare
from torch.nn import functional as F

import train
from kfold.artifacts import ALL_DATA, Workspace, read_manifest, save_manifest
from kfold.config import Config
from kfold.data.cache import FILES
from kfold.data.doubt import label_losses, most_doubtful
from kfold.errors import Interrupted, UserError
from kfold.model.weights import ModelCard
from kfold.seals import read_seals
from kfold.setup.cleaning import judge
from kfold.setup.rows import TrainingRows
from kfold.setup.terms import Teacher
from kfold.verify_fold import Found, verify_fold_files

# The doubt


def test_doubts_are_the_losses_of_the_labels():
    logits, labels = torch.randn(9, 4), torch.eye(4)[torch.arange(9) % 4]
    found = label_losses(logits.softmax(dim=1).numpy(), labels.numpy(), "multiclass")
    assert found == pytest.approx(F.cross_entropy(logits, labels, reduction="none").numpy(), abs=1e-5)
    found = label_losses(logits.sigmoid().numpy(), labels.numpy(), "multilabel")
    expected = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)
    assert found == pytest.approx(expected.numpy(), abs=1e-5)
    values = np.random.default_rng(0).normal(size=(9, 2)) * [1, 100]
    off_by_one = label_losses(values + values.std(axis=0), values, "regression")
    assert off_by_one == pytest.approx(1)
    assert np.isfinite(label_losses(np.eye(2), 1 - np.eye(2), "multiclass")).all()


@settings(max_examples=60)
@given(st.integers(1, 80), st.integers(1, 8), st.floats(0, 0.49), st.integers(0, 1000))
def test_the_share_is_dropped_the_most_doubtful_of_each_class_and_no_class_loses_more_than_half(
    num_rows, num_classes, share, seed
):
    noise = np.random.default_rng(seed)
    doubts, classes = noise.random(num_rows), noise.integers(0, num_classes, num_rows)
    taken = most_doubtful(doubts, classes, share)
    assert taken.sum() <= share * num_rows + 1e-6
    for name in set(classes):
        inside = classes == name
        if taken[inside].any() and not taken[inside].all():
            assert doubts[inside & taken].min() > doubts[inside & ~taken].max()
        assert 0 <= taken[inside].sum() - int(share * inside.sum() + 1e-9) <= 1
        assert 2 * taken[inside].sum() <= inside.sum()
    if share <= 0.25 and min(np.bincount(classes, minlength=num_classes)) >= 4:  # the half is no limit then
        assert taken.sum() == int(share * num_rows + 1e-9)


# Honesty


def score_after_cleaning(seed: int, judged_by: str) -> float:
    """The AUC on random labels: 150 patterns of 9 copies over 3 folds; a model says the mean label of the copies that
    it saw."""
    noise = np.random.default_rng(seed)
    pattern, labels = np.repeat(np.arange(150), 9), noise.integers(0, 2, 150 * 9).astype(float)
    fold = np.concatenate([noise.permutation(np.arange(9) % 3) for _ in range(150)])

    def predict(rows: np.ndarray) -> np.ndarray:
        ones, counts = np.bincount(pattern[rows], labels[rows], 150), np.bincount(pattern[rows], minlength=150)
        return ((ones + 0.5) / (counts + 1))[pattern]

    models = [predict(np.flatnonzero(fold != number)) for number in range(3)]
    out_of_fold = np.choose(fold, models)
    predictions = np.zeros(len(labels))
    for number in range(3):
        rows = np.flatnonzero(fold != number)
        judge = {"out-of-fold predictions": out_of_fold, "the fold's own model": models[number]}[judged_by]
        doubts = label_losses(judge[rows][:, None], labels[rows][:, None], "binary")
        kept = rows[~most_doubtful(doubts, labels[rows], 0.3)]
        predictions[fold == number] = predict(kept)[fold == number]
    return roc_auc_score(labels, predictions)


def test_on_random_labels_own_models_leave_chance_and_out_of_fold_predictions_would_not():
    """One AUC has a standard deviation of 0.02; the mean of ten, 0.006. Bound: three of these."""
    honest = [score_after_cleaning(seed, "the fold's own model") for seed in range(10)]
    leak = [score_after_cleaning(seed, "out-of-fold predictions") for seed in range(10)]
    assert 0.481 < np.mean(honest) < 0.519
    assert np.mean(leak) > 0.6


# The stage

WORDS = ["clean_labels=0.1", "clean_labels_from=teacher", "epochs=2", "workers=0"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = prepare(tmp_path_factory.mktemp("base"), "binary", 90, 6, batch_size=16, epochs=1)
    train.main(fold="0", name="teacher", root=root)
    train.main(fold="all-data", name="teacher", root=root)
    return root


@pytest.fixture
def root(base, tmp_path):
    shutil.copytree(base, tmp_path / "root", ignore=shutil.ignore_patterns("*_images"))
    for folder in ("train_images", "test_images"):
        (tmp_path / "root" / "data" / folder).symlink_to(base / "data" / folder)
    return tmp_path / "root"


def clean(root: Path, stop=None, fold="0", words=(), **options) -> pd.DataFrame:
    train.main(fold=fold, overrides=[*WORDS, *words], name="clean", root=root, stop=stop, **options)
    path = Workspace(root).dropped_path("clean", ALL_DATA if fold == "all-data" else int(fold))
    return pd.read_csv(path, dtype=str)


def test_dropped_rows_are_of_the_training_folds_listed_and_vouched_for(root, capsys):
    dropped = clean(root)
    folds = pd.read_csv(root / "folds.csv", dtype=str)
    assert set(folds.set_index("id").loc[dropped["id"], "fold"]) <= {"1", "2"}
    assert len(dropped) == 6  # of 60
    assert dropped["doubt"].astype(float).is_monotonic_decreasing
    assert dropped["judged_by"].str.match("teacher:[0-9a-f]{12}$").all()
    assert "54 rows to train, 30 to validate" in capsys.readouterr().out
    workspace, found = Workspace(root), Found()
    manifest = read_manifest(workspace.fold_dir("clean", 0))
    assert "dropped.csv" in manifest["files"]
    verify_fold_files(found, workspace, "clean", 0, manifest)
    assert not found.problems
    assert not any("dropped" in note for note in found.notes)


def test_the_full_data_fit_asks_the_full_data_judge(root):
    assert len(clean(root, fold="all-data")) == 9


def test_the_labels_of_a_fold_do_not_change_what_is_dropped_for_it(root, tmp_path):
    expected = clean(root)
    for name, column in (("folds.csv", "id"), ("data/train.csv", "image_id")):
        table = pd.read_csv(root / name, dtype=str)
        folds = pd.read_csv(root / "folds.csv", dtype=str).set_index("id")["fold"]
        inside = (folds.loc[table[column]] == "0").to_numpy()
        table.loc[inside, "label"] = table.loc[inside, "label"].map({"0": "1", "1": "0"})
        table.to_csv(root / name, index=False)
    shutil.rmtree(root / "runs")
    train.main(fold="0", name="teacher", root=root)
    found = clean(root)
    assert found[["id", "doubt"]].equals(expected[["id", "doubt"]])


def test_a_judge_sees_images_at_the_size_and_the_crop_of_its_own_card(tmp_path):
    """A white centre in a black frame, which this judge's crop leaves out."""
    image, seen = np.zeros((80, 80, 3), np.uint8), []
    image[8:72, 8:72] = 255
    cv2.imwrite(str(tmp_path / "a.png"), image)

    class Watch(torch.nn.Module):
        def forward(self, images):
            seen.append((images.shape[2:], images.min().item()))
            return torch.zeros(len(images), 2)

    card = ModelCard("-", 24, "multiclass", ("a", "b"), (0.0,) * 3, (1.0,) * 3, (0.0,) * 2, (1.0,) * 2, center_crop=0.8)
    none, targets = np.array([]), np.eye(2, dtype=np.float32)
    rows = TrainingRows(none, np.array([tmp_path / "a.png"] * 2), targets, targets, 2, none, none, none)
    judges = {"teacher": Teacher("", {}, [(Watch(), card)])}
    config = Config(image_size=16, workers=0, precision="float32")
    judge(judges, {"teacher": FILES}, rows, "multiclass", config, torch.device("cpu"), lambda: None)
    assert seen == [((24, 24), 1.0)]


@pytest.mark.parametrize("damage", ["changed", "judge gone"])
def test_a_resumed_fold_goes_on_without_the_same_rows_as_before(root, capsys, damage):
    clean(root)
    undisturbed = fingerprint(root, "clean")
    with pytest.raises(Interrupted):
        clean(root, StopAfter(4), overwrite=True)
    path = Workspace(root).dropped_path("clean", 0)
    if damage == "changed":
        path.write_text(path.read_text().replace(",0", ",9", 1) + "x,1,y\r\n")
    else:
        shutil.rmtree(root / "runs" / "teacher")
    clean(root)
    assert fingerprint(root, "clean") == undisturbed
    assert ("judged again" in capsys.readouterr().err) == (damage == "changed")


def test_a_fold_taken_to_another_machine_goes_on_there_without_its_judge(root, tmp_path):
    with pytest.raises(Interrupted):
        clean(root, StopAfter(4))
    begun = Workspace(root).dropped_path("clean", 0).read_bytes()
    (tmp_path / "earlier").mkdir()
    shutil.move(root / "runs", tmp_path / "earlier" / "runs")
    clean(root, resume_from=tmp_path / "earlier")
    path = Workspace(root).dropped_path("clean", 0)
    assert path.read_bytes() == begun
    assert path.name in read_seals(path.parent)


def test_a_judge_that_saw_the_fold_is_refused_before_anything_is_written(root):
    folder = Workspace(root).fold_dir("teacher", 0)
    manifest = read_manifest(folder)
    for change, reason in (
        ({"kind": "best"}, "best on fold 0"),
        ({"trained_without_fold": 1}, "saw fold 0"),
        ({"fold_stamp": "0" * 64}, "other folds"),
    ):
        save_manifest(folder, {**manifest, **change})
        with pytest.raises(UserError, match=reason):
            clean(root)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="run teacher is not trained there"):
        clean(root)
    assert not Workspace(root).dropped_path("clean", 0).exists()
