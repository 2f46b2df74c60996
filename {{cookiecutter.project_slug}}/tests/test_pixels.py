"""The key `cache`: what is chosen, kept, and the same bytes whatever the disk has room for."""

import hashlib
import json
import os
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
from interrupted import StopAfter
from test_pipeline import prepare

import predict
import train
from kfold.artifacts import Workspace
from kfold.config import Config
from kfold.data.reduce import Rule
from kfold.errors import Interrupted, UserError
from kfold.setup import pixels as pixels_module
from kfold.setup.pixels import open_pixels, read_record, recorded_pixels, rule_side

GIGABYTE = 10**9


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


@pytest.fixture
def paths(tmp_path):
    found = [tmp_path / f"{number}.jpg" for number in range(6)]
    for path in found:
        coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
        cv2.imwrite(str(path), cv2.resize(coarse, (400, 300), interpolation=cv2.INTER_CUBIC))
    return found


@pytest.fixture
def free(monkeypatch):
    """free(bytes): what the disk has from now on."""
    return lambda num_bytes: monkeypatch.setattr(pixels_module, "free_bytes", lambda folder: num_bytes)


def opened(workspace, paths, run="run", times=5, **config):
    config = {"image_size": 64, "augment": "none", **config}
    return open_pixels(workspace, Config(**config), paths, times, lambda: None, run)


RAW_BYTES = 6 * 64 * 85 * 3


@pytest.mark.parametrize(
    ("room", "format_", "is_kept"),
    [(2 * RAW_BYTES, "raw", True), (2 * RAW_BYTES - 1, "jpeg", True), (20_000, "raw", False)],
)
def test_auto_takes_raw_then_jpeg_then_nothing_as_half_of_the_free_disk_allows(
    workspace, paths, free, room, format_, is_kept, capsys
):
    free(room)
    pixels = opened(workspace, paths)
    assert pixels.rule == Rule(64, format_)
    assert (pixels.folder is not None) == is_kept
    said = capsys.readouterr().out
    assert f"raw needs {RAW_BYTES / 1e6:.2f} MB of" in said
    assert ("every image is decoded each time" in said) == (not is_kept)


def test_images_that_are_read_once_get_no_cache_but_use_the_one_that_is_there(workspace, paths):
    assert opened(workspace, paths, times=1).folder is None
    folder = opened(workspace, paths, times=2).folder
    assert folder is not None
    assert opened(workspace, paths, times=1).folder == folder


def test_a_cache_that_is_asked_for_and_does_not_fit_is_refused_with_the_bytes(workspace, paths, free):
    free(RAW_BYTES - 1)
    with pytest.raises(UserError, match=r"cache=raw: raw needs 0\.10 MB of 0\.10 MB free in .*cache_folder"):
        opened(workspace, paths, cache="raw")
    free(RAW_BYTES)
    assert opened(workspace, paths, cache="raw").folder is not None


def test_a_run_keeps_the_pixels_that_it_began_with_whatever_the_disk_has_later(workspace, paths, free):
    free(20_000)
    began = opened(workspace, paths, run="a"), opened(workspace, paths, run="b", cache="jpeg")
    assert [pixels.rule.format for pixels in began] == ["raw", "jpeg"]
    free(GIGABYTE)
    for run, before in zip("ab", began, strict=True):
        for cache in ("auto", "raw", "jpeg", "off"):
            pixels = opened(workspace, paths, run=run, cache=cache)
            assert pixels.rule == before.rule
            assert (pixels.folder is None) == (cache == "off")
            for row in range(6):
                assert np.array_equal(pixels.reader(paths)(row), before.reader(paths)(row))
        assert recorded_pixels(workspace, run, Config(), paths, 1, lambda: None).rule == before.rule


@pytest.mark.parametrize(("disk", "format_"), [(2 * RAW_BYTES, "raw"), (2 * RAW_BYTES - 2, "jpeg")])
def test_the_choice_does_not_depend_on_the_cache_of_an_earlier_run(workspace, paths, free, disk, format_):
    free(disk)
    assert opened(workspace, paths, run="a").rule.format == format_
    opened(workspace, paths, run="b", cache="raw")
    free(disk - RAW_BYTES)
    assert opened(workspace, paths, run="c").rule.format == format_


def test_a_rehearsal_keeps_nothing_of_the_run(workspace, paths):
    opened(workspace, paths, run="")
    assert not workspace.runs_dir.exists()


def test_a_run_without_a_record_is_predicted_on_the_files_as_they_are(workspace, paths):
    pixels = recorded_pixels(workspace, "old", Config(), paths, 5, lambda: None)
    assert pixels.reader(paths)(0).shape == (300, 400, 3)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"side": "a", "format": "raw"}', '{"side": 64, "format": "x"}'])
def test_a_record_that_makes_no_sense_is_named(workspace, text):
    path = workspace.pixels_path("a")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UserError, match=r"pixels\.json: damaged"):
        read_record(workspace, "a")


def test_the_side_follows_from_the_largest_size_and_the_smallest_crop():
    assert rule_side(Config(image_size=224, augment="none")) == 224
    assert rule_side(Config(image_size=224, augment="light")) == 288  # 224 / sqrt(0.7) = 268
    assert rule_side(Config(image_size=224, augment="none", crop_scale=0.01)) == 448
    assert rule_side(Config(image_size=224, augment="none", center_crop=0.7)) == 320
    assert rule_side(Config(image_size=64, augment="none", multi_scale=[64, 128])) == 128
    assert rule_side(Config(image_size=64, augment="none", progressive=[32, 160])) == 160


# Whole trainings


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = prepare(tmp_path_factory.mktemp("base"), "multiclass", 60, 12, epochs=3, batch_size=8, image_size=16)
    noise = np.random.default_rng(0)
    for name in pd.read_csv(root / "folds.csv", dtype=str)["id"]:  # larger than the side of 32
        coarse = noise.integers(0, 256, (5, 5, 3), np.uint8)
        path = root / "data" / "train_images" / f"{name}.png"
        cv2.imwrite(str(path), cv2.resize(coarse, (72, 48), interpolation=cv2.INTER_CUBIC))
    return root


@pytest.fixture
def root(base, tmp_path):
    shutil.copytree(base, tmp_path / "root", ignore=shutil.ignore_patterns("data", "cache"))
    os.symlink(base / "data", tmp_path / "root" / "data")
    return tmp_path / "root"


def weights_of(root, run: str) -> str:
    return hashlib.sha256((root / "runs" / run / "fold0" / "last.safetensors").read_bytes()).hexdigest()


def test_weights_are_the_same_bytes_with_and_without_a_cache_and_whoever_loads(root):
    for name, words in (
        ("off", ["cache=off"]),
        ("raw", ["cache=raw"]),
        ("again", ["cache=raw", "workers=2"]),
        ("threads", ["cache=auto", "workers=threads"]),
        ("jpeg", ["cache=jpeg"]),
    ):
        train.main(fold="0", overrides=words, name=name, root=root)
    assert len({weights_of(root, name) for name in ("off", "raw", "again", "threads")}) == 1
    assert weights_of(root, "jpeg") != weights_of(root, "raw")


@pytest.mark.parametrize(("first", "then"), [("off", "raw"), ("jpeg", "off")])
def test_a_resumed_run_ends_with_the_same_bytes_when_its_cache_is_gone_or_new(root, first, then):
    train.main(fold="0", overrides=[f"cache={first}"], name="whole", root=root)
    shutil.rmtree(root / "cache", ignore_errors=True)
    with pytest.raises(Interrupted):
        train.main(fold="0", overrides=[f"cache={first}"], name="cut", root=root, stop=StopAfter(8))
    shutil.rmtree(root / "cache", ignore_errors=True)
    train.main(fold="0", overrides=[f"cache={then}"], name="cut", root=root)
    assert weights_of(root, "cut") == weights_of(root, "whole")


def test_a_run_that_is_trained_anew_chooses_anew(root):
    train.main(fold="0", overrides=["cache=jpeg", "epochs=1"], name="a", root=root)
    train.main(fold="0", overrides=["cache=raw", "epochs=1"], name="a", overwrite=True, root=root)
    assert json.loads((root / "runs" / "a" / "pixels.json").read_text())["format"] == "raw"


def test_predictions_are_those_of_the_training_with_and_without_a_cache(root):
    train.main(fold="0", overrides=["epochs=2"], name="a", root=root)
    oof_path, test_path = (root / "runs" / "a" / "fold0" / f"{rows}.parquet" for rows in ("oof", "test"))
    found = [pd.read_parquet(oof_path)]
    for _ in range(2):
        predict.main(run="a", overwrite=True, root=root)
        found += [pd.read_parquet(oof_path), pd.read_parquet(test_path)]
        shutil.rmtree(root / "cache", ignore_errors=True)
    for same in ((0, 1), (0, 3), (2, 4)):
        pd.testing.assert_frame_equal(*(found[number] for number in same))
