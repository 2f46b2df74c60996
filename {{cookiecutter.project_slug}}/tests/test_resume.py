"""An interrupted training, taken up again, ends with the same bytes: weights, out-of-fold predictions and log."""

import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupted import (
    NUM_BATCHES,
    OPTIONS,
    StopAfter,
    fingerprint,
    finish_in_pieces,
    fork_server,
    make_base,
    new_root,
    train_option,
)
from reliability import count
from test_pipeline import copy_code, exit_code, prepare
from torch.utils.data import DataLoader

import competition
import train
from kfold import adopt, artifacts, stopping
from kfold.artifacts import Workspace
from kfold.config import load_config
from kfold.data.augment import Augmentation, train_transform
from kfold.data.loader import EpochOrder, Images, as_is, make_loader, read_batches
from kfold.errors import Interrupted, UserError
from kfold.forecast import TimeForecast, bytes_needed
from kfold.stopping import Stop, describe_seconds, parse_seconds
from kfold.training.saver import MUST_AGREE, Saver
from kfold.training.state import NUMBERS, Averages, Training, read_state, write_state

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # 4 loader processes, on purpose


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def undisturbed(base, tmp_path_factory):
    """option -> the fingerprint of a training that nothing interrupted, made once."""
    made = {}

    def fingerprint_of(option: str) -> dict[str, str]:
        if option not in made:
            root = new_root(base, tmp_path_factory.mktemp(option) / "undisturbed", option)
            train_option(root, option)
            made[option] = fingerprint(root, option)
        return made[option]

    return fingerprint_of


# Clean stops


@pytest.mark.parametrize("option", OPTIONS)
def test_a_training_in_pieces_ends_with_the_same_bytes(base, undisturbed, tmp_path, option):
    root = new_root(base, tmp_path / "root", option)
    # Of two batches: every other one, of validation too, is the last one. Of five: one in the second and third epoch.
    batches = count(2 if option == "everything" else 5, 2)
    assert finish_in_pieces(root, option, batches) >= NUM_BATCHES // batches
    assert fingerprint(root, option) == undisturbed(option)
    assert not list((root / "runs" / option / "fold0").glob("*.pt"))  # of no more use, and large


def test_a_stop_after_any_batch_ends_with_the_same_bytes(base, undisturbed, tmp_path, figures):
    options = list(OPTIONS) if count(0, 1) else ["snapshots"]
    places = [(option, batch) for option in options for batch in range(1, NUM_BATCHES + 4)]  # and 3 of validation
    for option, batch in places:
        root = new_root(base, tmp_path / f"{option}{batch}", option)
        with pytest.raises(Interrupted):
            train_option(root, option, StopAfter(batch))
        train_option(root, option)
        assert fingerprint(root, option) == undisturbed(option), (option, batch)
    figures(f"{len(places)} of {len(places)} clean stops, after every batch of {len(options)} options: same bytes")


def test_a_stop_while_averages_are_finished_loses_nothing(base, undisturbed, tmp_path, monkeypatch):
    root = new_root(base, tmp_path / "root", "swa")
    calls = []

    def check(self):
        calls.append(1)
        if len(calls) > 2:  # the first is before the fold, the second within the refreshing of BatchNorm
            raise Interrupted("enough")

    with monkeypatch.context() as patch:
        patch.setattr(Stop, "check", check)
        with pytest.raises(Interrupted):
            train_option(root, "swa")
    train_option(root, "swa")
    assert fingerprint(root, "swa") == undisturbed("swa")


@pytest.mark.parametrize("num_workers", [0, 1, 2, 4, "threads"])
def test_the_number_of_loader_processes_may_change_on_the_way(base, undisturbed, tmp_path, num_workers):
    root = new_root(base, tmp_path / "root", "plain")
    with pytest.raises(Interrupted):
        train_option(root, "plain", StopAfter(2))
    train.main(fold="0", overrides=[f"workers={num_workers}"], name="plain", root=root)
    assert fingerprint(root, "plain") == undisturbed("plain")


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("num_workers", [0, 1, 2, 4, "threads"])
def test_batches_are_the_same_bytes_at_every_resume_point(base, num_workers, persistent, figures):
    images = sorted((base / "data" / "train_images").iterdir())[:30]
    data = Images(
        images, np.zeros((30, 1)), train_transform(Augmentation("heavy", True, True, True), 16), 16, seed=3, fold=1
    )

    def loader(workers: int) -> DataLoader:
        order = EpochOrder(len(images), 4, True, 3, 1)
        if persistent or workers in (0, "threads"):
            return make_loader(data, order, workers, torch.device("cpu"))
        return DataLoader(data, batch_sampler=order, num_workers=workers, collate_fn=as_is)

    expected = [batch.images.numpy().tobytes() for batch in read_batches(loader(0), epoch=2)]
    starts = range(len(expected) + 1)
    kept = loader(num_workers)  # one for all points, as a training keeps its own over the epochs
    for start in starts:
        found = [batch.images.numpy().tobytes() for batch in read_batches(kept, 2, start)]
        assert found == expected[start:], start
    figures(f"{len(starts)} resume points, {num_workers} loader processes, persistent {persistent}: same batches")


# Kills


def train_as_a_command_does(root: Path, option: str) -> None:
    """In a child of the fork server; loader processes must be its own children, or they would outlive it."""
    multiprocessing.set_start_method("fork", force=True)
    train_option(root, option, save_batches=1)


def kill_at_random(root: Path, option: str, seconds: float, in_save: bool) -> str:
    """Start a training and kill it after so many seconds, or within the next save after them.

    "done" if it was faster, "saving" if a file was half written, else "killed".
    """
    child = fork_server().Process(target=train_as_a_command_does, args=(root, option))
    child.start()
    child.join(seconds)
    folder = root / "runs" / option / "fold0"
    while in_save and child.is_alive() and not list(folder.glob(".state.pt.*.tmp")):
        pass
    was_alive = child.is_alive()
    child.kill()
    child.join()
    if not was_alive:
        assert child.exitcode == 0
        return "done"
    return "saving" if list(folder.glob(".*.tmp")) else "killed"


def test_a_killed_training_ends_with_the_same_bytes(base, undisturbed, tmp_path, figures, capfd):
    """SIGKILL at random moments, saves after every batch so that many hit one; up to three for a training."""
    draw, wanted, found, trainings, names = random.Random(7), count(5, 200), [], 0, list(OPTIONS)
    usual = dict.fromkeys(OPTIONS, 2.0)  # seconds that a training takes, learned on the way
    while len(found) < wanted:
        # Loader processes of a killed parent keep its lock for up to 5 s: the short form tries few of them.
        option = names[trainings % len(names)] if wanted > 10 else ("everything", "plain", "pseudo")[trainings % 3]
        root = new_root(base, tmp_path / f"kill{trainings}", option)
        for _ in range(draw.randint(1, 3)):
            started = time.monotonic()
            verdict = kill_at_random(root, option, draw.uniform(0.05, 1.1) * usual[option], draw.random() < 0.4)
            if verdict == "done":
                usual[option] = time.monotonic() - started
                break
            found.append(verdict)
        train_option(root, option)
        assert fingerprint(root, option) == undisturbed(option), (option, found)
        shutil.rmtree(root)
        trainings += 1
    figures(
        f"{len(found)} of {len(found)} kills (SIGKILL) ended byte-identical, {found.count('saving')} of them inside a "
        f"save, in {trainings} trainings over {min(trainings, len(names) if wanted > 10 else 3)} options"
    )


# Signals and limits, by the commands


def test_sigterm_and_the_time_limit_save_and_exit_with_75_and_all_folds_are_picked_up(tmp_path, capsys):
    root = prepare(copy_code(tmp_path / "a"), "multiclass", 60, 20, epochs=40, batch_size=8, workers=1)
    running = subprocess.Popen(
        [sys.executable, "train.py", "--fold", "all"],
        cwd=root,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in running.stdout:
        if "epoch 1/40" in line:
            break
    sent = time.monotonic()
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 75
    assert time.monotonic() - sent < 30
    assert "interrupted: SIGTERM received, saved at epoch" in errors
    assert Workspace(root).begun_folds("baseline") == [0]
    assert exit_code(root / "train.py", "--fold", "all", "--time-limit", "1s") == 75
    said = capsys.readouterr()
    assert "goes on from epoch" in said.out
    assert "the time limit of 1s is over" in said.err
    assert "Traceback" not in errors + said.err


def test_a_signal_to_all_of_pipeline_sh_saves_and_exits_with_75(tmp_path):
    """As `timeout` and a cluster's scheduler do: loader processes get it, too. See test_pipeline_sh.py for the rest."""
    root = prepare(copy_code(tmp_path / "a"), "multiclass", 60, 20, epochs=300, batch_size=8, workers=1)
    running = subprocess.Popen(
        ["./pipeline.sh", "baseline"],
        cwd=root,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    next(line for line in running.stdout if "epoch 1/300" in line)
    os.killpg(running.pid, signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 75
    assert "saved at epoch" in errors
    assert Workspace(root).begun_folds("baseline") == [0]


@pytest.mark.parametrize(
    ("text", "seconds"), [("8h30m", 30600), ("45m", 2700), ("90s", 90), ("1h", 3600), ("1h1m1s", 3661), ("0s", 0)]
)
def test_a_time_limit_is_read_in_hours_minutes_and_seconds(text, seconds):
    assert parse_seconds(text) == seconds
    if seconds >= 120 and seconds % 60 == 0 or seconds < 120:
        assert parse_seconds(describe_seconds(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "9" * 400 + "h", "8", "8.5h", "h", "-1h", "1m1h", "8 h"])
def test_another_time_limit_is_refused(text):
    with pytest.raises(UserError, match="8h30m"):
        parse_seconds(text)


def test_a_second_signal_ends_at_once_and_handlers_are_put_back(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    seen = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        stop = Stop()
        with stop.listening():
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.is_due
            os.kill(os.getpid(), signal.SIGTERM)  # the same one, passed on by someone
            assert seen == []
            monkeypatch.setattr(stopping, "SAME_SIGNAL_SECONDS", 0)
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(seen) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


# Which state is trusted


@pytest.fixture(scope="module")
def stopped_twice(base, tmp_path_factory):
    root = new_root(base, tmp_path_factory.mktemp("stopped") / "root", "everything")
    for batches in (5, 3):
        with pytest.raises(Interrupted):
            train_option(root, "everything", StopAfter(batches))
    return root


@pytest.fixture
def interrupted_root(stopped_twice, tmp_path):
    """A copy of a training that was stopped twice: two generations of state."""
    return Path(shutil.copytree(stopped_twice, tmp_path / "root", symlinks=True))


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_state_when_damaged_is_named_and_the_older_used(interrupted_root, undisturbed, capsys):
    damage(interrupted_root / "runs" / "everything" / "fold0" / "state.pt")
    train_option(interrupted_root, "everything")
    said = capsys.readouterr()
    assert "state.pt: damaged (its sha256 differs): the state of before is used" in said.err
    assert "(previous.pt)" in said.out
    assert fingerprint(interrupted_root, "everything") == undisturbed("everything")


def test_a_damaged_state_never_takes_the_place_of_the_whole_one(interrupted_root, undisturbed, monkeypatch):
    """A kill within the first save after it was found."""
    folder = interrupted_root / "runs" / "everything" / "fold0"
    damage(folder / "state.pt")
    replace_file = os.replace

    def killed(source, target):
        if str(target).endswith("state.pt"):
            raise Interrupted("killed")
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Interrupted):
            train_option(interrupted_root, "everything", StopAfter(1))
    assert read_state(folder / "previous.pt")["epoch"] > 0
    train_option(interrupted_root, "everything")
    assert fingerprint(interrupted_root, "everything") == undisturbed("everything")


def test_without_a_whole_state_the_fold_starts_anew_and_says_so(interrupted_root, undisturbed, capsys):
    for name in ("state.pt", "previous.pt"):
        damage(interrupted_root / "runs" / "everything" / "fold0" / name)
    train_option(interrupted_root, "everything")
    said = capsys.readouterr()
    assert "starts anew: no saved state is whole" in said.out
    assert said.err.count("damaged") == 2
    assert fingerprint(interrupted_root, "everything") == undisturbed("everything")


def test_a_damaged_snapshot_is_named_and_made_again(base, undisturbed, tmp_path, capsys):
    root = new_root(base, tmp_path / "root", "snapshots")
    with pytest.raises(Interrupted):
        train_option(root, "snapshots", StopAfter(6))
    damage(root / "runs" / "snapshots" / "fold0" / "snapshot1.safetensors")
    train_option(root, "snapshots")
    assert "snapshot1.safetensors: missing or damaged" in capsys.readouterr().err
    assert fingerprint(root, "snapshots") == undisturbed("snapshots")


def test_any_reader_opens_a_state_and_it_holds_plain_types(interrupted_root):
    path = interrupted_root / "runs" / "everything" / "fold0" / "state.pt"
    state = torch.load(path, weights_only=True)
    assert set(state) == set(read_state(path))
    assert {"model", "optimizer", "scaler", "averages", "epoch", "batch", "best_score", "log", "identity"} <= set(state)


def test_an_unfinished_training_is_not_mixed_with_other_settings(interrupted_root, undisturbed):
    with pytest.raises(UserError, match="made with other settings; now lr=0.001"):
        train.main(fold="0", overrides=[*OPTIONS["everything"], "lr=0.001"], name="everything", root=interrupted_root)
    train_option(interrupted_root, "everything")
    assert fingerprint(interrupted_root, "everything") == undisturbed("everything")


def test_settings_that_change_no_weight_may_change_on_the_way(interrupted_root, undisturbed):
    words = [*OPTIONS["everything"], "tta=hflip", "save_minutes=1"]
    train.main(fold="0", overrides=words, name="everything", root=interrupted_root)
    assert fingerprint(interrupted_root, "everything") == undisturbed("everything")
    assert load_config(Workspace(interrupted_root).run_config_path("everything")).tta == "hflip"


@pytest.mark.parametrize("key", ["run", "fold", "config_hash", "fold_stamp", "rows_sha256", "teachers"])
def test_a_state_of_another_training_is_refused_by_what_differs(key, tmp_path):
    saver = make_small_saver(tmp_path)
    saver.save()
    other = make_small_saver(tmp_path, {key: "another"})
    with pytest.raises(UserError, match=rf"state\.pt: an unfinished training with another {key}"):
        other.restore()


def make_small_saver(folder, identity=(), minutes=1e6, batches=0):
    model = torch.nn.Linear(2, 2)
    training = Training(model, torch.optim.Adam(model.parameters()), torch.amp.GradScaler("cpu", growth_interval=1))
    known = {**dict.fromkeys(MUST_AGREE, "the same"), **dict(identity)}
    paths = (folder / "state.pt", folder / "previous.pt")
    return Saver(training, *paths, known, lambda kind: folder / kind, Stop(), minutes, batches)


def test_a_state_brings_back_every_number_and_tensor(tmp_path):
    saver = make_small_saver(tmp_path)
    training = saver.training
    training.scaler.scale(training.model(torch.ones(1, 2)).sum()).backward()
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.best_weights = {"weight": torch.ones(3)}
    training.skipped_rows, training.snapshots = [[1, 2, 3]], {}
    values = {name: 7 + place for place, name in enumerate(NUMBERS) if type(getattr(training, name)) in (int, float)}
    for name, value in values.items():
        setattr(training, name, value)
    training.best_score, training.total_loss = 0.5, torch.tensor(1 / 3)
    saver.save()
    again = make_small_saver(tmp_path)
    assert "goes on from" in again.restore()
    assert {name: getattr(again.training, name) for name in values} == values
    assert {"skipped", "skipped_in_row", "num_images"} <= set(values)
    assert set(NUMBERS) - set(values) == {"skipped_rows", "best_score", "best_weights", "snapshots"}
    assert (again.training.skipped_rows, again.training.best_score) == ([[1, 2, 3]], 0.5)
    assert torch.equal(again.training.best_weights["weight"], torch.ones(3))
    assert torch.tensor(again.training.total_loss) == training.total_loss
    assert again.training.scaler.get_scale() == training.scaler.get_scale() != 65536
    for name in ("model", "optimizer"):
        old, new = (str(getattr(each, name).state_dict()) for each in (training, again.training))
        assert old == new


def test_a_state_is_saved_by_time_by_batches_and_after_a_split(tmp_path):
    by_time = make_small_saver(tmp_path / "time", minutes=1e-9)
    by_time.between_batches()
    assert by_time.path.exists()
    by_batches = make_small_saver(tmp_path / "batches", batches=2)
    by_batches.between_batches()
    assert not by_batches.path.exists()
    by_batches.between_batches()
    assert by_batches.path.exists()
    split = make_small_saver(tmp_path / "split")
    split.between_batches()
    assert not split.path.exists()
    split.training.accumulate = 2
    split.between_batches()
    assert read_state(split.path)["accumulate"] == 2
    again = make_small_saver(tmp_path / "split")
    again.restore()
    assert again.accumulate == 2


def test_a_state_of_other_code_is_one_line(tmp_path):
    saver = make_small_saver(tmp_path)
    saver.save()
    state = read_state(saver.path)
    for change in ({"model": {}}, {"log": [{"epochs": 1}]}, {"optimizer": {}}):
        write_state(saver.path, saver.previous_path, {**state, **change})
        with pytest.raises(UserError, match=r"state\.pt: saved by other code or versions"):
            saver.restore()


def test_changed_labels_of_an_unfinished_training_are_refused_by_name(interrupted_root, monkeypatch):
    decode = competition.decode_targets

    def mirrored(table, facts):
        targets = decode(table, facts)
        return replace(targets, values=targets.values[:, ::-1].copy())

    monkeypatch.setattr(competition, "decode_targets", mirrored)
    with pytest.raises(UserError, match=r"state\.pt: an unfinished training with another rows_sha256.*--overwrite"):
        train_option(interrupted_root, "everything")


def test_overwrite_starts_an_unfinished_fold_anew(interrupted_root, undisturbed, capsys):
    train.main(fold="0", overrides=OPTIONS["everything"], name="everything", overwrite=True, root=interrupted_root)
    assert "goes on from" not in capsys.readouterr().out
    assert fingerprint(interrupted_root, "everything") == undisturbed("everything")


def test_another_version_is_said_and_the_training_goes_on(interrupted_root, monkeypatch, capsys):
    versions = artifacts.environment()
    monkeypatch.setattr(artifacts, "environment", lambda: {**versions, "timm": "0.0.1"})
    train_option(interrupted_root, "everything")
    assert f"not byte for byte as without the interruption: timm {versions['timm']} -> 0.0.1" in capsys.readouterr().out


# Earlier outputs elsewhere


def read_only(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)


def test_outputs_of_an_earlier_session_mounted_elsewhere_are_found_and_used(base, undisturbed, tmp_path, capsys):
    first = new_root(base, tmp_path / "input" / "notebook", "everything")
    with pytest.raises(Interrupted):
        train_option(first, "everything", StopAfter(5))
    second = new_root(base, tmp_path / "working", "everything")
    read_only(tmp_path / "input")
    source = tmp_path / "input"
    train.main(fold="0", overrides=OPTIONS["everything"], name="everything", root=second, resume_from=source)
    assert "goes on from epoch 2" in capsys.readouterr().out
    assert fingerprint(second, "everything") == undisturbed("everything")
    third = new_root(base, tmp_path / "third", "everything")
    train.main(
        fold="0", overrides=OPTIONS["everything"], name="everything", root=third, resume_from=second
    )  # a fold that is done
    assert "done before" in capsys.readouterr().out
    assert fingerprint(third, "everything") == undisturbed("everything")


def test_what_is_here_already_is_not_replaced_by_an_earlier_session(interrupted_root, base, undisturbed, tmp_path):
    earlier = new_root(base, tmp_path / "earlier", "everything")
    with pytest.raises(Interrupted):
        train_option(earlier, "everything", StopAfter(1))
    train.main(fold="0", overrides=OPTIONS["everything"], name="everything", root=interrupted_root, resume_from=earlier)
    assert fingerprint(interrupted_root, "everything") == undisturbed("everything")


def test_a_kill_while_an_earlier_session_is_taken_over_is_mended_by_the_same_command(
    base, undisturbed, tmp_path, monkeypatch
):
    first = new_root(base, tmp_path / "first", "plain")
    train_option(first, "plain")
    for copied in range(5):  # files, before the kill
        second, copies, copy = new_root(base, tmp_path / f"second{copied}", "plain"), [], adopt.copy

        def copy_some(source, target, copies=copies, copied=copied, copy=copy):
            if len(copies) == copied:
                raise Interrupted("killed")
            copies.append(target)
            copy(source, target)

        take_over = partial(
            train.main, fold="0", overrides=OPTIONS["plain"], name="plain", root=second, resume_from=first
        )
        with monkeypatch.context() as patch:
            patch.setattr(adopt, "copy", copy_some)
            with pytest.raises(Interrupted):
                take_over()
        assert artifacts.read_manifest(second / "runs" / "plain" / "fold0") is None
        take_over()
        assert fingerprint(second, "plain") == undisturbed("plain")


def test_two_earlier_sessions_each_give_their_folds(base, tmp_path, capsys):
    for number in ("0", "1"):
        root = new_root(base, tmp_path / "input" / f"session{number}" / "of" / "mine", "plain")
        train.main(fold=number, overrides=OPTIONS["plain"], name="plain", root=root)
    here = new_root(base, tmp_path / "here", "plain")
    train.main(fold="1", overrides=OPTIONS["plain"], name="plain", root=here, resume_from=tmp_path / "input")
    train.main(fold="0", overrides=OPTIONS["plain"], name="plain", root=here, resume_from=tmp_path / "input")
    assert Workspace(here).trained_folds("plain") == [0, 1]
    assert capsys.readouterr().out.count("copied") == 2


@pytest.mark.parametrize("key", ["fold_stamp", "config_hash"])
def test_a_done_fold_of_another_training_is_not_taken_over(base, tmp_path, key):
    first, second = (new_root(base, tmp_path / name, "plain") for name in ("first", "second"))
    train_option(first, "plain")
    folder = first / "runs" / "plain" / "fold0"
    artifacts.save_manifest(folder, {**artifacts.read_manifest(folder), key: "0" * 64})
    with pytest.raises(UserError, match="than those here: train it anew"):
        train.main(fold="0", overrides=OPTIONS["plain"], name="plain", root=second, resume_from=first)
    assert artifacts.read_manifest(second / "runs" / "plain" / "fold0") is None


def test_states_are_taken_over_after_all_that_they_vouch_for(base, tmp_path, monkeypatch):
    first, second = (new_root(base, tmp_path / name, "snapshots") for name in ("first", "second"))
    with pytest.raises(Interrupted):
        train_option(first, "snapshots", StopAfter(6))
    names, copy = [], adopt.copy
    monkeypatch.setattr(adopt, "copy", lambda source, target: (names.append(target.name), copy(source, target)))
    train.main(fold="0", overrides=OPTIONS["snapshots"], name="snapshots", root=second, resume_from=first)
    assert names[-2:] == ["state.pt", "previous.pt"]
    assert len(names) > 2


def test_folds_of_another_folds_csv_are_not_taken_over(base, tmp_path):
    first = new_root(base, tmp_path / "first", "plain")
    train_option(first, "plain")
    second = new_root(base, tmp_path / "second", "plain")
    rows = (second / "folds.csv").read_text().replace(",0,", ",x,").replace(",1,", ",0,").replace(",x,", ",1,")
    (second / "folds.csv").write_text(rows)
    with pytest.raises(UserError, match="trained on other folds"):
        train.main(fold="0", overrides=OPTIONS["plain"], name="plain", root=second, resume_from=first)


def test_starting_anew_and_taking_over_contradict_each_other(base, tmp_path):
    root = new_root(base, tmp_path / "root", "plain")
    with pytest.raises(UserError, match="leave out one of them"):
        train.main(fold="0", overwrite=True, resume_from=tmp_path, root=root)


def test_overwrite_leaves_nothing_of_the_training_before(base, undisturbed, tmp_path):
    root = new_root(base, tmp_path / "root", "plain")
    folder = root / "runs" / "plain" / "fold0"
    folder.mkdir(parents=True)
    for name in ("skipped.csv", "snapshot3.safetensors", "ema.safetensors", "state.pt"):
        (folder / name).write_bytes(b"old")
    train.main(fold="0", overrides=OPTIONS["plain"], name="plain", root=root, overwrite=True)
    assert fingerprint(root, "plain") == undisturbed("plain")


def test_an_earlier_session_with_other_settings_or_damaged_files_is_refused(base, tmp_path):
    first = new_root(base, tmp_path / "first", "plain")
    train_option(first, "plain")
    second = new_root(base, tmp_path / "second", "plain")
    with pytest.raises(UserError, match="made with other settings; now lr=0.5"):
        train.main(fold="0", overrides=["lr=0.5"], name="plain", root=second, resume_from=first)
    damage(first / "runs" / "plain" / "fold0" / "last.safetensors")
    shutil.rmtree(second / "runs" / "plain")
    with pytest.raises(UserError, match=r"last\.safetensors: damaged"):
        train.main(fold="0", overrides=OPTIONS["plain"], name="plain", root=second, resume_from=first)
    with pytest.raises(UserError, match="--resume-from .*: no such folder"):
        train.main(fold="0", overrides=OPTIONS["plain"], name="plain", root=second, resume_from=tmp_path / "none")


# Forecasts


def test_too_small_a_disk_is_said_before_the_first_epoch(base, tmp_path, monkeypatch, capsys):
    root = new_root(base, tmp_path / "root", "plain")
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1_000_000))
    with pytest.raises(UserError, match="the weights and states need .* GB on the disk, 0.0 GB are free"):
        train_option(root, "plain")
    assert "epoch 1" not in capsys.readouterr().out


def test_the_forecast_of_the_disk_is_what_files_and_states_take(base, tmp_path, capsys):
    root = new_root(base, tmp_path / "root", "everything")
    with pytest.raises(Interrupted):
        train_option(root, "everything", StopAfter(8))
    folder = root / "runs" / "everything" / "fold0"
    state = (folder / "state.pt").stat().st_size
    first = float(capsys.readouterr().out.split("forecast: ")[1].split()[0]) * 1e9
    train_option(root, "everything")
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert first == pytest.approx(weights + 3 * state, rel=0.2, abs=5e6)
    again = float(capsys.readouterr().out.split("forecast: ")[1].split()[0]) * 1e9
    assert again < first  # what is there already is not needed again


def test_the_forecast_of_the_disk_counts_every_copy_of_the_weights(tmp_path):
    model = torch.nn.Linear(1000, 1000, bias=False)
    for num_moments in (1, 2):
        needed = bytes_needed(model, num_moments, Averages(), 0, 3, tmp_path)
        assert needed == 4_000_000 * (2 * 3 + 3 * (2 + num_moments))  # last and best of 3 folds; 3 states with both


def test_the_forecast_of_time_counts_what_is_left_and_the_other_folds():
    training = make_small_saver(Path()).training
    quick = TimeForecast(100, 40, 10, 0.3, 3, Stop(), training)
    assert quick.describe(0.1) == "4s for this fold, 26s for 3 folds"  # 24s without the validation of the others
    forecast = TimeForecast(100, 40, 10, 0.3, 3, Stop(), training)
    assert forecast.describe(1.0) == "44s for this fold, 4m for 3 folds"  # 40 x 1.1, and 2 x 100 x 1.1 more
    limited = TimeForecast(100, 40, 10, 0.3, 3, Stop(time_limit=60), training)
    assert limited.describe(1.0).endswith("the time limit comes first, in 60s: it will save and stop there")


def test_the_first_batches_forecast_the_time(base, tmp_path, capsys):
    root = new_root(base, tmp_path / "root", "plain")
    train_option(root, "plain", Stop(time_limit=3600))
    said = capsys.readouterr().out
    assert re.search(r"forecast: \d+s for this fold", said)
    assert said.index("for this fold") < said.index("epoch 1/3")


def test_two_folds_start_side_by_side_as_on_two_gpus(tmp_path):
    root = prepare(tmp_path, "multiclass", 60, 20, epochs=1000, batch_size=8)
    first = fork_server().Process(target=train.main, kwargs={"fold": "0", "root": root})
    first.start()
    try:
        while not (Workspace(root).fold_dir("baseline", 0) / ".lock.holder").exists():
            assert first.is_alive()
        with pytest.raises(Interrupted):
            train.main(fold="1", root=root, stop=Stop(0.0))
        with pytest.raises(UserError, match="in use by process|made with other settings"):  # once it has saved
            train.main(fold="1", overrides=["lr=0.5"], root=root)
        assert first.is_alive()
    finally:
        first.kill()
        first.join()
