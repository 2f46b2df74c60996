"""The list of trainings, their commands, what a node does with one, a storage between nodes; no Ray."""

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from test_artifacts import FACTS
from test_pipeline import REPOSITORY, exit_code, prepare

import fan_out
import train
from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import Config, load_competition, load_config
from kfold.errors import UserError
from kfold.fan_out import storage, transfer, worker
from kfold.fan_out.cluster import Outcome, Share, choose_share, outcome_of, read_board, startable
from kfold.fan_out.plan import Run, Task, commands_text, deal, make_tasks, plan_runs, seed_words
from kfold.fan_out.table import ORDER, Screen, table

RUNS = [Run(name, f"configs/{name}.yaml", ("lr=1e-3",)) for name in ("a", "b")]
TASKS = make_tasks(RUNS, [0, 1, 2])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("planned"), "multiclass", 48, 6)


# The list


def test_runs_are_named_as_train_names_those_of_several_seeds(root):
    named = [run.name for run in plan_runs(root, ["baseline"], "2..4", ["epochs=1"])]
    assert named == [f"baseline{ending}" for ending, _ in train.seed_runs(["seed=2..4"])]
    assert [words for _, words in seed_words("2..4", ["lr=1"])] == [
        words for _, words in train.seed_runs(["lr=1", "seed=2..4"])
    ]
    assert [run.name for run in plan_runs(root, ["configs/baseline.yaml"], "", ["limit=24"])] == ["baseline-limit24"]


def test_each_command_means_its_own_run_and_fold_to_train(root, monkeypatch):
    tasks = make_tasks(plan_runs(root, ["baseline"], "2", ["lr=1e-3"]), [0, 2])
    meant = []
    for task in tasks:
        monkeypatch.setattr(sys, "argv", task.command)
        given = train.parse_arguments()
        assert (root / given.config).is_file()
        assert given.overrides[:1] == ["lr=1e-3"]
        meant.append((given.name, given.overrides[1], given.fold))
    assert meant == [(f"baseline-seed{seed}", f"seed={seed}", fold) for seed in (1, 2) for fold in ("0", "2")]


@pytest.mark.parametrize(
    ("configs", "seeds", "words", "problem"),
    [
        ([], "", ["lr=1e-3"], "--configs: name one or more files of configs/"),
        (["nothing"], "", [], "--configs nothing: there is no .*nothing.yaml"),
        (["baseline", "configs/baseline.yaml"], "", [], "baseline is named twice"),
        (["baseline"], "0", [], "--seeds 0: write how many"),
        (["baseline"], "5..4", [], "--seeds 5..4: write how many"),
        (["baseline"], "two", [], "--seeds two: write how many"),
        (["baseline"], "2", ["seed=1"], "seed= and --seeds"),
        (["baseline"], "", ["seed=1..3"], "here it is --seeds a..b"),
        (["baseline"], "", ["learning=1"], "learning"),
        (["baseline"], "", ["head=arcface", "mixing=mixup"], "head=arcface with mixing"),
        (["baseline"], "", ["backbone=resnet_of_mine"], "resnet_of_mine"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(root, configs, seeds, words, problem):
    with pytest.raises(UserError, match=problem):
        fan_out.main(configs, seeds=seeds, words=words, root=root)
    assert not (root / "runs").exists()


@pytest.mark.parametrize("name", ["a b", "stack", "ablations"])
def test_a_config_whose_run_could_not_begin_stops_the_others_before_they_do(name, root, tmp_path):
    copy = Path(shutil.copytree(root, tmp_path / "copy", symlinks=True))
    shutil.copy(copy / "configs" / "baseline.yaml", copy / "configs" / f"{name}.yaml")
    with pytest.raises(UserError, match=name):
        fan_out.main(["baseline", name], root=copy)
    assert not (copy / "runs").exists()


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        ({"cores": 0}, "--cpus-per-fold 0: write 1 or more"),
        ({"gpus": -0.5}, "--gpus-per-fold -0.5: write a part of one"),
        ({"gpus": 1.5}, "--gpus-per-fold 1.5: write a part of one"),
        ({"gpus": float("nan")}, "--gpus-per-fold nan: write a part of one"),
        ({"retries": -1}, "--retries -1: write 0 or more"),
        ({"sessions": -1}, "--sessions -1: write 0 or more"),
    ],
)
def test_numbers_that_ask_for_nothing_are_refused(numbers, problem, root):
    with pytest.raises(UserError, match=problem):
        fan_out.main(**numbers, root=root)
    assert not (root / "runs").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--time-limit soon", "--time-limit soon: write hours, minutes and seconds"),
        ("--predict a b --storage memory://x", "--predict with --storage: is of training: leave it out"),
        ("--predict a --seeds 3 lr=1", "--predict with --seeds, lr=1: is of training"),
        ("--predict lr=1", "--predict with lr=1: is of training"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(words, problem, capsys):
    assert exit_code(REPOSITORY / "fan_out.py", *words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {problem}")


def test_without_ray_the_commands_are_printed_and_nothing_is_begun(root, monkeypatch, capsys):
    monkeypatch.setattr(fan_out, "has_ray", lambda: False)
    with pytest.raises(UserError, match="pip install ray"):
        fan_out.main(seeds="2", root=root)
    alone = capsys.readouterr().out
    fan_out.main(seeds="2", prints=True, root=root)
    assert capsys.readouterr().out == alone
    assert len(commands_in(alone)) == 2 * 3
    assert not (root / "runs").exists()


def commands_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


@given(st.integers(0, 40), st.integers(1, 12))
def test_sessions_get_every_task_once_and_equally_many(count, sessions):
    tasks = [Task(RUNS[0], number) for number in range(count)]
    parts = deal(tasks, sessions)
    assert len(parts) == sessions
    assert [task for part in parts for task in part] == tasks
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_array_of_slurm_runs_each_printed_command_by_its_number(tmp_path):
    text = commands_text(TASKS, 3)
    (tmp_path / "tasks.txt").write_text(text)
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    (count, wrapped) = re.search(r"--array=1-(\d+) .*--wrap '(.*)'", text).groups()
    assert int(count) == len(TASKS)
    for place, task in enumerate(TASKS, start=1):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": str(place)}
        done = subprocess.run(["sh", "-c", wrapped], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.stdout.split() == task.command


def test_sessions_are_blocks_of_the_same_commands_and_end_at_home():
    text = commands_text(TASKS, 3, 4)
    assert commands_in(text) == commands_in(commands_text(TASKS, 3))
    assert text.count("# session ") == 4
    assert "python train.py --config configs/b.yaml --fold all --name b lr=1e-3 --resume-from FOLDER" in text


@pytest.mark.parametrize("sessions", [0, 2])
def test_what_sums_up_some_folds_does_not_train_the_others(sessions):
    text = commands_text(TASKS, 5, sessions)
    assert "--fold all" not in text
    comments = [line for line in text.splitlines() if line.startswith("#   python")]
    assert [int(re.search(r"--fold (\d)", line)[1]) for line in comments] == [task.number for task in TASKS]


# Folds that start at once


def test_a_fold_that_starts_while_another_registers_the_run_goes_on_with_what_that_wrote(tmp_path):
    workspace, config = Workspace(tmp_path), Config()
    folder = workspace.run_dir("a")
    folder.mkdir(parents=True)
    problems = []

    def register() -> None:
        try:
            artifacts.register_run(workspace, "a", FACTS, config, [1], overwrite=False)
        except UserError as error:
            problems.append(error)

    with FileLock(folder / ".register.lock"):
        second = threading.Thread(target=register)
        second.start()
        second.join(0.5)
        assert second.is_alive()
        artifacts.write_origin(workspace, "a", FACTS, config)
    with artifacts.locked(workspace.fold_dir("a", 0)):  # the first one trains
        second.join()
    assert problems == []


def test_a_part_takes_the_registered_settings_whatever_the_versions_of_its_node(root, tmp_path, monkeypatch):
    shutil.copytree(root, tmp_path / "a")
    workspace, trained = Workspace(tmp_path / "a"), []
    config = load_config(workspace.config_path("baseline"))
    artifacts.write_origin(workspace, "baseline", load_competition(workspace.competition_path), config)
    monkeypatch.setattr(artifacts, "environment_text", lambda: "of another machine\n")
    monkeypatch.setattr(train, "train_fold", lambda workspace, run, number, *_: trained.append(number))
    with artifacts.locked(workspace.fold_dir("baseline", 1)):  # it trains on the first node
        train.main("0", is_part=True, root=workspace.root)
    assert trained == [0]
    with pytest.raises(UserError, match="this run was made with other settings; now lr"):
        train.main("0", overrides=["lr=0.5"], is_part=True, root=workspace.root)


# A share of a node


@given(
    st.lists(st.fixed_dictionaries({"CPU": st.integers(1, 64), "GPU": st.integers(0, 8)}), min_size=1, max_size=4),
    st.sampled_from([None, 0.2, 0.25, 0.4, 0.5, 1.0, 2.0]),
)
def test_every_node_that_can_hold_a_fold_has_room_for_as_many_as_its_gpus_take(nodes, gpus):
    wished = gpus if gpus is not None else float(any(node["GPU"] for node in nodes))
    if not any(node["GPU"] >= wished for node in nodes):
        with pytest.raises(UserError, match="no node has 1 CPU cores and"):
            choose_share(nodes, None, gpus)
        return
    share = choose_share(nodes, None, gpus)
    assert share.gpus == wished
    able = [node for node in nodes if node["GPU"] >= wished]
    at_once = {0.0: lambda gpus: 1, 0.2: lambda gpus: 5 * gpus, 0.25: lambda gpus: 4 * gpus, 0.4: lambda gpus: 2 * gpus,
               0.5: lambda gpus: 2 * gpus, 1.0: lambda gpus: gpus, 2.0: lambda gpus: gpus // 2}  # fmt: skip
    folds = [at_once[wished](node["GPU"]) for node in able]
    assert all(share.cores * count <= node["CPU"] or share.cores == 1 for node, count in zip(able, folds, strict=True))
    assert any((share.cores + 1) * count > node["CPU"] for node, count in zip(able, folds, strict=True))


def test_what_is_asked_for_is_given_or_refused():
    assert choose_share([{"CPU": 8.0}, {"CPU": 4.0}], 2, 0.0) == Share(2, 0.0)
    assert choose_share([{"CPU": 40.0, "GPU": 1.0}], None, 0.2) == Share(8, 0.2)
    with pytest.raises(UserError, match="no node has 9 CPU cores and 0 GPUs: 8 cores, 0 GPUs: ask for less"):
        choose_share([{"CPU": 8.0}], 9, None)


def test_one_fold_of_a_run_starts_alone_until_it_has_made_what_all_share():
    first, others = TASKS[0], TASKS[1:3]
    assert startable(TASKS, set(), {}, lambda run: False) == [TASKS[0], TASKS[3]]
    assert startable(others, {first}, {first.name: {"prepared": False}}, lambda run: False) == []
    assert startable(others, {first}, {first.name: {"prepared": True}}, lambda run: False) == others
    assert startable(others, set(), {first.name: {"prepared": True}}, lambda run: False) == others
    assert startable(others, set(), {first.name: {"state": "failed"}}, lambda run: False) == others[:1]
    assert startable(TASKS, set(), {}, lambda run: run == "b") == [TASKS[0], *TASKS[3:]]


# The table


def test_the_table_shows_how_far_each_task_is_and_the_sums():
    rows = {
        "a, fold 0": {"state": "done", "epoch": 3, "score": 0.5, "node": "n1", "started": 0, "ended": 60, "tries": 2},
        "a, fold 1": {"state": "trains", "epoch": 1, "score": 0.25, "node": "n2", "started": 100, "tries": 1},
    }
    rows["a, fold 0"]["problem"] = "of an earlier try"
    rows["a, fold 1"]["problem"] = "lost " * 100  # a line that is broken could not be drawn over
    lines = table(TASKS, rows, {"a": 3, "b": 4}, now=400).splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["run", "fold", "state", "epoch", "score", "node", "time", "try", "problem"],
        ["a", "0", "done", "3/3", "0.50000", "n1", "60s", "2"],
        ["a", "1", "trains", "1/3", "0.25000", "n2", "5m", *["lost"] * 12],
        ["a", "2", "waits"],
    ]
    assert lines[-1] == "1 done, 4 waits, 1 trains"


@given(st.lists(st.sampled_from(ORDER), min_size=len(TASKS), max_size=len(TASKS)), st.integers(1, 10))
def test_where_there_is_no_room_what_failed_and_what_trains_is_shown(states, most):
    rows = {task.name: {"state": state} for task, state in zip(TASKS, states, strict=True)}
    shown = [line.split()[2] for line in table(TASKS, rows, {"a": 1, "b": 1}, 0, most).splitlines()[1:-1]]
    assert len(shown) == min(most, len(TASKS))
    assert sorted(shown, key=ORDER.index) == sorted(states, key=ORDER.index)[: len(shown)]


def test_lines_are_printed_for_news_alone_and_a_terminal_is_drawn_over(capsys):
    screen = Screen(TASKS, {"a": 2, "b": 2}, is_terminal=False)
    for epoch in (1, 1, 2):
        screen.show({TASKS[0].name: {"state": "trains", "epoch": epoch, "score": 0.5}})
    assert capsys.readouterr().out.splitlines() == [
        f"a, fold 0: trains, epoch {epoch}/2, score 0.50000" for epoch in (1, 2)
    ]
    for problem in ("killed\nby SIGKILL", "killed\nby SIGKILL", ""):
        screen.show({TASKS[0].name: {"state": "trains", "epoch": 2, "score": 0.5, "problem": problem}})
    assert capsys.readouterr().out.splitlines() == [
        f"a, fold 0: trains, epoch 2/2, score 0.50000{problem}" for problem in (", problem killed\\nby SIGKILL", "")
    ]
    screen = Screen(TASKS, {"a": 2, "b": 2}, is_terminal=True)
    screen.show({})
    lines = capsys.readouterr().out.count("\n")
    screen.show({})
    assert capsys.readouterr().out.startswith(f"\x1b[{lines}F\x1b[J")


# What Ray says


class RayError(Exception):
    cause = None


class Cancelled(RayError):
    pass


def ray_that_raises(error: Exception) -> SimpleNamespace:
    def get(reference, timeout=None):
        raise error

    return SimpleNamespace(get=get, exceptions=SimpleNamespace(RayError=RayError, TaskCancelledError=Cancelled))


def test_a_task_that_failed_is_told_in_a_line_whatever_its_error_says():
    lost = RayError("the node is lost\nits log follows")
    assert outcome_of(ray_that_raises(lost), None) == Outcome("failed", "RayError: the node is lost")
    lost.cause = TimeoutError()  # as of fsspec, without a word
    assert outcome_of(ray_that_raises(lost), None) == Outcome("failed", "TimeoutError: gives no reason")
    assert outcome_of(ray_that_raises(Cancelled()), None) == Outcome("stopped")


def test_trainings_go_on_while_nothing_is_known_of_them(capsys):
    board = SimpleNamespace(read=SimpleNamespace(remote=lambda: None))
    before = {"a, fold 0": {"state": "trains"}, "a, fold 1": {"state": "done"}}
    assert read_board(ray_that_raises(RayError()), board, before) == before
    assert "how far the tasks are is not known for now (RayError)" in capsys.readouterr().err
    anew = SimpleNamespace(get=lambda reference, timeout: {"a, fold 0": {"state": "starts"}})
    assert read_board(anew, board, before) == before | {"a, fold 0": {"state": "starts"}}


# On a node: trainings that are no trainings

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
folder = Path("runs/a/fold0")
def save(*_):
    print("saved", flush=True)
    (folder / "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
(folder / "begins").write_text(f"{os.environ['OMP_NUM_THREADS']} {os.environ['KFOLD_CORES']} {sys.argv[1:]}")
"""


def errand(root: Path, body: str, **others) -> dict:
    (root / "train.py").write_text(SCRIPT + body)
    common = {"words": ["train.py", "--fold", "0"], "root": str(root), "run": "runs/a", "fold": "fold0"}
    return {**common, "cores": 2, "prepared": "ready", **others}


def told(root: Path, body: str) -> tuple[str, list[dict]]:
    facts = []
    problem = worker.train_on_node(**errand(root, body), say=lambda **its: facts.append(its))
    return problem, facts


def test_a_node_runs_the_command_says_how_far_it_is_and_leaves_no_log_when_it_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.05)
    body = """
print("ready", flush=True)
(folder / "log.csv").write_text("epoch,score\\n1,0.5\\n2,0.75\\n")
time.sleep(0.5)
"""
    problem, facts = told(tmp_path, body)
    assert problem == ""
    assert facts[0]["state"] == "starts"
    assert {"state": "trains", "epoch": 2, "score": 0.75, "prepared": True} in facts
    assert (tmp_path / "runs/a/fold0/begins").read_text() == "2 2 ['--fold', '0']"
    assert not (tmp_path / "runs/a/fold0/output.log").exists()


def test_a_mistake_is_told_and_not_tried_again_and_anything_else_is(tmp_path):
    assert told(tmp_path, "print('error: no such image'); sys.exit(2)")[0] == "no such image"
    for body, reason in (
        ("print('half-way'); sys.exit(75)", "ended with 75 on .*: half-way"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("raise ValueError('x')", "ended with 1 on .*: ValueError: x"),
    ):
        with pytest.raises(worker.TryAgain, match=reason):
            told(tmp_path, body)
    assert "half-way" in (tmp_path / "runs/a/fold0/output.log").read_text()


def test_what_an_earlier_try_said_is_not_taken_for_this_one(tmp_path):
    with pytest.raises(worker.TryAgain):
        told(tmp_path, "print('ready'); sys.exit(75)")
    with pytest.raises(worker.TryAgain, match="killed by SIGKILL on .*: it said nothing"):
        told(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    _, facts = told(tmp_path, "")
    assert not any(its.get("prepared") for its in facts)


def test_why_a_task_is_tried_again_is_told(tmp_path):
    facts = []
    with pytest.raises(worker.TryAgain) as raised:
        worker.train_on_node(**errand(tmp_path, "sys.exit(75)"), say=lambda **its: facts.append(its))
    assert facts[-1] == {"problem": str(raised.value)}


@pytest.mark.parametrize("text", ["", "epoch,score\n", "epoch\n1\n", "epoch,score\none,0.5\n", "epoch,score\n1\n"])
def test_a_log_of_another_form_is_told_and_the_training_goes_on(text, tmp_path):
    (tmp_path / "log.csv").write_text(text)
    (tmp_path / "output.log").write_text("ready")
    facts = worker.progress(tmp_path, tmp_path / "output.log", 0, "ready")
    assert facts["prepared"]
    assert (facts.get("epoch") == 1) != facts.get("problem", "").startswith(f"{tmp_path}: ")


def test_what_is_asked_of_a_node_is_what_it_does(root, monkeypatch):
    """--part: the driver sums up, and versions of a node's own are no other settings."""
    workspace, asked = Workspace(root), []
    ray = SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}])
    monkeypatch.setattr(fan_out, "connected", lambda address: nullcontext(ray))
    monkeypatch.setattr(fan_out, "train_all", lambda ray, tasks, errand_of, *_: asked.extend(map(errand_of, tasks)))
    settings, urls = dict.fromkeys(RUNS, Config()), {run: f"memory://x/{run.name}" for run in RUNS}
    for inputs in ("", "0123"):
        asked.clear()
        fan_out.fan_out(workspace, TASKS, settings, urls, inputs, "", None, None, 3, "node", fan_out.Stop())
        for task, its in zip(TASKS, asked, strict=True):
            inspect.signature(worker.train_on_node).bind(**its, say=None)
            assert its["words"] == [*task.command, "--part"]
            assert root / its["run"] / its["fold"] == workspace.fold_dir(task.run.name, task.number)
            assert its["cores"] == 4
            assert its.get("storage") == (f"memory://x/{task.run.name}" if inputs else None)


def test_a_short_failure_of_the_storage_is_told_and_costs_no_training(tmp_path, monkeypatch):
    failures = [TimeoutError("no answer")]

    def push_run(url, run_dir, known):
        if failures:
            raise failures.pop()

    monkeypatch.setattr(worker, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(worker, "pull_inputs", lambda url, inputs, node_dir: tmp_path)
    for name, push in (("pull_fold", lambda *_: None), ("push_fold", lambda *_: None), ("push_run", push_run)):
        monkeypatch.setattr(worker, name, push)
    facts = []
    given = errand(tmp_path, "print('ready', flush=True); time.sleep(0.5)", storage="s3://b/runs/a-0", inputs="0")
    assert worker.train_on_node(**given, say=lambda **its: facts.append(its)) == ""
    problems = [its["problem"] for its in facts if "problem" in its]
    assert problems[0] == "s3://b/runs/a-0: TimeoutError: no answer"
    assert set(problems[1:]) == {""}
    assert failures == []
    told_ready = [its.get("prepared") for its in facts if its["state"] == "trains" and its.get("problem")]
    assert told_ready == [None]  # the run's other folds would look in the storage for what it has not
    assert any(its.get("prepared") for its in facts)


def test_a_fold_whose_files_do_not_reach_the_storage_is_not_done(tmp_path, monkeypatch):
    def push_run(url, run_dir, known):
        raise TimeoutError("no answer")

    monkeypatch.setattr(worker, "pull_inputs", lambda url, inputs, node_dir: tmp_path)
    monkeypatch.setattr(worker, "pull_fold", lambda *_: None)
    monkeypatch.setattr(worker, "push_run", push_run)
    given = errand(tmp_path, "", storage="s3://b/runs/a-0", inputs="0")
    with pytest.raises(TimeoutError, match="no answer"):
        worker.train_on_node(**given, say=lambda **its: None)


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path):
    problem = worker.train_on_node(**{**errand(tmp_path, ""), "root": str(tmp_path / "no")}, say=lambda **its: None)
    assert re.search("sees no .*/no/train.py: share this folder with it, or use --storage", problem)


def wait_until(is_so, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no signal of a parent's death")
def test_a_training_saves_when_its_worker_is_killed(tmp_path):
    given = errand(tmp_path, "time.sleep(60)")
    code = f"from kfold.fan_out import worker; worker.train_on_node(**{given!r}, say=lambda **its: None)"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY)
    folder = tmp_path / "runs/a/fold0"
    wait_until(lambda: (folder / "begins").exists())
    parent.kill()
    parent.wait()
    wait_until(lambda: (folder / "saved").exists())


def test_a_task_that_is_cancelled_lets_its_training_save(tmp_path, monkeypatch):
    folder = tmp_path / "runs/a/fold0"
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.05)

    sent = []

    def say(**facts):
        if (folder / "begins").exists() and not (folder / "saved").exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(worker, "pull_inputs", lambda url, inputs, node_dir: tmp_path)
    for name in ("pull_fold", "push_run"):
        monkeypatch.setattr(worker, name, lambda *_: None)
    monkeypatch.setattr(worker, "push_fold", lambda *_: sent.append((folder / "saved").exists()))
    with pytest.raises(KeyboardInterrupt):
        worker.train_on_node(**errand(tmp_path, "time.sleep(60)", storage="s3://b/runs/a-0", inputs="0"), say=say)
    assert sent == [True]  # what was saved last goes to the storage


def test_a_fold_waits_for_its_training_of_before(tmp_path):
    folder = tmp_path / "runs/a/fold0"
    folder.mkdir(parents=True)
    ended = []
    with FileLock(folder / ".lock"):
        second = threading.Thread(target=lambda: ended.append(told(tmp_path, "")))
        second.start()
        second.join(0.5)
        assert not (folder / "begins").exists()
    second.join()
    assert ended[0][0] == ""


# Between nodes that share no disk


def test_what_is_sent_to_the_nodes_needs_no_code_of_this_repository():
    for module in (storage, worker):
        tree = ast.parse(Path(module.__file__).read_text())
        names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        assert {name for name in names if name.startswith("kfold")} <= {"kfold.fan_out.storage"}


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    import fsspec

    fsspec.filesystem("memory").store.clear()
    return f"memory://bucket/{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}/bucket"


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def texts(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


def test_inputs_arrive_as_they_were_and_what_is_there_is_not_sent_again(url, tmp_path, monkeypatch):
    here = write(tmp_path / "here", train_py="1", data__a_png="same", data__b_png="same")
    first = storage.push_inputs(url, here, ["train.py", "data/a.png", "data/b.png"])
    node = storage.pull_inputs(url, first, tmp_path / "node")
    assert texts(node) == {"train.py": "1", "data/a.png": "same", "data/b.png": "same"}
    write(here, train_py="2")
    sent = []
    monkeypatch.setattr(storage, "send", lambda system, targets: sent.extend(targets))
    storage.push_inputs(url, here, ["train.py", "data/a.png", "data/b.png"])
    assert sent == [str(here / "train.py")]


def test_a_damaged_input_is_refused(url, tmp_path):
    digest = storage.push_inputs(url, write(tmp_path / "here", train_py="1"), ["train.py"])
    system, base = storage.connect(url)
    system.pipe_file(system.ls(f"{base}/objects", detail=False)[0], b"2")
    with pytest.raises(ValueError, match="damaged on its way"):
        storage.pull_inputs(url, digest, tmp_path / "node")
    assert not list((tmp_path / "node").rglob("train.py"))


def test_a_fold_goes_from_node_to_node_and_home(url, tmp_path):
    run = storage.run_url(url, "a", "0123")
    first = write(tmp_path / "first/a", config_yaml="c", fold0__state_pt="s1", fold0__log_csv="l1")
    storage.push_run(run, first, set())
    known = set()
    storage.push_fold(run, first, "fold0", known)
    second = write(tmp_path / "second/a", config_yaml="of another run", fold1__manifest_json="of another run")
    (second / ".origin").write_text(storage.run_url(url, "a", "4567"))
    storage.pull_fold(run, second, "fold0")
    assert texts(second) == texts(first)
    assert not storage.is_done_there(run, "fold0")
    (second / "fold0/state.pt").unlink()
    write(second, fold0__manifest_json="m", fold0__log_csv="l2", fold0__output_log="o")
    storage.push_fold(run, second, "fold0", set())
    assert storage.is_done_there(run, "fold0")
    storage.pull_fold(run, tmp_path / "home/a", "fold0")
    assert texts(tmp_path / "home/a") == {"config.yaml": "c", "fold0/manifest.json": "m", "fold0/log.csv": "l2"}


def test_a_fold_that_is_done_on_a_node_is_not_put_back_to_what_was_sent_of_it(url, tmp_path):
    run = storage.run_url(url, "a", "0123")
    node = write(tmp_path / "node/a", fold0__state_pt="s1", fold0__log_csv="l1")
    (node / ".origin").write_text(run)
    storage.push_run(run, node, set())
    storage.push_fold(run, node, "fold0", set())
    (node / "fold0/state.pt").unlink()
    write(node, fold0__manifest_json="m", fold0__log_csv="l2")  # the connection is lost: nothing of it is sent
    before = texts(node)
    storage.pull_fold(run, node, "fold0")
    assert texts(node) == before


def test_files_of_a_run_are_sent_when_they_have_changed(tmp_path, monkeypatch):
    run_dir, known, sent = write(tmp_path / "a", config_yaml="c", speed_json="s"), set(), []
    system, _ = storage.connect("memory://x")
    monkeypatch.setattr(type(system), "put_file", lambda self, source, target: sent.append(Path(target).name))
    for text in ("s", "changed"):
        if text != "s":
            write(run_dir, speed_json=text)
        storage.push_run("memory://x/runs/a", run_dir, known)
    assert sent == ["config.yaml", "speed.json", "speed.json"]


def test_a_fold_that_cannot_be_taken_home_is_named_and_the_others_are_taken(tmp_path, monkeypatch):
    workspace, taken = Workspace(tmp_path), []
    workspace.runs_dir.mkdir()

    def adopt(workspace, folder, run, numbers, config, stamp):
        if numbers == [1]:
            raise UserError(f"{Workspace(folder).fold_dir(run, 1)}/last.safetensors: damaged")
        taken.append((run, *numbers))

    monkeypatch.setattr(artifacts, "is_done", lambda workspace, run, number, stamp: (run, number) == ("b", 2))
    for name, of_storage in (("is_done_there", lambda *_: True), ("pull_fold", lambda *_: None), ("adopt_run", adopt)):
        monkeypatch.setattr(transfer, name, of_storage)
    urls = {run: f"s3://b/runs/{run.name}-0" for run in RUNS}
    problems = transfer.collect(workspace, urls, dict.fromkeys(RUNS, Config()), [0, 1, 2], "stamp")
    where = [f"s3://b/runs/{name}-0/fold1" for name in ("a", "b")]
    assert problems == [f"{url}/last.safetensors: damaged (or delete {url}, to train it anew)" for url in where]
    assert taken == [("a", 0), ("a", 2), ("b", 0)]
    with pytest.raises(UserError, match=r"a, fold 0 failed"):
        fan_out.judge({TASKS[0]: Outcome("failed", "x")}, str, fan_out.Stop(), problems)
    with pytest.raises(UserError, match="or delete"):
        fan_out.judge({TASKS[0]: Outcome("done")}, str, fan_out.Stop(), problems)


def test_code_folds_data_and_settings_reach_a_node_also_through_links(tmp_path):
    here = write(tmp_path / "here", train_py="t", competition_yaml="c", folds_csv="f", configs__a_yaml="a", weights="w")
    write(here, kfold__data__loader_py="l", kfold__data__loader_pyc="no", runs__a__config_yaml="r", README_md="no")
    (here / "data").symlink_to(write(tmp_path / "elsewhere", train_csv="rows", images__1_png="1"))
    (tmp_path / "elsewhere" / "more").symlink_to(write(tmp_path / "disk", a__2_png="2"))
    workspace, run = Workspace(here), Run("a", "configs/a.yaml", ())
    url = f"file://{tmp_path}/store"
    urls = {run: storage.run_url(url, "a", "0")}
    digest = transfer.send_inputs(workspace, FACTS, {run: Config(pretrained_path="weights")}, urls, url)
    node = storage.pull_inputs(url, digest, tmp_path / "node")
    assert texts(node) == {
        "train.py": "t", "competition.yaml": "c", "folds.csv": "f", "configs/a.yaml": "a", "weights": "w",
        "kfold/data/loader.py": "l", "data/train.csv": "rows", "data/images/1.png": "1", "data/more/a/2.png": "2",
    }  # fmt: skip
    storage.pull_fold(urls[run], node / "runs/a", "fold0")
    assert (node / "runs/a/config.yaml").read_text() == "r"


def test_a_run_of_other_settings_or_folds_lies_elsewhere_in_the_storage():
    assert transfer.identity(Config(), "a") == transfer.identity(Config(), "a")
    names = [transfer.identity(Config(lr=lr), stamp) for lr in (0.1, 0.2) for stamp in ("a", "b")]
    assert len(set(names)) == 4


@pytest.mark.parametrize("address", ["nothing://x", "://".join(["file", "/proc/nothing/store"])])
def test_an_address_that_cannot_be_written_to_is_told_in_one_line(address):
    with pytest.raises(UserError, match=f"^--storage {address}: cannot be used ") as refusal:
        transfer.refuse_unreachable(address)
    assert len(refusal.value.problems) == 1


def test_files_outside_of_the_repository_are_not_sent_and_named(root, tmp_path, monkeypatch):
    (tmp_path / "other.yaml").write_text("")
    (tmp_path / "mine.safetensors").write_text("")
    dotted = f"{os.path.relpath(tmp_path, root)}/mine.safetensors"
    for weights in (str(tmp_path / "mine.safetensors"), dotted):
        words = [f"pretrained_path={weights}"]
        with pytest.raises(UserError) as refusal:
            fan_out.main([str(tmp_path / "other.yaml")], words=words, storage="memory://x", root=root)
        assert [line.partition(": ")[0] for line in refusal.value.problems] == [str(tmp_path / "other.yaml"), weights]
        assert all("lies outside of this folder" in line for line in refusal.value.problems)


def test_what_vouches_for_others_is_sent_after_them(tmp_path, monkeypatch):
    names = ["manifest.json", "snapshot1.safetensors", "state.pt", "previous.pt", "log.csv", "zebra"]
    for name in names:
        (tmp_path / "a/fold0").mkdir(parents=True, exist_ok=True)
        (tmp_path / "a/fold0" / name).write_text("x")
    system, _ = storage.connect("memory://x")
    sent = []
    monkeypatch.setattr(type(system), "put_file", lambda self, source, target: sent.append(Path(target).name))
    known = set()
    storage.push_files("memory://x", tmp_path / "a/fold0", known)
    assert sorted(sent[:3]) == ["log.csv", "snapshot1.safetensors", "zebra"]
    assert sent[3:] == ["previous.pt", "state.pt", "manifest.json"]
    storage.push_files("memory://x", tmp_path / "a/fold0", known)
    assert len(sent) == len(names)  # nothing has changed


def test_a_run_that_learns_from_another_needs_a_shared_folder(root):
    words = ["distill_from=[teacher]"]
    with pytest.raises(UserError, match="run baseline: learns from another run"):
        fan_out.main(words=words, storage="memory://x", root=root)
