"""Trackers are told each epoch once, whatever happens on the way, and never change or end a training."""

import ast
import hashlib
import importlib.util
import os
import shutil
import struct
from pathlib import Path

import pandas as pd
import pytest
from interrupted import StopAfter
from test_pipeline import prepare

import train
from kfold import tracking
from kfold.artifacts import Workspace
from kfold.config import Config, settings_hash
from kfold.errors import Interrupted, UserError
from kfold.ledger import read_ledger
from kfold.tracking import Choice, Tracker

EPOCHS = 3
TOLD = ["train_loss", "valid_loss", "accuracy", "lr", "skipped", "accumulate", "seconds", "images_per_second"]


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("base"), "multiclass", 60, 12, epochs=EPOCHS, batch_size=16)


@pytest.fixture
def root(base, tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # without anybody's netrc
    shutil.copytree(base, tmp_path / "copy", ignore=shutil.ignore_patterns("data"))
    os.symlink(base / "data", tmp_path / "copy" / "data")
    return tmp_path / "copy"


def read_tensorboard(root: Path, part: str) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(root / "tracking" / "tensorboard" / "baseline" / part)).Reload()
    found = {}
    for name in reader.Tags()["scalars"]:
        steps = [event.step for event in reader.Scalars(name)]
        assert len(set(steps)) == len(steps)
        found[name] = {event.step: event.value for event in reader.Scalars(name)}
    return found


def read_wandb(root: Path, part: str) -> dict[str, dict[int, float]]:
    """An offline run's file: blocks of 32 KiB with records of (crc, length, type), as LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = (root / "tracking" / "wandb" / f"baseline-{part}").glob("wandb/offline-run-*/*.wandb")
    data, position, part_of, found = path.read_bytes(), 7, b"", {}
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        part_of += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, part_of = Record.FromString(part_of), b""
            for item in record.history.item:
                name, step = item.key or item.nested_key[0], record.history.step.num
                assert step not in found.setdefault(name, {})
                found[name][step] = float(item.value_json)
    return {name: points for name, points in found.items() if not name.startswith("_")}


def read_mlflow(root: Path, part: str) -> dict[str, dict[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking.local_store(root / "tracking" / "mlflow"))
    (run,) = client.search_runs([client.get_experiment_by_name("Test").experiment_id], f"run_name = 'baseline {part}'")
    assert run.info.status == "FINISHED"
    assert run.data.params["backbone"] == "test_resnet"
    found = {}
    for name in run.data.metrics:
        points = client.get_metric_history(run.info.run_id, name)
        assert len({point.step for point in points}) == len(points)
        found[name] = {point.step: point.value for point in points}
    return found


READERS = [
    pytest.param("tensorboard", read_tensorboard, marks=needs("tensorboard")),
    pytest.param("wandb", read_wandb, marks=needs("wandb")),
    pytest.param("mlflow", read_mlflow, marks=needs("mlflow")),
]


@pytest.mark.parametrize(("kind", "read"), READERS)
def test_a_fold_that_was_stopped_tells_each_epoch_once_and_what_the_log_says(kind, read, root, capfd):
    words = [f"tracker={kind}"]
    with pytest.raises(Interrupted):
        train.main(fold="0", overrides=words, root=root, stop=StopAfter(5))  # in the second epoch
    train.main(fold="0", overrides=words, root=root)
    told, log = read(root, "fold0"), pd.read_csv(Workspace(root).log_path("baseline", 0)).set_index("epoch")
    assert sorted(told) == sorted(TOLD)
    for name, points in told.items():
        expected = log["score" if name == "accuracy" else name]
        assert points == pytest.approx(expected.to_dict(), rel=1e-6)
    assert "warning: tracker" not in capfd.readouterr().err
    train.main(fold="0", overrides=words, root=root, overwrite=True)
    assert {name: set(points) for name, points in read(root, "fold0").items()} == dict.fromkeys(TOLD, {1, 2, 3})


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=needs(kind)) for kind in tracking.TRACKERS])
def test_a_run_has_the_same_bytes_and_files_with_a_tracker(kind, root):
    found = []
    for tracker in ("none", kind):
        train.main(fold="0", overrides=[f"tracker={tracker}", "epochs=1"], root=root, overwrite=True)
        folder = root / "runs" / "baseline"
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("fold0/*.safetensors"))]
        found.append((names, digests, (folder / "fold0" / "oof.parquet").read_bytes()))
    assert found[0] == found[1]
    assert (root / "tracking").exists()


@needs("tensorboard")
def test_the_summary_has_the_score_of_all_folds(root):
    train.main(overrides=["tracker=tensorboard", "epochs=1"], root=root)
    (row,) = read_ledger(Workspace(root).ledger_path)
    told = read_tensorboard(root, "summary")
    for name in ("oof", "oof_low", "oof_high"):
        assert told[name] == {1: pytest.approx(float(row[name]), abs=1e-5)}  # the ledger has 6 digits
    assert {path.name for path in (root / "tracking" / "tensorboard" / "baseline").iterdir()} == {
        "fold0", "fold1", "fold2", "summary"
    }  # fmt: skip


@needs("tensorboard")
def test_a_run_may_go_on_with_another_tracker(root, capsys):
    assert settings_hash(Config(tracker="wandb")) == settings_hash(Config())
    train.main(fold="0", overrides=["epochs=1"], root=root)
    train.main(fold="0", overrides=["epochs=1", "tracker=tensorboard"], root=root)
    assert "done before" in capsys.readouterr().out


def failing(where):
    def fail(*_):
        raise ValueError(f"{where} is broken\nand more")

    def open_it(_):
        if where == "open":
            fail()
        return Tracker(fail if where == "log" else lambda *_: None, fail if where == "close" else lambda: None)

    return open_it


@pytest.mark.parametrize("where", ["open", "log", "close"])
def test_a_tracker_that_fails_is_warned_of_once_and_the_fold_is_trained(where, root, monkeypatch, capsys):
    monkeypatch.setitem(tracking.TRACKERS, "wandb", Choice(failing(where), "json"))
    train.main(fold="0", overrides=["tracker=wandb"], root=root)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "tracker" in line]
    assert warnings == [
        f"warning: tracker=wandb failed (ValueError: {where} is broken): training goes on without it"
    ]  # fmt: skip
    assert (Workspace(root).fold_dir("baseline", 0) / "manifest.json").exists()


def test_one_that_is_not_installed_is_refused_before_a_run_begins(root, monkeypatch):
    monkeypatch.setitem(tracking.TRACKERS, "wandb", Choice(failing("open"), "no_such_package"))
    with pytest.raises(UserError, match=r"tracker=wandb: it is not installed: pip install no_such_package, or"):
        train.main(fold="0", overrides=["tracker=wandb"], root=root)
    assert not (root / "runs").exists()


def test_no_module_imports_a_tracker_before_it_is_chosen():
    repository = Path(__file__).resolve().parents[1]
    for path in [*repository.glob("*.py"), *repository.glob("kfold/**/*.py")]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(word in name for name in names for word in ("tensorboard", "wandb", "mlflow")), path


def test_wandb_is_online_only_with_a_key_and_a_server(root, monkeypatch):
    assert not tracking.is_wandb_ready()  # no key
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert not tracking.is_wandb_ready()  # no network
    monkeypatch.setattr(tracking.socket, "create_connection", lambda *_, **__: tracking.socket.socket())
    assert tracking.is_wandb_ready()
    monkeypatch.delenv("WANDB_API_KEY")
    assert not tracking.is_wandb_ready()
    (Path(os.environ["HOME"]) / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (Path(os.environ["HOME"]) / ".netrc").chmod(0o600)
    assert tracking.is_wandb_ready()
