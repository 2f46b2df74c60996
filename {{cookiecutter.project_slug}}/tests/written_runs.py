"""Competitions with finished runs, written without training: targets blurred by noise stand for predictions."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

import competition
import make_folds
from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import Config, load_competition
from kfold.data.folds import read_folds
from kfold.intervals import score_folds
from kfold.ledger import record_run
from kfold.predictions import Predictions, write_predictions
from kfold.report.spreadsheet import to_spreadsheet

UNSAFE = ("<script>alert(1)</script>", "\" onload='alert(2)' $x_{", "=1+1 漢 & <b>")
METRICS = {"multiclass": "accuracy", "binary": "roc_auc", "multilabel": "roc_auc", "regression": "rmse"}
COLUMNS = {
    "multiclass": ["label"],
    "binary": ["<i>label</i>"],
    "multilabel": [*UNSAFE],
    "regression": ["$y_1$ <b>", "</td>y2"],
}
NUM_FOLDS = 2


def write_competition(root: Path, task: str, num_rows: int = 48, group: bool = False) -> Path:
    """Tables, images and folds.csv; labels, columns and the first ids are as unsafe as can be."""
    generator = np.random.default_rng(0)
    ids = [f"i{row:03d}" for row in range(num_rows)]
    ids[0] = '<img src=x onerror="alert(3)">&'
    columns = COLUMNS[task]
    if task in ("multiclass", "binary"):
        names = UNSAFE[: 3 if task == "multiclass" else 2]
        cells = {columns[0]: [names[row % len(names)] for row in range(num_rows)]}
    elif task == "multilabel":
        cells = {name: generator.permutation(num_rows) % 2 for name in columns}
    else:
        cells = {name: generator.normal(size=num_rows).round(4) for name in columns}
    train = pd.DataFrame({"image_id": ids, **cells})
    if group:
        train["site"] = [UNSAFE[row // 2 % 3] + str(row // 2) for row in range(num_rows)]
    test_ids = [f"t{row}" for row in range(4)]
    sample = pd.DataFrame({"image_id": test_ids, **{name: train[name].iloc[0] for name in columns}})
    for folder, names in (("train_images", ids), ("test_images", test_ids)):
        (root / "data" / folder).mkdir(parents=True)
        for name in names:
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            (root / "data" / folder / f"{name}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    train.to_csv(root / "data" / "train.csv", index=False)
    sample[["image_id"]].to_csv(root / "data" / "test.csv", index=False)
    sample.to_csv(root / "data" / "sample_submission.csv", index=False)
    facts = {
        "project_name": "Title <script>alert(4)</script>",
        "task": task,
        "metric": METRICS[task],
        "target_columns": columns,
        "num_folds": NUM_FOLDS,
        **({"group_column": "site"} if group else {}),
    }
    (root / "competition.yaml").write_text(json.dumps(facts))
    make_folds.main(root=root)
    return root


def write_run(root: Path, name: str, noise: float, seed: int = 0, kind: str = "last", **config) -> None:
    """A run that is done. noise: of its predictions, in the targets' units; kind: of weights."""
    workspace, generator = Workspace(root), np.random.default_rng(seed)
    facts = load_competition(workspace.competition_path)
    folds = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    targets, metric = competition.decode_targets(folds.table, facts), competition.metric(facts)
    oof = targets.values + noise * generator.normal(size=targets.values.shape)
    if facts.task != "regression":
        oof = 0.1 + 0.8 * np.clip(oof, 0, 1)
    if facts.task == "multiclass":
        oof /= oof.sum(axis=1, keepdims=True)
    oof = oof.astype(np.float32)
    settings = Config(backbone="test_resnet", pretrained=False, image_size=32, **config)
    artifacts.register_run(workspace, name, facts, settings, range(NUM_FOLDS), False)
    for number in range(NUM_FOLDS):
        write_fold(workspace, name, number, folds, targets.names, facts.task, settings, oof, kind)
    scores = score_folds(metric, targets.values, oof, folds.fold, folds.group_or_none)
    row = {"run": name, "metric": metric.name, "oof": scores.pooled, "minutes": 1.5, "images_per_second": 321.0}
    record_run(workspace.ledger_path, row)


def write_fold(workspace, name, number, folds, names, task, settings, oof, kind) -> None:
    rows = folds.fold == number
    stamps = artifacts.stamps(folds.stamp, settings, task, "0" * 64, kind, "none")
    oof_path, test_path = (workspace.predictions_path(name, number, which) for which in ("oof", "test"))
    write_predictions(oof_path, Predictions(folds.ids[rows], oof[rows], names, stamps, folds.fold[rows]))
    write_predictions(test_path, Predictions(np.array([f"t{row}" for row in range(4)], object), oof[:4], names, stamps))
    epochs = np.arange(1, 4)
    log = {"epoch": epochs, "train_loss": 1 / epochs, "valid_loss": 1.2 / epochs, "score": 1 - 0.5 / epochs}
    log |= {"lr": 0.001 / epochs, "skipped": 0, "accumulate": 1, "seconds": 2.0, "images_per_second": 321.0}
    workspace.log_path(name, number).write_text(to_spreadsheet(pd.DataFrame(log)))
    facts = {"run": name, "trained_without_fold": number, "score": 0.5, "fold_stamp": folds.stamp, "kind": kind}
    facts |= {key: stamps[key] for key in ("config_hash", "weights_sha256", "task")}
    facts |= {"device": "cpu", "precision": "float32", "minutes": 0.75, "images_per_second": 321.0}
    files = ["log.csv", "oof.parquet", "test.parquet"]
    artifacts.write_manifest(workspace.fold_dir(name, number), facts, files)
