"""demo_data.py: a real competition for every task, and no other folder is touched."""

import pandas as pd
import pytest

import demo_data
import make_folds
from kfold.config import load_competition
from kfold.data.images import read_image
from kfold.data.tables import read_table
from kfold.data.targets import decode
from kfold.errors import UserError


def demo(root, task="multiclass", targets="[label]", **more):
    facts = {"project_name": "x", "task": task, "target_columns": targets, **more}
    (root / "competition.yaml").write_text("".join(f"{key}: {value}\n" for key, value in facts.items()))
    demo_data.main(root)
    names = ("train", "test", "sample_submission", "solution")
    return {name: read_table(root / "data" / f"{name}.csv", []) for name in names}


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_digit_is_one_png_in_train_or_test(tmp_path):
    tables = demo(tmp_path)
    for name in ("train", "test"):
        files = {path.stem for path in (tmp_path / "data" / f"{name}_images").iterdir()}
        assert files == set(tables[name]["image_id"])
    assert len(tables["train"]) + len(tables["test"]) == 1797
    assert 0.17 < len(tables["test"]) / 1797 < 0.23
    assert read_image(tmp_path / "data" / "train_images" / f"{tables['train']['image_id'][0]}.png").shape == (32, 32, 3)
    assert list(tables["test"]) == ["image_id"]
    assert set(tables["train"]["label"]) == set("0123456789")


@pytest.mark.parametrize(
    ("task", "targets", "metric", "sample_columns"),
    [
        ("multiclass", "[label]", "accuracy", ["label"]),
        ("multiclass", "[label]", "log_loss", list("0123456789")),
        ("binary", "[label]", "accuracy", ["label"]),
        ("binary", "[label]", "roc_auc", ["label"]),
        ("multilabel", "[even, prime, round]", "roc_auc", ["even", "prime", "round"]),
        ("multilabel", "[labels]", "roc_auc", ["even", "prime", "round"]),
        ("regression", "[value]", "rmse", ["value"]),
    ],
)
def test_tables_follow_task_metric_and_columns(tmp_path, monkeypatch, task, targets, metric, sample_columns):
    monkeypatch.setattr(demo_data, "write_image", lambda path, scan: None)  # seconds where the disk is busy
    tables = demo(tmp_path, task, targets, metric=metric, group_column="writer", id_column="name", image_suffix=".bmp")
    facts = load_competition(tmp_path / "competition.yaml")
    assert list(tables["train"]) == ["name", *facts.target_columns, "writer"]
    assert list(tables["solution"]) == ["name", *facts.target_columns]
    assert list(tables["sample_submission"]) == ["name", *sample_columns]
    assert tables["sample_submission"]["name"].tolist() == tables["test"]["name"].tolist()
    values = decode(tables["train"], facts).values
    assert values.shape[1] == {"multiclass": 10, "binary": 1, "multilabel": 3, "regression": 1}[task]
    assert 10 < tables["train"]["writer"].value_counts().max() <= 13


def test_the_demo_passes_its_own_check_and_folds_keep_shares_within_a_point(tmp_path, capsys):
    demo(tmp_path, group_column="writer")
    make_folds.main(tmp_path)
    folds = pd.read_csv(tmp_path / "folds.csv", dtype=str, keep_default_na=False)
    shares = pd.crosstab(folds["fold"], folds["label"], normalize="index")
    assert (shares - folds["label"].value_counts(normalize=True)).abs().to_numpy().max() < 0.01
    assert "warning" not in capsys.readouterr().err


def test_a_second_run_writes_the_same_bytes(tmp_path):
    demo(tmp_path)
    before = files_of(tmp_path / "data")
    demo(tmp_path)
    assert files_of(tmp_path / "data") == before


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("mine")
    with pytest.raises(UserError, match=r"holds files that are not the demo's \(train.csv\): move them away"):
        demo(tmp_path)
    assert files_of(tmp_path / "data") == {(tmp_path / "data" / "train.csv").relative_to(tmp_path / "data"): b"mine"}


def test_a_number_of_labels_that_the_demo_has_not_is_refused(tmp_path):
    with pytest.raises(UserError, match="the demo has 3 labels: name 3 target_columns, or 1, not 2"):
        demo(tmp_path, "multilabel", "[a, b]")
    assert not (tmp_path / "data").exists()
