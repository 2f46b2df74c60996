"""The null test: random labels through training, pseudo-labels and stacking must score as chance.

Half of the test images are near copies of training images, so that a leak through pseudo-labels would show: without
such copies it hardly does.
"""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from reliability import count

import make_folds
import predict
import pseudo_label
import stack
import train
from kfold.artifacts import Workspace
from kfold.config import load_competition
from kfold.data.targets import decode
from kfold.ensemble import gbdt, nested
from kfold.ensemble.pseudo import PseudoRows
from kfold.ensemble.pseudo_files import read_stamped
from kfold.errors import UserError
from kfold.metrics import resolve_metric
from kfold.setup import rows as rows_of_fold

NUM_TRAIN, NUM_TEST, SD_OF_AUC = 120, 60, 0.053
AUC = resolve_metric("roc_auc", "binary")


def make_competition(root: Path, seed: int) -> Path:
    """Random patterns with random labels; the first half of the test images are training images with a little noise."""
    noise = np.random.default_rng(seed)
    images = noise.integers(0, 256, (NUM_TRAIN, 4, 4, 3), np.uint8)
    copies = noise.permutation(NUM_TRAIN)[: NUM_TEST // 2]
    others = noise.integers(0, 256, (NUM_TEST - len(copies), 4, 4, 3), np.uint8)
    for folder, patterns in (("train_images", images), ("test_images", [*images[copies], *others])):
        (root / "data" / folder).mkdir(parents=True)
        for number, pattern in enumerate(patterns):
            image = cv2.resize(pattern, (32, 32), interpolation=cv2.INTER_CUBIC).astype(np.int64)
            shaken = np.clip(image + noise.integers(-3, 4, image.shape), 0, 255).astype(np.uint8)
            cv2.imwrite(str(root / "data" / folder / f"{folder}{number}.png"), shaken)
    labels = noise.permutation(np.arange(NUM_TRAIN) % 2)
    train_ids = [f"train_images{number}" for number in range(NUM_TRAIN)]
    test_ids = [f"test_images{number}" for number in range(NUM_TEST)]
    pd.DataFrame({"image_id": train_ids, "label": labels}).to_csv(root / "data" / "train.csv", index=False)
    pd.DataFrame({"image_id": test_ids}).to_csv(root / "data" / "test.csv", index=False)
    sample = pd.DataFrame({"image_id": test_ids, "label": 0.5})
    sample.to_csv(root / "data" / "sample_submission.csv", index=False)
    (root / "competition.yaml").write_text(
        "project_name: Null\ntask: binary\nmetric: roc_auc\ntarget_columns: [label]\nnum_folds: 2\n"
    )
    values = {"backbone": "test_resnet", "pretrained": False, "image_size": 32, "hflip": False, "augment": "none"}
    values |= {"epochs": 8, "batch_size": 16, "lr": 0.02, "workers": 0, "speed": "plain", "seed": seed}
    (root / "configs").mkdir()
    (root / "configs" / "baseline.yaml").write_text(json.dumps(values))
    make_folds.main(root=root)
    return root


def out_of_fold_auc(root: Path, run: str) -> float:
    workspace = Workspace(root)
    table = pd.read_csv(root / "folds.csv", dtype=str)
    truth = decode(table.rename(columns={"id": "image_id"}), load_competition(workspace.competition_path))
    oof = pd.concat([pd.read_parquet(workspace.predictions_path(run, fold, "oof")) for fold in range(2)])
    return AUC.function(truth.values, oof.set_index("id").loc[table["id"], ["p_label"]].to_numpy())


@pytest.fixture
def two_methods(monkeypatch):
    """Fewer trees, too. The other methods have a null test of their own in test_nested.py."""
    monkeypatch.setitem(gbdt.PARAMETERS, "num_threads", 1)
    monkeypatch.setattr(gbdt, "MAX_ROUNDS", 30)
    monkeypatch.setattr(nested, "METHODS", {name: nested.METHODS[name] for name in ("mean", "lightgbm")})


def test_random_labels_score_as_chance_through_training_pseudo_labels_and_stacking(tmp_path, two_methods):
    """One AUC of 120 rows has a standard deviation of SD_OF_AUC, the mean of several less. Bound: three of these."""
    scores, num_seeds = [], count(3, 5)
    for seed in range(num_seeds):
        root = make_competition(tmp_path / str(seed), seed)
        train.main(root=root)
        predict.main(root=root)
        pseudo_label.main(["baseline"], overrides=["pseudo_top_share=1.0"], root=root)
        stack.main(["baseline", "baseline-p1"], method="lightgbm", root=root)
        scores.append({run: out_of_fold_auc(root, run) for run in ("baseline", "baseline-p1", "stack")})
    for run in scores[0]:
        mean = np.mean([of_seed[run] for of_seed in scores])
        assert abs(mean - 0.5) < 3 * SD_OF_AUC / num_seeds**0.5, (run, scores)


def test_labels_of_the_other_folds_teacher_would_score_far_above_chance(tmp_path, monkeypatch):
    """The same chain with the leak let in: each fold's student learns from the teacher that saw the fold."""
    root = make_competition(tmp_path, 0)
    train.main(root=root)
    predict.main(root=root)
    workspace = Workspace(root)

    def swap_and_read(workspace, run, number, *_):
        table, _ = read_stamped(workspace.pseudo_path(run, 1 - number))
        targets, weights = (table[[column]].to_numpy(np.float32) for column in ("p_label", "w_label"))
        return PseudoRows(table["id"].to_numpy(object), targets, weights, table["confidence"].to_numpy())

    monkeypatch.setattr(rows_of_fold, "read_pseudo_of_fold", swap_and_read)
    pseudo_label.main(["baseline"], overrides=["pseudo_top_share=1.0"], root=root)
    assert out_of_fold_auc(root, "baseline-p1") > 0.6  # the honest mean of three is below 0.592
    monkeypatch.undo()
    shutil.rmtree(workspace.fold_dir("baseline-p1", 0))
    shutil.copytree(workspace.fold_dir("baseline-p1", 1), workspace.fold_dir("baseline-p1", 0))
    with pytest.raises(UserError, match="saw fold 0"):
        train.main(config_path=workspace.run_config_path("baseline-p1"), name="baseline-p1", overwrite=True, root=root)
