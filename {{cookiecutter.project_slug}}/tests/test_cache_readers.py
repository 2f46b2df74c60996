"""Whoever looks at images outside of the training steps takes them from the cache, and gets the same pixels."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from test_pipeline import prepare

import embed
import predict
import train
from kfold.artifacts import Workspace
from kfold.data import cache_build
from kfold.data.cache import FileReader, Pixels
from kfold.data.cache_build import data_path_of, fill
from kfold.data.images import read_image
from kfold.data.input_statistics import dataset_statistics
from kfold.data.reduce import FORMATS, Rule
from kfold.data.unreduced import UnreducedReader, rules_in
from kfold.seals import remove_sealed


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Half of the images are larger than a cache keeps them."""
    root = prepare(
        tmp_path_factory.mktemp("base"), "multiclass", 48, 9, epochs=1, batch_size=8, cache="raw", tta="hflip"
    )  # fmt: skip
    for name in ("train", "test"):
        ids = pd.read_csv(root / "data" / f"{name}.csv", dtype=str)["image_id"]
        for image_id in ids[::2]:
            path = str(root / "data" / f"{name}_images" / f"{image_id}.png")
            cv2.imwrite(path, cv2.resize(cv2.imread(path), (150, 130), interpolation=cv2.INTER_CUBIC))
    return root


@pytest.fixture
def root(base, tmp_path):
    shutil.copytree(base, tmp_path / "root", ignore=shutil.ignore_patterns("data"))
    (tmp_path / "root" / "data").symlink_to(base / "data")
    return tmp_path / "root"


def contents(root: Path, run: str) -> list[bytes]:
    workspace = Workspace(root)
    paths = [workspace.predictions_path(run, fold, rows) for fold in range(3) for rows in ("oof", "test")]
    return [path.read_bytes() for path in paths]


def test_predictions_look_into_the_index_of_the_cache_once_a_run(root, monkeypatch):
    train.main(root=root)
    predict.main(root=root)  # makes the test images
    expected, calls, look = contents(root, "baseline"), [], cache_build.read_index
    monkeypatch.setattr(cache_build, "read_index", lambda *args: calls.append(args) or look(*args))
    predict.main(root=root, overwrite=True)
    assert len(calls) == 1
    assert contents(root, "baseline") == expected


# Others than predict.py


@pytest.fixture
def opened(monkeypatch):
    """The files that are decoded, by name."""
    names, read = [], FileReader.__call__
    monkeypatch.setattr(
        FileReader, "__call__", lambda reader, row: names.append(reader.paths[row]) or read(reader, row)
    )
    return names


def image_paths(root: Path) -> list[Path]:
    return [(root / "data" / "train_images" / f"{one}.png") for one in pd.read_csv(root / "folds.csv", dtype=str)["id"]]


def test_labels_are_judged_by_the_pixels_that_the_judge_was_trained_on_from_the_cache_or_without(root, opened):
    words, found = ["clean_labels=0.2", "clean_labels_from=baseline", "speed=plain"], {}
    train.main(fold="0", root=root)
    opened.clear()
    for run, cache in (("auto", "auto"), ("off", "off")):
        train.main(fold="0", name=run, root=root, overrides=[*words, f"cache={cache}"])
        found[run] = Workspace(root).dropped_path(run, 0).read_bytes()
        assert bool(opened) == (run == "off")
    assert found["auto"] == found["off"]
    remove_sealed(Workspace(root).pixels_path("baseline"))  # as if it had been trained on the files as they are
    train.main(fold="0", name="files", root=root, overrides=words)
    assert Workspace(root).dropped_path("files", 0).read_bytes() != found["auto"]


@pytest.mark.parametrize("format", FORMATS)
def test_input_statistics_are_of_the_pixels_that_are_trained_on_from_the_cache_or_without(
    root, tmp_path, opened, format
):
    rule, paths = Rule(32, format), image_paths(root)
    cached = Pixels(rule, tmp_path / "cache", fill(tmp_path / "cache", rule, list(map(str, paths)), "", lambda: None))
    found = dataset_statistics(paths, 24, 0.9, "", cached)
    assert not opened
    assert found == dataset_statistics(paths, 24, 0.9, "", Pixels(rule))
    assert found != dataset_statistics(paths, 24, 0.9, "")


@pytest.mark.parametrize("format", FORMATS)
def test_files_as_they_are_come_from_a_cache_where_it_did_not_reduce_them(root, tmp_path, opened, format):
    rule, paths = Rule(64, format), image_paths(root)
    for side, count in ((64, 48), (96, 20)):  # two caches: the one with more of them counts
        other = Rule(side, format)
        fill(tmp_path / other.name, other, list(map(str, paths[:count])), "", lambda: None)
    (tmp_path / f"{format}-64-opencv-0.1").mkdir()
    (tmp_path / "raw-x-opencv-y").mkdir()
    assert [one.side for one in rules_in(tmp_path)] == [64, 96]
    paths.append(tmp_path / "missing.png")
    read = UnreducedReader(paths, tmp_path)
    for row, path in enumerate(paths[:-1]):
        assert np.array_equal(read(row), read_image(path))
    assert len(opened) == sum(min(read_image(path).shape[:2]) >= 64 for path in paths[:-1])
    assert 0 < len(opened) < 48
    with pytest.raises(ValueError, match="no such file"):
        read(48)
    with data_path_of(tmp_path / rule.name).open("r+b") as file:
        file.write(bytes(20))  # damaged: read from the file
    assert all(np.array_equal(UnreducedReader(paths, tmp_path)(row), read_image(paths[row])) for row in range(48))


def test_embeddings_are_the_same_bytes_with_a_cache_and_without(root, monkeypatch, opened):
    monkeypatch.setattr(embed, "NUM_WORKERS", 0)
    options = {"backbone": "test_resnet", "image_size": 32, "random_weights": True, "root": root, "overwrite": True}
    found, counts = [], []
    for has_cache in (False, True):
        if has_cache:
            train.main(fold="0", root=root, overrides=["image_size=40"], name="larger")
        opened.clear()
        embed.main(**options)
        found.append((root / "embeddings.parquet").read_bytes())
        counts.append(len(opened))
    assert found[0] == found[1]
    assert counts[1] < counts[0] == 57
