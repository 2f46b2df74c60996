"""Whoever looks at images outside of the training steps takes them from the cache, and gets the same pixels."""

import shutil
from pathlib import Path

import pytest
from test_pipeline import prepare

import predict
import train
from kfold import intervals
from kfold.artifacts import Workspace
from kfold.data import cache_build


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    """Intervals are not what is tested here, and would take most of the time."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("NUM_RESAMPLES_AT_LEAST", "NUM_RESAMPLES_AT_MOST"):
            patched.setattr(intervals, name, 3)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return prepare(
        tmp_path_factory.mktemp("base"), "multiclass", 48, 9, epochs=1, batch_size=8, cache="raw", tta="hflip"
    )  # fmt: skip


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
