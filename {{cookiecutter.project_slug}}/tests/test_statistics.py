"""kfold/data/statistics.py: numbers of an image file, against numpy on the same pixels."""

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kfold.data import scan
from kfold.data.statistics import STATISTICS, image_statistics


def save(path, image):
    """Write RGB pixels."""
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return path


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_statistics_are_those_of_the_pixels(tmp_path_factory, height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    path = save(tmp_path_factory.mktemp("images") / "a.png", image)
    found = image_statistics([path], "test").iloc[0]
    assert (found["height"], found["width"], found["bytes"]) == (height, width, path.stat().st_size)
    np.testing.assert_allclose(found["aspect"], width / height)
    np.testing.assert_allclose(found["mean"], image.mean() / 255, atol=1e-9)
    np.testing.assert_allclose(found["contrast"], image.std() / 255, atol=1e-9)
    np.testing.assert_allclose(
        found[["red", "green", "blue"]].to_numpy(float), image.mean(axis=(0, 1)) / 255, atol=1e-9
    )


def test_an_unreadable_file_is_a_row_of_nan_between_the_others(tmp_path):
    good = save(tmp_path / "good.png", np.full((3, 2, 3), 255, np.uint8))
    (tmp_path / "broken.png").write_bytes(good.read_bytes()[:40])
    found = image_statistics([good, tmp_path / "broken.png", tmp_path / "missing.png", good], "test")
    assert list(found.columns) == list(STATISTICS)
    assert found.isna().all(axis=1).tolist() == [False, True, True, False]
    assert found["mean"][3] == 1
    assert found["contrast"][3] == 0


def test_several_processes_say_the_same_as_one(tmp_path, monkeypatch):
    noise = np.random.default_rng(0)
    paths = [save(tmp_path / f"{n}.png", noise.integers(0, 256, (8, 8, 3), np.uint8)) for n in range(5)]
    alone = image_statistics(paths, "test")
    monkeypatch.setattr(scan, "POOL_BYTES", 0)
    monkeypatch.setattr(scan.os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    assert image_statistics(paths, "test").equals(alone)


def test_no_files_are_a_table_without_rows():
    assert image_statistics([], "test").shape == (0, len(STATISTICS))
