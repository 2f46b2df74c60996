"""What the labels of the held-out rows are changes nothing in the model that is trained without them."""

import shutil

import pandas as pd
import pytest
from safetensors import safe_open
from test_pipeline import prepare

import train

CHOICES = {
    "plain": ("multiclass", []),
    "prior": ("multiclass", ["prior_bias=true"]),
    "class weights": ("multiclass", ["class_weights=inverse_log"]),
    "margins": ("multiclass", ["head=arcface", "margin_power=0.5"]),
    "sampler": ("multiclass", ["sampler=balanced"]),
    "plateau": ("multiclass", ["schedule=plateau", "plateau_patience=0", "plateau_factor=0.1", "lr=0.03"]),
    "values": ("regression", ["input_statistics=dataset"]),
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """task -> two equal competitions, but for the targets of fold 0's rows."""
    made = {}
    for task in ("multiclass", "regression"):
        first = prepare(tmp_path_factory.mktemp(task) / "first", task, 60, 12, epochs=5, batch_size=8, num_workers=0)
        second = first.with_name("second")
        shutil.copytree(first, second)
        folds = pd.read_csv(second / "folds.csv", dtype=str, keep_default_na=False)
        held_out = folds["fold"] == "0"
        column = [name for name in folds.columns if name not in ("id", "fold", "group", "duplicate_group")][0]
        folds.loc[held_out, column] = folds.loc[held_out, column].to_numpy()[::-1] if task == "multiclass" else "500"
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
