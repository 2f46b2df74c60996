"""Several folds at once: how many, that each is the fold that it would be alone, and that none takes others with it."""

import os
import shutil
import stat
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from interrupted import StopAfter, fingerprint
from test_pipeline import copy_code, prepare

import make_folds
import train
from kfold import folds_at_once as choice
from kfold import parallel_folds
from kfold.artifacts import Workspace
from kfold.data.scan import num_cores
from kfold.errors import Interrupted, UserError
from kfold.files import locked
from kfold.folds_at_once import CORES_A_FOLD, MARGIN, NUM_LOOKS, Machine, OneFold, folds_at_once, folds_beside
from kfold.parallel_folds import Plan, make_plan, train_side_by_side
from kfold.stopping import Stop

CPU = Machine("cpu", (), 4)
ONE_GPU, TWO_GPUS = Machine("cuda", ("0",), 4), Machine("cuda", ("0", "1"), 4)

# How many


@given(st.floats(0, 1), st.floats(0, 4e10), st.floats(-1e9, 8e10), st.integers(1, 10), st.integers(1, 64))
def test_one_gpu_takes_as_many_folds_as_memory_time_and_cores_allow_and_no_fewer(busy, taken, free, num_folds, cores):
    number, reason = folds_beside(OneFold(busy, taken, free), num_folds, cores)

    def fits(count: int) -> bool:
        has_memory = (count - 1) * MARGIN * max(taken, 1) <= free + 1e-3
        return has_memory and count * max(busy, 0.01) <= 1 + 1e-9 and count * CORES_A_FOLD <= cores

    assert 1 <= number <= num_folds
    assert number == 1 or fits(number)
    assert number == num_folds or not fits(number + 1)
    assert f"{busy:.0%}" in reason


def test_several_gpus_take_a_fold_each_and_a_cpu_one_unless_more_are_asked_for():
    assert folds_at_once(None, 5, TWO_GPUS) == (2, "one on each of 2 GPUs")
    assert folds_at_once(None, 5, ONE_GPU) == (None, "")
    assert folds_at_once(None, 5, CPU)[0] == folds_at_once(None, 5, Machine("mps", (), 8))[0] == 1
    assert "keeps the cpu busy" in folds_at_once(None, 5, CPU)[1]
    for machine in (CPU, ONE_GPU, TWO_GPUS):
        assert [folds_at_once(wish, 5, machine)[0] for wish in (1, 3, 8)] == [1, 3, 5]
        assert folds_at_once(None, 1, machine)[0] == 1


@pytest.mark.parametrize("wish", ["0", "-1", "two", "1.5", ""])
def test_another_wish_is_refused_in_one_line(wish):
    with pytest.raises(UserError, match=f"--parallel {wish}: write a number of folds from 1 on, or auto"):
        choice.read_wish(wish)


def test_parallel_goes_with_all_folds_alone(tmp_path):
    root = prepare(tmp_path, "multiclass", 48, 6)
    with pytest.raises(UserError, match="--parallel two: write a number"):
        train.main(parallel="two", overwrite=True, root=root)
    assert not (root / "runs").exists()  # nothing is thrown away for it
    for words in ({"fold": "0"}, {"fold": "all-data"}, {"rehearsal": "profile"}):
        with pytest.raises(UserError, match="it goes with --fold all"):
            train.main(parallel="2", root=root, **words)


def test_a_fold_gets_a_gpu_and_its_share_of_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    plan = make_plan(3, 5, Machine("cuda", ("2", "GPU-ab"), 7))
    environments = [plan.environment_of(place) for place in range(3)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in environments] == ["2", "GPU-ab", "2"]
    assert {(one["KFOLD_CORES"], one["OMP_NUM_THREADS"]) for one in environments} == {("2", "2")}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert plan.environment_of(0)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("KFOLD_CORES", "1")
    assert num_cores() == 1


def test_gpus_are_called_as_the_environment_calls_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choice.this_machine(4, {}) == TWO_GPUS
    assert choice.this_machine(4, {"CUDA_VISIBLE_DEVICES": "3, GPU-ab,"}).gpus == ("3", "GPU-ab")


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path):
    """What nvidia-smi answers."""

    def answer(text: str) -> None:
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\necho '{text}'\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return answer


def test_a_gpu_is_measured_while_one_fold_trains(nvidia_smi, monkeypatch):
    nvidia_smi("0, 1024, 16384")
    watch = choice.start_watch("0")
    nvidia_smi("25, 3072, 16384")
    for _ in range(NUM_LOOKS - 1):
        assert watch.look() is None
    nvidia_smi("[N/A], 3072, 16384")
    assert watch.look() is None
    nvidia_smi("50, 4096, 16384")
    one = watch.look()
    assert one == OneFold(pytest.approx(0.25 + 0.25 / NUM_LOOKS), 3072 * 2**20, 12288 * 2**20)


def test_a_gpu_that_nothing_is_said_of_trains_one_fold(nvidia_smi, capsys):
    nvidia_smi("no devices were found")
    assert make_plan(None, 5, ONE_GPU).num_at_once == 1
    assert "nvidia-smi does not say" in capsys.readouterr().out


# Children that are no trainings

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
folder, number = Path(sys.argv[1]), int(sys.argv[2])
stop = lambda *_: (print("saved"), sys.exit(75))
signal.signal(signal.SIGTERM, stop)
(folder / f"{number}.begins").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "") + " " + os.environ["KFOLD_CORES"])
seen = len(list(folder.glob("*.begins"))) - len(list(folder.glob("*.ends")))
(folder / f"{number}.seen").write_text(str(seen))
def wait_for(name):
    while not list(folder.glob(name)):
        time.sleep(0.01)
"""
OTHERS_BEGIN = "print('  forecast: 1 GB'); print('  forecast: 1s for this fold', flush=True); wait_for('[1-9].begins');"


def run_children(folder: Path, bodies: dict[int, str], plan: Plan, stop: Stop | None = None) -> None:
    folder.mkdir()
    scripts = {number: f"{SCRIPT}\n{body}\n(folder / f'{number}.ends').touch()\n" for number, body in bodies.items()}
    train_side_by_side(
        list(bodies),
        lambda number: [sys.executable, "-c", scripts[number], str(folder), str(number)],
        lambda number: folder / f"{number}.log",
        plan,
        stop or Stop(),
    )


def read(folder: Path, ending: str) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob(f"*.{ending}"))]


def test_the_first_fold_is_alone_until_it_is_prepared_and_then_so_many_go_on_as_planned(tmp_path, capsys):
    first = "time.sleep(0.5); (folder / 'prepared').touch(); " + OTHERS_BEGIN
    other = "assert (folder / 'prepared').exists(); time.sleep(0.3)"
    run_children(tmp_path / "a", {0: first, 1: other, 2: other, 3: other}, make_plan(2, 4, TWO_GPUS))
    begins = read(tmp_path / "a", "begins")
    assert begins[:2] == ["0 2", "1 2"]
    assert set(begins[2:]) <= {"0 2", "1 2"}
    assert len(begins) == 4
    assert max(map(int, read(tmp_path / "a", "seen"))) == 2
    assert not list((tmp_path / "a").glob("*.log"))
    assert "fold 0 |   forecast: 1 GB" in capsys.readouterr().out


def test_on_one_gpu_others_join_once_it_is_measured(tmp_path, capsys, nvidia_smi, monkeypatch):
    monkeypatch.setattr(parallel_folds, "SECONDS_APART", 0.0)
    monkeypatch.setattr(choice, "NUM_LOOKS", 2)
    nvidia_smi("20, 1000, 9000")
    plan = make_plan(None, 3, Machine("cuda", ("0",), 8))
    nvidia_smi("30, 2000, 9000")
    run_children(tmp_path / "a", {0: OTHERS_BEGIN, 1: "", 2: ""}, plan)
    assert plan.num_at_once == 3
    told = capsys.readouterr().out
    assert "3 folds at a time: with one fold the GPU is busy 30% of the time, the fold takes 1.0 GB, 7.3 GB" in told
    assert read(tmp_path / "a", "begins") == ["0 8", "0 2", "0 2"]


def test_folds_that_fail_are_named_with_their_logs_and_the_others_finish(tmp_path, capsys):
    failing = {
        1: "print('error: no such image'); sys.exit(2)",
        2: "os.kill(os.getpid(), signal.SIGKILL)",
    }
    bodies = {0: OTHERS_BEGIN, **failing, 3: "wait_for('2.begins'); time.sleep(0.5)"}
    with pytest.raises(UserError) as caught:
        run_children(tmp_path / "a", bodies, make_plan(2, 4, CPU))
    logs = [tmp_path / "a" / f"{number}.log" for number in failing]
    assert caught.value.problems == [
        f"fold 1 failed (the process ended with 2), see {logs[0]}: no such image",
        f"fold 2 failed (the process was killed by SIGKILL), see {logs[1]}: it said nothing",
    ]
    assert sorted(path.name for path in (tmp_path / "a").glob("*.ends")) == ["0.ends", "3.ends"]
    assert f"fold 1 | failed, the others go on: see {logs[0]}" in capsys.readouterr().err


class DueWhen(Stop):
    def __init__(self, is_reached):
        super().__init__()
        self.is_reached = is_reached

    @property
    def is_due(self) -> bool:
        if self.is_reached():
            self.reason = "enough"
        return bool(self.reason)


def test_a_stop_reaches_every_fold_that_runs_and_starts_no_other(tmp_path, capsys):
    folder = tmp_path / "a"
    stop = DueWhen(lambda: (folder / "1.seen").exists())
    with pytest.raises(Interrupted, match="enough"):
        run_children(
            folder, {0: OTHERS_BEGIN + "time.sleep(60)", 1: "time.sleep(60)", 2: ""}, make_plan(2, 3, CPU), stop
        )
    told = capsys.readouterr().out
    assert "fold 0 | saved" in told
    assert "fold 1 | saved" in told
    assert not (folder / "2.begins").exists()


def test_a_fold_that_someone_else_stops_makes_the_whole_unfinished(tmp_path):
    with pytest.raises(Interrupted, match="fold 1 was stopped"):
        run_children(
            tmp_path / "a", {0: OTHERS_BEGIN, 1: "os.kill(os.getpid(), 15); time.sleep(60)"}, make_plan(2, 2, CPU)
        )


def test_no_fold_outlives_a_parent_that_cannot_wait(tmp_path, monkeypatch):
    pids = []

    def read_once(child):
        pids.append(child.process.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(parallel_folds.Child, "read", read_once)
    monkeypatch.setattr(parallel_folds, "LAST_SECONDS", 0.2)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        run_children(tmp_path / "a", {0: deaf}, make_plan(2, 2, CPU))
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


# Trainings


@pytest.fixture
def one_thread(monkeypatch):
    """On a CPU the number of threads decides the last digits."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_side_by_side_stopped_and_gone_on_with_each_fold_has_the_bytes_that_it_has_alone(tmp_path, one_thread, capsys):
    """In the second session fold 1 fails, because someone else holds it."""
    root = prepare(copy_code(tmp_path / "root"), "multiclass", 48, 6, epochs=6, batch_size=8)
    facts, workspace = root / "competition.yaml", Workspace(root)
    facts.write_text(facts.read_text().replace("num_folds: 3", "num_folds: 2"))
    (root / "folds.csv").unlink()
    make_folds.main(root=root)
    train.main(root=root)
    alone = [fingerprint(root, "baseline", number) for number in (0, 1)]
    shutil.rmtree(root / "runs")
    with pytest.raises(Interrupted, match="enough"):
        train.main(root=root, parallel="2", stop=DueWhen(workspace.state_path("baseline", 0).exists))
    capsys.readouterr()
    with locked(workspace.fold_dir("baseline", 1)), pytest.raises(UserError, match="fold 1 failed .* in use by"):
        train.main(root=root, parallel="2")
    told = capsys.readouterr().out
    assert "goes on from epoch" in told
    assert "not byte for byte" not in told
    assert fingerprint(root, "baseline", 0) == alone[0]
    train.main(root=root, parallel="2")  # one is left: in this process
    told += capsys.readouterr().out
    assert fingerprint(root, "baseline", 1) == alone[1]
    assert told.count(", out of fold, ") == 1


def test_a_fold_that_is_trained_beside_others_leaves_the_summary_to_their_parent(tmp_path, capsys):
    root = prepare(tmp_path, "multiclass", 48, 6, epochs=1, batch_size=8)
    for number in ("0", "1", "2"):
        train.main(fold=number, root=root, is_part=True)
    assert "out of fold" not in capsys.readouterr().out
    assert not (root / "runs" / "ledger.csv").exists()
    train.main(root=root, parallel="2")
    assert capsys.readouterr().out.count(", out of fold, ") == 1
    assert (root / "runs" / "ledger.csv").exists()


def test_a_fold_that_goes_on_with_other_threads_says_that_its_bytes_are_others(tmp_path, one_thread, capsys):
    root = prepare(tmp_path, "multiclass", 48, 6, epochs=1, batch_size=8)
    with pytest.raises(Interrupted):
        train.main(fold="0", root=root, stop=StopAfter(2))
    torch.set_num_threads(2)
    train.main(fold="0", root=root)
    assert "not byte for byte as without the interruption: threads 1 -> 2" in capsys.readouterr().out
