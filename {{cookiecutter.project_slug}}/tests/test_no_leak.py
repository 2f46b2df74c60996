"""What the labels of the held-out rows are changes nothing in the model that is trained without them."""

import shutil

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from test_pipeline import prepare

import train
from kfold.data.loader import EpochOrder
from kfold.training.loop import Recipe, make_rate
from kfold.training.schedules import Curve
from kfold.training.state import EpochResult, Training

CHOICES = {
    "plain": ("multiclass", []),
    "prior": ("multiclass", ["prior_bias=true"]),
    "class weights": ("multiclass", ["class_weights=inverse_log"]),
    "margins": ("multiclass", ["head=arcface", "margin_power=0.5"]),
    "sampler": ("multiclass", ["sampler=balanced"]),
    "values": ("regression", ["input_statistics=dataset"]),
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """task -> two equal competitions, but for the targets of fold 0's rows."""
    made = {}
    for task in ("multiclass", "regression"):
        first = prepare(tmp_path_factory.mktemp(task) / "first", task, 60, 12, epochs=3, batch_size=8, workers=0)
        second = first.with_name("second")
        shutil.copytree(first, second)
        folds = pd.read_csv(second / "folds.csv", dtype=str, keep_default_na=False)
        held_out = folds["fold"] == "0"
        column = [name for name in folds.columns if name not in ("id", "fold", "group", "duplicate_group")][0]
        folds.loc[held_out, column] = "0" if task == "multiclass" else "500"  # other counts of classes, another scale
        folds.to_csv(second / "folds.csv", index=False)
        table = pd.read_csv(second / "data" / "train.csv", dtype=str, keep_default_na=False)
        table[column] = table["image_id"].map(folds.set_index("id")[column])
        table.to_csv(second / "data" / "train.csv", index=False)
        made[task] = (first, second)
    return made


@pytest.mark.parametrize("choice", CHOICES)
def test_other_labels_in_the_held_out_fold_train_the_same_model(choice, roots):
    task, words = CHOICES[choice]
    found = []
    for root in roots[task]:
        train.main(fold="0", overrides=words, name=choice.replace(" ", "-"), root=root)
        path = root / "runs" / choice.replace(" ", "-") / "fold0" / "last.safetensors"
        with safe_open(path, "pt") as file:
            found.append((file.metadata()["kfold"], path.read_bytes()))
    assert found[0] == found[1]


def test_the_labels_that_differ_are_those_of_the_held_out_fold_alone(roots):
    for first, second in roots.values():
        one, other = (pd.read_csv(root / "folds.csv", dtype=str, keep_default_na=False) for root in (first, second))
        differs = (one != other).any(axis=1)
        assert differs.any()
        assert set(one["fold"][differs]) == {"0"}


@pytest.mark.parametrize(("falling", "share"), [("train_loss", 1.0), ("valid_loss", 0.1)])
def test_plateau_follows_the_training_loss_and_not_the_validation_loss(falling, share):
    model = torch.nn.Linear(1, 1)
    training = Training(model, torch.optim.SGD(model.parameters()), torch.amp.GradScaler("cpu", enabled=False))
    for epoch in range(1, 4):
        losses = {"train_loss": 1.0, "valid_loss": 1.0, falling: 1 / epoch}
        rest = {"score": 0.0, "lr": 0.0, "skipped": 0, "accumulate": 1, "seconds": 1.0, "images_per_second": 1.0}
        training.log.append(EpochResult(epoch, **losses, **rest))
    recipe = Recipe(9, 1.0, 0.0, "plateau", 1, 0.0, 0, 0, Curve(plateau_patience=1, plateau_factor=0.1))
    rate = make_rate(recipe, EpochOrder(8, 4, True), training)
    assert rate(3, 0)[1] == pytest.approx(share)
