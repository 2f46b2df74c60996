"""kfold/artifacts.py: a file is whole or absent, and whatever does not fit is refused by name."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import Competition, Config, load_config, settings_hash
from kfold.errors import UserError
from kfold.files import atomic_write, locked
from kfold.predictions import Predictions, read_predictions, write_predictions

ROOT = Path(__file__).resolve().parents[1]
IDS = np.array(["000123", "NA", "é 汉"], dtype=object)
FACTS = Competition(project_name="x", task="multiclass", target_columns=("label",))


def predictions(ids=IDS, **changes) -> Predictions:
    rows = len(ids)
    made = Predictions(
        ids=np.array(ids, dtype=object),
        values=np.arange(2 * rows, dtype=np.float32).reshape(rows, 2) / 10,
        names=("cat", "dog"),
        stamps={"fold_stamp": "f" * 64, "config_hash": "c", "weights": "last", "tta": "none"},
        fold=np.zeros(rows, np.int64),
    )
    return replace(made, **changes)


def problems_of(call, *arguments, **options) -> list[str]:
    with pytest.raises(UserError) as refusal:
        call(*arguments, **options)
    assert all(problem and "\n" not in problem for problem in refusal.value.problems)
    return refusal.value.problems


# Atomic writing


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt(), MemoryError()])
def test_a_failing_writer_leaves_the_old_file_whole_and_nothing_else(tmp_path, error):
    path = tmp_path / "weights.bin"
    atomic_write(path, b"old")

    def half(temporary: Path) -> None:
        temporary.write_bytes(b"ne")
        raise error

    with pytest.raises(type(error)):
        atomic_write(path, half)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["weights.bin"]


def test_a_full_disk_is_told_in_one_line_and_the_old_file_stays(tmp_path):
    path = tmp_path / "log.csv"
    atomic_write(path, "old")

    def full(temporary: Path) -> None:
        raise OSError(28, "No space left on device")

    (problem,) = problems_of(atomic_write, path, full)
    assert problem == f"{path}: cannot be written (No space left on device): free space or mend rights"
    assert path.read_text() == "old"


def test_a_killed_writer_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "weights.bin"
    atomic_write(path, b"old")
    code = (
        "import os, sys; from pathlib import Path; from kfold.files import atomic_write\n"
        "def die(temporary): temporary.write_bytes(b'ne'); os.kill(os.getpid(), 9)\n"
        "atomic_write(Path(sys.argv[1]), die)"
    )
    killed = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT)
    assert killed.returncode != 0
    assert path.read_bytes() == b"old"


def test_text_bytes_and_functions_are_written_into_new_folders(tmp_path):
    for content in ("é\n", "é\n".encode(), lambda temporary: temporary.write_bytes("é\n".encode())):
        path = tmp_path / "a" / "b" / "file"
        atomic_write(path, content)
        assert path.read_bytes() == "é\n".encode()
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        path.unlink()


# Predictions


def test_predictions_come_back_as_they_were(tmp_path):
    path = tmp_path / "oof.parquet"
    write_predictions(path, predictions())
    read = read_predictions(path, "f" * 64, IDS)
    assert list(read.ids) == list(IDS)
    np.testing.assert_array_equal(read.values, predictions().values)
    assert read.values.dtype == np.float32
    assert (read.names, list(read.fold)) == (("cat", "dog"), [0, 0, 0])
    assert read.stamps == predictions().stamps


@given(st.permutations(range(5)))
def test_values_are_joined_by_id_never_by_position(order):
    ids = [f"id{number}" for number in range(5)]
    whole = predictions(ids)
    mixed = Predictions(whole.ids[order], whole.values[order], whole.names, whole.stamps)
    np.testing.assert_array_equal(mixed.aligned_to(ids), whole.values)


def test_foreign_folds_are_refused_by_both_stamps(tmp_path):
    path = tmp_path / "oof.parquet"
    write_predictions(path, predictions())
    (problem,) = problems_of(read_predictions, path, "0" * 64)
    assert problem == (
        f"{path}: made with other folds (stamp ffffffffffff, folds.csv has 000000000000): train again"
    )  # fmt: skip


def test_a_file_without_a_stamp_is_refused(tmp_path):
    path = tmp_path / "oof.parquet"
    pq.write_table(pa.table({"id": ["a"], "p_x": [0.5]}), path)
    (problem,) = problems_of(read_predictions, path, "f" * 64)
    assert "stamp none" in problem


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (["000123", "NA", "NA"], ["id 'NA' occurs twice", "1 missing ids, the first is 'é 汉'"]),
        (["000123", "NA"], ["1 missing ids, the first is 'é 汉'"]),
        (["000123", "NA", "é 汉", "123"], ["1 foreign ids, the first is '123'"]),
        (["123", "NA", "é 汉"], ["1 missing ids, the first is '000123'", "1 foreign ids, the first is '123'"]),
    ],
)
def test_doubled_missing_and_foreign_ids_are_named(tmp_path, ids, words):
    path = tmp_path / "oof.parquet"
    write_predictions(path, predictions(ids))
    problems = problems_of(read_predictions, path, "f" * 64, IDS)
    assert len(problems) == len(words)
    for problem, word in zip(problems, words, strict=True):
        assert problem.startswith(f"{path}: ")
        assert word in problem


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_id(tmp_path, value):
    path = tmp_path / "test.parquet"
    values = predictions().values.copy()
    values[1, 0] = value
    (problem,) = problems_of(write_predictions, path, predictions(values=values))
    assert "1 of 3 predictions would not be finite" in problem
    assert not path.exists()
    write_predictions(path, predictions())
    table = pq.read_table(path)
    column = table.column_names.index("p_" + predictions().names[0])
    pq.write_table(table.set_column(column, table.column_names[column], pa.array(values[:, 0])), path)
    (problem,) = problems_of(read_predictions, path, "f" * 64)
    assert "id 'NA' has a prediction that is not finite (1 rows)" in problem


def test_a_damaged_or_absent_file_is_named(tmp_path):
    path = tmp_path / "oof.parquet"
    (problem,) = problems_of(read_predictions, path, "f" * 64)
    assert problem.startswith(f"{path}: no such file")
    write_predictions(path, predictions())
    path.write_bytes(path.read_bytes()[:-20])
    (problem,) = problems_of(read_predictions, path, "f" * 64)
    assert problem.startswith(f"{path}: damaged")


# A run: three ids in two folds


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    workspace = Workspace(tmp_path)
    artifacts.register_run(workspace, "base", FACTS, Config(), [0, 1], overwrite=False)
    for number, ids in enumerate((IDS[:2], IDS[2:])):
        write_fold(workspace, number, predictions(ids), predictions(["t1", "t2"], fold=None))
    return workspace


def write_fold(workspace: Workspace, number: int, oof: Predictions, test: Predictions) -> None:
    write_predictions(workspace.predictions_path("base", number, "oof"), oof)
    write_predictions(workspace.predictions_path("base", number, "test"), test)
    folder = workspace.fold_dir("base", number)
    artifacts.write_manifest(folder, {"run": "base", "trained_without_fold": number}, ["oof.parquet", "test.parquet"])


def read_oof(workspace: Workspace, ids=IDS, fold=(0, 0, 1)) -> Predictions:
    return artifacts.read_oof(workspace, "base", np.array(ids, object), np.array(fold), "f" * 64)


def test_oof_rows_come_from_their_own_fold_in_the_order_asked_for(workspace):
    backwards = read_oof(workspace, IDS[::-1], (1, 0, 0))
    np.testing.assert_allclose(backwards.values, [[0, 0.1], [0.2, 0.3], [0, 0.1]])
    np.testing.assert_array_equal(backwards.aligned_to(IDS), read_oof(workspace).values)


def test_a_row_in_another_fold_than_folds_csv_says_is_refused(workspace):
    problems = problems_of(read_oof, workspace, fold=(0, 1, 1))
    assert any("foreign ids" in problem for problem in problems)


def test_test_predictions_are_the_mean_of_the_folds(workspace):
    other = predictions(["t2", "t1"], fold=None)
    write_fold(workspace, 1, predictions(IDS[2:]), other)
    read = artifacts.read_test(workspace, "base", [0, 1], np.array(["t1", "t2"], object), "f" * 64)
    np.testing.assert_allclose(read.values, [[0.1, 0.2], [0.1, 0.2]], atol=1e-7)


@pytest.mark.parametrize("key", ["config_hash", "weights", "tta"])
def test_folds_of_different_origin_are_not_mixed(workspace, key):
    odd = {**predictions().stamps, key: "other"}
    write_fold(workspace, 1, predictions(IDS[2:], stamps=odd), predictions(["t1", "t2"], fold=None, stamps=odd))
    (problem,) = problems_of(read_oof, workspace)
    assert f"its folds differ in {key}" in problem


def test_an_untrained_and_an_unpredicted_fold_are_told_apart(workspace):
    folder = workspace.fold_dir("base", 1)
    artifacts.forget_predictions(folder, artifacts.read_manifest(folder))
    (problem,) = problems_of(read_oof, workspace)
    assert "oof.parquet: not made yet: run python predict.py --run base" in problem
    (folder / "manifest.json").unlink()
    (problem,) = problems_of(read_oof, workspace)
    assert "fold 1 of run base is not trained" in problem
    assert workspace.trained_folds("base") == [0]


def test_every_flipped_byte_is_named(workspace):
    path = workspace.predictions_path("base", 0, "oof")
    good = path.read_bytes()
    for position in range(0, len(good), 37):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        (problem,) = problems_of(read_oof, workspace)
        assert problem.startswith(f"{path}: damaged or changed")
    path.write_bytes(good)
    read_oof(workspace)


def test_all_changed_and_missing_files_are_named_at_once(workspace):
    folder = workspace.fold_dir("base", 0)
    (folder / "oof.parquet").unlink()
    (folder / "test.parquet").write_bytes(b"")
    manifest = artifacts.read_manifest(folder)
    problems = problems_of(artifacts.verify_files, folder, manifest)
    assert ["missing" in problems[0], "damaged" in problems[1]] == [True, True]
    (problem,) = problems_of(artifacts.verify_files, folder, manifest, ["test.parquet"])
    assert "test.parquet" in problem


def test_forgotten_predictions_are_not_done_until_written_again(workspace):
    folder = workspace.fold_dir("base", 0)
    manifest = {**artifacts.read_manifest(folder), "predicted": {"tta": "none"}}
    kept = artifacts.forget_predictions(folder, manifest)
    assert artifacts.read_manifest(folder) == kept
    assert kept["files"] == {}
    assert kept["run"] == "base"
    assert "predicted" not in kept


def test_a_manifest_keeps_what_it_said_of_files_it_is_not_asked_to_read_again(workspace):
    folder = workspace.fold_dir("base", 0)
    files = artifacts.read_manifest(folder)["files"]
    (folder / "oof.parquet").write_bytes(b"damaged")
    artifacts.write_manifest(folder, {}, ["test.parquet"], files)
    assert artifacts.read_manifest(folder)["files"] == files


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}', "{}", "\xff"])
def test_a_damaged_manifest_is_named(workspace, text):
    path = workspace.fold_dir("base", 0) / "manifest.json"
    path.write_bytes(text.encode("latin-1"))
    (problem,) = problems_of(artifacts.read_manifest, path.parent)
    assert problem.startswith(
        f"{path}: damaged, changed by hand or of an earlier version: make this fold again with --"
    )


@given(st.integers(0, 10**6), st.integers(0, 7), st.sampled_from(["flip", "cut", "insert"]))
def test_any_change_of_a_manifest_is_seen(tmp_path_factory, place, bit, kind):
    folder = tmp_path_factory.mktemp("fold")
    facts = {"run": "é", "score": 0.1, "loss": float("nan"), "list": [1, None, True], "files": {"a": {"bytes": 3}}}
    artifacts.save_manifest(folder, facts)
    path = folder / "manifest.json"
    assert list(artifacts.read_manifest(folder)) == list(facts)
    content = bytearray(path.read_bytes())
    place %= len(content)
    if kind == "flip":
        content[place] ^= 1 << bit
    content = {"flip": content, "cut": content[:place], "insert": content[:place] + b" " + content[place:]}[kind]
    path.write_bytes(content)
    problems_of(artifacts.read_manifest, folder)


def test_a_manifest_without_a_digest_of_itself_is_named(workspace):
    path = workspace.fold_dir("base", 0) / "manifest.json"
    artifacts.write_manifest(path.parent, {"run": "base"}, [])
    facts = json.loads(path.read_text())
    del facts["manifest_sha256"]
    path.write_text(json.dumps(facts, indent=1) + "\n")
    assert "damaged" in problems_of(artifacts.read_manifest, path.parent)[0]


# Settings of a run


def test_a_run_is_not_mixed_from_two_settings(workspace):
    (problem,) = problems_of(artifacts.register_run, workspace, "base", FACTS, Config(lr=1e-3), [1], False)
    assert "now lr=0.001: take back the change, give the new run a name" in problem
    (problem,) = problems_of(artifacts.register_run, workspace, "base", FACTS, Config(lr=1e-3), [1], True)
    assert "lr=0.001" in problem
    artifacts.register_run(workspace, "base", FACTS, Config(workers=0), [1], False)
    assert load_config(workspace.run_config_path("base")) == Config(workers=0)  # which changes no weight


def test_overwriting_every_fold_takes_the_new_settings(workspace):
    artifacts.register_run(workspace, "base", FACTS, Config(lr=1e-3), [0, 1], True)
    assert load_config(workspace.run_config_path("base")).lr == 1e-3


def test_a_run_of_another_metric_is_refused_but_folders_may_move(workspace):
    changed = FACTS.model_copy(update={"metric": "log_loss"})
    (problem,) = problems_of(artifacts.register_run, workspace, "base", changed, Config(), [0], False)
    assert "now metric=log_loss" in problem
    moved = FACTS.model_copy(update={"data_dir": "/elsewhere", "project_name": "Other"})
    artifacts.register_run(workspace, "base", moved, Config(), [1], False)


def test_overwriting_takes_back_done_before_the_settings_change(workspace, monkeypatch):
    def stop(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(artifacts, "write_sealed", stop)
    with pytest.raises(KeyboardInterrupt):
        artifacts.register_run(workspace, "base", FACTS, Config(lr=1e-3), [0, 1], True)
    assert workspace.trained_folds("base") == []
    assert load_config(workspace.run_config_path("base")) == Config()


def test_a_fold_trained_on_other_folds_or_settings_is_refused_not_done(workspace):
    folder = workspace.fold_dir("base", 0)
    facts = {"trained_without_fold": 0, "fold_stamp": "f" * 64, "config_hash": settings_hash(Config())}
    artifacts.write_manifest(folder, facts, ["oof.parquet"])
    assert artifacts.is_done(workspace, "base", 0, "f" * 64)
    (problem,) = problems_of(artifacts.is_done, workspace, "base", 0, "0" * 64)
    assert "trained on other folds" in problem
    artifacts.write_manifest(folder, {**facts, "config_hash": "0"}, ["oof.parquet"])
    (problem,) = problems_of(artifacts.is_done, workspace, "base", 0, "f" * 64)
    assert "trained with other settings" in problem
    (folder / "manifest.json").unlink()
    assert not artifacts.is_done(workspace, "base", 0, "f" * 64)


def test_folders_of_other_names_are_no_folds(workspace):
    (workspace.run_dir("base") / "fold0-old").mkdir()
    (workspace.run_dir("base") / "fold0-old" / "manifest.json").write_text("{}")
    assert workspace.trained_folds("base") == [0, 1]


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a b", "x\n", "é"])
def test_a_run_name_that_leaves_its_folder_is_refused(tmp_path, name):
    (problem,) = problems_of(artifacts.register_run, Workspace(tmp_path), name, FACTS, Config(), [0], False)
    assert "use letters, digits, dot, dash and underscore" in problem
    assert list(tmp_path.iterdir()) == []


# Locks


def test_a_lock_held_by_another_process_is_named_and_freed_with_it(tmp_path):
    code = (
        "import sys; from pathlib import Path; from kfold.files import locked\n"
        "with locked(Path(sys.argv[1])): print('ready', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, **pipes) as holder:
        assert holder.stdout.readline() == "ready\n"
        (problem,) = problems_of(lambda: locked(tmp_path).__enter__())
        assert f"in use by process {holder.pid} on " in problem
        holder.kill()
        holder.wait()
    with locked(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / ".lock.holder").read_text()
    assert not (tmp_path / ".lock.holder").exists()


def test_the_environment_names_every_stamped_package():
    found = artifacts.environment()
    assert set(artifacts.STAMPED_PACKAGES) < set(found)
    json.dumps(found)
