"""embed.py: embeddings of a frozen backbone for every image, joined by id, and what it refuses."""

import inspect
import sys

import cv2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import save_file

import embed
from kfold.data.images import read_image
from kfold.ensemble.features import read_embeddings
from kfold.errors import UserError
from kfold.model.build import input_statistics
from kfold.model.weights import normalize

TRAIN_IDS, TEST_IDS = [f"t{number:02}" for number in range(12)], [f"{number:03}" for number in range(6)]


@pytest.fixture(autouse=True)
def _no_loader_processes(monkeypatch):
    monkeypatch.setattr(embed, "NUM_WORKERS", 0)
    monkeypatch.setattr(embed, "BATCH_SIZE", 5)


@pytest.fixture
def root(tmp_path):
    """A small competition with folds; train.csv and folds.csv are in different orders."""
    noise = np.random.default_rng(0)
    for folder, ids in (("train_images", TRAIN_IDS), ("test_images", TEST_IDS)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for name in ids:
            cv2.imwrite(str(tmp_path / "data" / folder / f"{name}.png"), noise.integers(0, 256, (32, 32, 3), np.uint8))
    labels = pd.DataFrame({"image_id": TRAIN_IDS, "label": ["cat", "dog"] * 6})
    labels[::-1].to_csv(tmp_path / "data" / "train.csv", index=False)
    pd.DataFrame({"image_id": TEST_IDS}).to_csv(tmp_path / "data" / "test.csv", index=False)
    folds = pd.DataFrame({"id": TRAIN_IDS, "fold": [0, 1] * 6, "group": "", "duplicate_group": ""})
    folds.assign(label=labels["label"]).to_csv(tmp_path / "folds.csv", index=False)
    (tmp_path / "competition.yaml").write_text(
        "project_name: Test\ntask: binary\ntarget_columns: [label]\nnum_folds: 2\n"
    )
    return tmp_path


def run(root, **changes):
    options = {"backbone": "test_resnet", "image_size": 32, "random_weights": True, "root": root}
    embed.main(**{**options, **changes})
    return root / "embeddings.parquet"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    torch.manual_seed(5)
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


def test_each_id_has_the_features_of_its_own_image(root, weights, capsys):
    path = run(root, random_weights=False, pretrained_path=str(weights))
    values = read_embeddings(path, [*TEST_IDS, *TRAIN_IDS])
    assert pq.read_table(path)["id"].to_pylist() == [*TRAIN_IDS, *TEST_IDS]
    model = timm.create_model(
        "test_resnet", num_classes=0, pretrained_cfg_overlay={"file": str(weights)}, pretrained=True
    )
    model.eval()
    for folder, name in (("test_images", "003"), ("train_images", "t07")):
        image = torch.from_numpy(read_image(root / "data" / folder / f"{name}.png"))[None]
        with torch.inference_mode():
            expected = model(normalize(image, *input_statistics(model)))[0].numpy()
        np.testing.assert_allclose(read_embeddings(path, [name])[0], expected, rtol=1e-3, atol=1e-5)
    assert values.shape == (18, model.num_features)
    assert len(np.unique(values, axis=0)) == 18
    header, training, test, written, following = capsys.readouterr().out.splitlines()[-5:]
    assert header.split() == ["images", "rows", "columns", "unreadable", "images/s", "minutes"]
    assert training.split()[:4] == ["training", "12", str(model.num_features), "0"]
    assert test.split()[:4] == ["test", "6", str(model.num_features), "0"]
    assert all(float(line.split()[4]) > 0 for line in (training, test))
    assert written == f"{path}: 12 training and 6 test images, {path.stat().st_size / 1e6:.1f} MB"
    assert following.startswith("next: ")


def test_the_same_command_gives_the_same_bytes(root):
    content = run(root).read_bytes()
    assert run(root, overwrite=True).read_bytes() == content


def test_a_finished_file_is_kept_and_one_made_otherwise_is_refused(root, capsys):
    path = run(root)
    written = path.stat().st_mtime_ns
    run(root)
    output = capsys.readouterr().out
    assert "already there, nothing to do" in output
    assert output.splitlines()[-1] == "next: python stack.py --embeddings embeddings.parquet"
    assert path.stat().st_mtime_ns == written
    with pytest.raises(UserError, match="made with image_size 32, now 48: make it anew with --overwrite"):
        run(root, image_size=48)
    run(root, image_size=48, overwrite=True)
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="damaged: make it anew"):
        run(root)


def test_an_unreadable_test_image_is_a_row_of_nan_and_listed(root, capsys):
    (root / "data" / "test_images" / "002.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (root / "data" / "test_images" / "004.png").unlink()
    values = read_embeddings(run(root), TEST_IDS)
    assert np.isnan(values).all(axis=1).tolist() == [False, False, True, False, True, False]
    assert not np.isnan(values[[0, 1, 3, 5]]).any()
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-3].split()[:4:3] == ["test", "2"]
    warnings = captured.err.splitlines()
    assert "id '002' has no embedding" in warnings[0]
    assert "004.png: no such file: id '004' has no embedding" in warnings[1]


def test_an_unreadable_training_image_stops_before_anything_is_written(root):
    (root / "data" / "train_images" / "t03.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"t03.png: is empty"):
        run(root)
    assert not (root / "embeddings.parquet").exists()


def test_an_id_of_both_tables_is_refused(root):
    pd.DataFrame({"image_id": ["t05", *TEST_IDS]}).to_csv(root / "data" / "test.csv", index=False)
    with pytest.raises(UserError, match=r"1 ids are also in train.csv, the first is 't05'"):
        run(root)


def test_random_weights_come_only_when_asked_for_by_name(root, weights):
    with pytest.raises(UserError, match="contradict each other"):
        run(root, pretrained_path=str(weights))
    with pytest.raises(UserError, match="no such file"):
        run(root, random_weights=False, pretrained_path="nowhere.safetensors")
    with pytest.raises(UserError, match="timm .* has none of that name"):
        run(root, backbone="resnot")
    with pytest.raises(UserError, match="--image-size 0"):
        run(root, image_size=0)


def test_the_command_line_gives_main_its_options(monkeypatch):
    words = ["--backbone", "vit", "--pretrained-path", "w.pth", "--image-size", "64", "--random-weights", "--overwrite"]
    monkeypatch.setattr(sys, "argv", ["embed.py", *words])
    options = vars(embed.parse_arguments())
    assert {*options, "root"} == set(inspect.signature(embed.main).parameters)
    assert tuple(options.values()) == ("vit", "w.pth", 64, True, True)
