"""Every switch of rows, pixels and mixing from train.py to predict.py, in a few experiments that share them out."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from test_pipeline import prepare

import predict
import train
from kfold.artifacts import Workspace
from kfold.data.images import image_path
from kfold.data.input_statistics import dataset_statistics
from kfold.errors import UserError
from kfold.model.weights import load_model
from kfold.training import step

EXPERIMENTS = {
    "multiclass": [
        "augment=randaugment", "mixing=[mixup,cutmix,ricap]", "plain_epochs=1", "multi_scale=[24,40]", "accumulate=2",
        "center_crop=0.8", "input_statistics=dataset", "sampler=balanced", "ema_decay=0.9", "precision=bfloat16",
    ],
    "binary": ["augment=autoaugment", "mixing=cutmix", "cutout=0.5", "progressive=[16,32]", "sampler=square_root"],
    "multilabel": ["augment=none", "mixing=ricap", "random_erasing=0.5", "fancy_pca=0.5", "sampler=balanced"],
    "regression": [
        "augment=trivialaugment", "mixing=mixup", "mixing_probability=0.5", "crop_scale=0.5", "color_jitter=0.4",
        "plain_epochs=1", "swa_from_epoch=1",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("base"), "multiclass", 60, 8, epochs=2, batch_size=12)


def train_one(root, *words):
    shutil.rmtree(root / "runs", ignore_errors=True)
    train.main(fold="0", overrides=words, name="x", root=root)
    return Workspace(root)


def read_values(workspace, rows):
    return pd.read_parquet(workspace.predictions_path("x", 0, rows)).filter(like="p_").to_numpy()


@pytest.mark.parametrize("task", EXPERIMENTS)
def test_an_experiment_with_the_switches_trains_and_predicts_as_it_validated(tmp_path, task):
    root = prepare(tmp_path, task, 60, 8, epochs=2, batch_size=12)
    workspace = train_one(root, *EXPERIMENTS[task])
    validated = read_values(workspace, "oof")
    predict.main(run="x", overwrite=True, root=root)
    assert read_values(workspace, "oof") == pytest.approx(validated, abs=1e-6)  # the centre crop is predict.py's, too
    assert np.isfinite(read_values(workspace, "test")).all()


def test_the_centre_crop_changes_what_is_validated(base):
    plain, cropped = (read_values(train_one(base, *words), "oof") for words in ([], ["center_crop=0.6"]))
    assert abs(plain - cropped).max() > 1e-4


def test_statistics_are_of_the_centres_of_the_folds_training_images_alone(base):
    workspace = train_one(base, "input_statistics=dataset", "center_crop=0.6", "epochs=1")
    _, card = load_model(workspace.weights_path("x", 0, "last"))
    folds = pd.read_csv(base / "folds.csv", dtype=str)
    folder = base / "data" / "train_images"
    inside = [image_path(folder, name, ".png") for name in folds.loc[folds["fold"] != "0", "id"]]
    everywhere = [image_path(folder, name, ".png") for name in folds["id"]]
    assert (card.mean, card.std) == dataset_statistics(inside, 32, 0.6, "")
    assert (card.mean, card.std) != dataset_statistics(inside, 32, 1.0, "")
    assert (card.mean, card.std) != dataset_statistics(everywhere, 32, 0.6, "")


@pytest.fixture
def seen(monkeypatch):
    """Of each training batch: its side (pixels), and whether each of its labels is one class."""
    found = []

    def watch(targets, card, whole=step.standardized):
        found.append(bool(((targets == 0) | (targets == 1)).all()))
        return whole(targets, card)

    sides = []

    def watch_pixels(pixels, mean, std, whole=step.normalize):
        sides.append(pixels.shape[1])
        return whole(pixels, mean, std)

    monkeypatch.setattr(step, "standardized", watch)
    monkeypatch.setattr(step, "normalize", watch_pixels)
    return sides, found


def test_sizes_grow_and_the_last_epochs_are_unmixed(base, seen):
    train_one(base, "progressive=[16,24,40]", "epochs=3", "mixing=[mixup,ricap]", "mixup_alpha=2", "plain_epochs=1")
    sides, is_one_class = seen
    assert sides == [16] * 3 + [24] * 3 + [40] * 3
    assert not any(is_one_class[:6])
    assert all(is_one_class[6:])


def test_a_batch_is_mixed_whole_before_it_is_split(base, seen, monkeypatch):
    shares = []
    monkeypatch.setattr(torch.distributions.Beta, "sample", count_calls(torch.distributions.Beta.sample, shares))
    train_one(base, "mixing=ricap", "accumulate=3", "epochs=1")
    assert len(seen[0]) == 9  # parts of 3 batches
    assert len(shares) == 3


def count_calls(function, calls):
    def counted(*values, **named):
        calls.append(1)
        return function(*values, **named)

    return counted


@pytest.mark.parametrize("key", ["multi_scale", "progressive"])
def test_several_sizes_are_refused_for_a_backbone_of_one_size(base, key):
    shutil.rmtree(base / "runs", ignore_errors=True)
    with pytest.raises(UserError, match=f"{key} with backbone=test_vit, which takes images of one size"):
        train.main(overrides=["backbone=test_vit", f"{key}=[16,32]"], name="x", root=base)
    assert not (base / "runs").exists()
