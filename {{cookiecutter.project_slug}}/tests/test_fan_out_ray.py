"""Folds on a real Ray cluster of two nodes on this machine: whatever is killed, they end with the same bytes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from interrupted import fingerprint
from reliability import FULL, count
from test_fan_out import SCRIPT, wait_until
from test_fan_out_shards import SCRIPT as PREDICTS
from test_pipeline import copy_code, prepare

import fan_out
import train
from kfold.errors import Interrupted, UserError
from kfold.fan_out import cluster as nodes
from kfold.fan_out.cluster import Outcome, Share, connected, train_all
from kfold.fan_out.plan import Run, make_tasks
from kfold.fan_out.shards import run_stages
from kfold.fan_out.table import Screen
from kfold.shards import shard_commands
from kfold.stopping import Stop

os.environ |= nodes.SETTINGS
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # as there, Ray then talks over 127.0.0.1, which tests may
pytest.importorskip("ray", reason="a fan-out needs Ray")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a training must end with a worker that is killed")

EPOCHS = count(12, 30)  # of a quarter of a second
WORDS = [f"epochs={EPOCHS}", "save_batches=1"]
NODE = {"num_cpus": 1, "object_store_memory": nodes.OBJECT_BYTES}


@pytest.fixture(scope="module")
def cluster():
    """A head that trains nothing, and two nodes of one core."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
    add_node(started)
    add_node(started)
    yield started
    started.shutdown()


def add_node(cluster) -> None:
    """Its own folder is named by a variable, as on clusters with a disk a node."""
    number = len(os.listdir(os.environ["NODES"]))
    Path(os.environ["NODES"], str(number)).mkdir()
    cluster.add_node(**NODE, env_vars={"NODE_DIR": f"{os.environ['NODES']}/{number}"})


@pytest.fixture(scope="module", autouse=True)
def nodes_dir(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NODES", str(tmp_path_factory.mktemp("nodes")))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(nodes, "POLL_SECONDS", 0.1)  # how often a disturbance is asked whether it is time
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return copy_code(prepare(tmp_path_factory.mktemp("fanned"), "multiclass", 60, 6, batch_size=20, warmup_epochs=0.5))


@pytest.fixture(scope="module")
def undisturbed(root, tmp_path_factory) -> dict[int, dict[str, str]]:
    """The fingerprint of each fold, trained alone with as many threads."""
    alone, threads = tmp_path_factory.mktemp("alone"), torch.get_num_threads()
    os.symlink(root / "data", alone / "data")
    for name in ("configs", "competition.yaml", "folds.csv"):
        os.symlink(root / name, alone / name)
    torch.set_num_threads(1)
    train.main(overrides=WORDS, root=alone)
    torch.set_num_threads(threads)
    return {number: bytes_of(alone, "baseline", number) for number in range(3)}


# Real trainings


def holder(root: Path, run: str, fold: int) -> int:
    """The process that trains the fold."""
    return int(re.match(r"process (\d+)", (root / "runs" / run / f"fold{fold}" / ".lock.holder").read_text())[1])


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_half_way(root: Path, run: str, fold: int) -> bool:
    """After some epochs, with a state, and not near the end."""
    folder = root / "runs" / run / f"fold{fold}"
    rows = len(pd.read_csv(folder / "log.csv")) if (folder / "log.csv").exists() else 0
    return 2 <= rows < EPOCHS and (folder / "state.pt").exists()


class Disturbance(Stop):
    """Asked between two looks of the driver: strikes once, when the fold is half-way."""

    def __init__(self, is_time, strike):
        super().__init__()
        self.is_time, self.strike, self.struck_at = is_time, strike, 0.0

    @property
    def is_due(self) -> bool:
        if not self.struck_at and self.is_time():
            self.struck_at = time.monotonic()
            self.strike()
        return bool(self.reason)


def test_a_worker_that_is_killed_half_way_through_a_fold_changes_no_byte_of_it(cluster, root, undisturbed, capsys):
    def kill() -> None:
        os.kill(parent(holder(root, "killed", 0)), signal.SIGKILL)

    configure(root, "killed")
    stop = Disturbance(lambda: is_half_way(root, "killed", 0), kill)
    fan_out.main(["killed"], words=WORDS, address=cluster.address, cores=1, root=root, stop=stop)
    assert stop.struck_at
    told = capsys.readouterr().out
    assert "killed, fold 0: done" in told
    assert "try 2" in told
    assert "run killed, out of fold" in told
    assert "next: python predict.py --run killed, then python stack.py" in told
    for number in range(3):
        assert bytes_of(root, "killed", number) == undisturbed[number]
    assert list(pd.read_csv(root / "runs" / "ledger.csv")["run"]) == ["killed"]
    assert not list((root / "runs" / "killed").glob("fold*/output.log"))


@pytest.mark.skipif(not FULL, reason="half a minute: only under RELIABILITY=full")
def test_a_fold_of_a_lost_node_goes_on_elsewhere_from_what_was_stored(cluster, root, undisturbed, tmp_path, capsys):
    configure(root, "lost")
    folders = Path(os.environ["NODES"])

    def where() -> Path | None:
        found = [path for path in folders.glob("*/*") if (path / "runs" / "lost" / "fold0" / "log.csv").exists()]
        return found[0] if found else None

    def is_time() -> bool:
        return where() is not None and is_half_way(where(), "lost", 0) and states(tmp_path)

    def lose() -> None:
        raylet = parent(parent(holder(where(), "lost", 0)))
        (node,) = [node for node in cluster.worker_nodes if raylet_of(node) == raylet]
        cluster.remove_node(node, allow_graceful=False)

    stop = Disturbance(is_time, lose)
    store = f"file://{tmp_path}/store"
    options = {"cores": 1, "storage": store, "node_dir": "$NODE_DIR", "root": root}
    fan_out.main(["lost"], "0", "", WORDS, cluster.address, **options, stop=stop)
    assert stop.struck_at
    assert "try 2" in capsys.readouterr().out
    assert bytes_of(root, "lost", 0) == undisturbed[0]
    logs = list(folders.glob("*/*/runs/lost/fold0/log.csv"))
    assert len(logs) == 2  # both nodes worked on it
    assert not states(tmp_path)
    add_node(cluster)


def states(folder: Path) -> list[Path]:
    return list(folder.glob("store/runs/lost-*/fold0/state.pt"))


def raylet_of(node) -> int:
    return node.all_processes["raylet"][0].process.pid


@pytest.mark.skipif(not FULL, reason="half a minute: only under RELIABILITY=full")
def test_a_driver_that_is_killed_and_started_again_goes_on_and_its_fold_never_trains_twice(
    cluster, root, undisturbed, capsys
):
    configure(root, "driven")
    words = ["--configs", "driven", *WORDS, "--folds", "0", "--address", cluster.address, "--cpus-per-fold", "1"]
    driver = subprocess.Popen([sys.executable, "fan_out.py", *words], cwd=root, stdout=subprocess.DEVNULL)
    wait_until(lambda: is_half_way(root, "driven", 0), 120)
    first = holder(root, "driven", 0)
    driver.kill()
    driver.wait()
    fan_out.main(["driven"], "0", "", WORDS, cluster.address, cores=1, root=root)
    assert not Path(f"/proc/{first}").exists()
    assert bytes_of(root, "driven", 0) == undisturbed[0]
    capsys.readouterr()
    fan_out.main(["driven"], "0", "", WORDS, "no address is asked for", cores=1, root=root)
    assert "1 trainings, of which 1 were done before" in capsys.readouterr().out


def configure(root: Path, name: str) -> None:
    (root / "configs" / f"{name}.yaml").write_text((root / "configs" / "baseline.yaml").read_text())


def bytes_of(root: Path, run: str, number: int) -> dict[str, str]:
    """The fold's fingerprint without the run's name."""
    found = fingerprint(root, run, number)
    told = json.loads(found["manifest"])
    assert told.pop("run") == run
    return {**found, "manifest": json.dumps(told)}


# Trainings that are no trainings


def fan(cluster, root: Path, body: str, retries: int = 1, stop: Stop | None = None, cores: int = 1) -> dict:
    """Outcomes of three folds of a script by their numbers."""
    (root / "train.py").write_text(SCRIPT.replace('"runs/a/fold0"', 'f"runs/a/fold{sys.argv[4]}"') + body)
    tasks = make_tasks([Run("a", "a.yaml", ())], [0, 1, 2])

    def errand_of(task) -> dict:
        common = {"root": str(root), "run": "runs/a", "fold": f"fold{task.number}", "prepared": "ready"}
        return {"words": task.command, "cores": cores, **common}

    show = Screen(tasks, {"a": 1}, is_terminal=False).show
    with connected(cluster.address) as ray:
        found = train_all(ray, tasks, errand_of, lambda run: True, Share(cores, 0.0), retries, show, stop or Stop())
    return {task.number: outcome for task, outcome in found.items()}


def test_one_that_fails_is_named_and_the_others_finish(cluster, tmp_path):
    body = """
fold = sys.argv[4]
with (folder / "tries").open("a") as file:
    file.write("x")
if fold == "0":
    print("error: no such image"); sys.exit(2)
if fold == "1":
    print("half-way"); os.kill(os.getpid(), signal.SIGKILL)
"""
    found = fan(cluster, tmp_path, body)
    assert found[0] == Outcome("failed", "no such image")
    assert re.match(r"TryAgain: killed by SIGKILL on \S+: half-way", found[1].problem)
    assert found[2] == Outcome("done")
    tries = [(tmp_path / f"runs/a/fold{number}/tries").read_text() for number in range(3)]
    assert tries == ["x", "xx", "x"]


def test_a_signal_to_the_driver_lets_every_training_save_and_starts_no_other(cluster, tmp_path):
    stop = Disturbance(
        lambda: len(list(tmp_path.glob("runs/a/fold*/begins"))) == 2, lambda: setattr(stop, "reason", "enough")
    )
    found = fan(cluster, tmp_path, "time.sleep(60)", stop=stop)
    assert {outcome.state for outcome in found.values()} == {"stopped"}
    assert len(list(tmp_path.glob("runs/a/fold*/saved"))) == 2
    assert len(list(tmp_path.glob("runs/a/fold*/begins"))) == 2


def test_shards_are_tasks_one_that_fails_is_named_and_nothing_is_merged(cluster, tmp_path):
    (tmp_path / "predict.py").write_text(PREDICTS)
    for run in ("good", "bad"):
        stages = shard_commands([run], 3)
        logs = {words: tmp_path / f"{number}.log" for number, words in enumerate(w for stage in stages for w in stage)}
        with connected(cluster.address) as ray:
            begin = lambda: run_stages(ray, stages, logs, tmp_path, Share(1, 0.0), 0, Stop())  # noqa: B023, E731
            if run == "good":
                begin()
            else:
                with pytest.raises(UserError, match="--run bad --shard 2/3: failed, see .*shard 2/3 has a problem"):
                    begin()
    order = (tmp_path / "order").read_text().split()
    assert (order[0], sorted(order[1:4]), order[4]) == ("--oof", ["1/3", "2/3", "3/3"], "--merge")
    assert (order[5], sorted(order[6:])) == ("--oof", ["1/3", "2/3", "3/3"])


@pytest.mark.skipif(not FULL, reason="half a minute: only under RELIABILITY=full")
def test_test_rows_that_are_predicted_in_tasks_are_those_of_predict_py(cluster, root, undisturbed):
    configure(root, "spread")
    fan_out.main(["spread"], words=["epochs=1"], address=cluster.address, cores=1, root=root)
    fan_out.predict_in_shards(["spread"], 2, cluster.address, cores=1, root=root)
    folders = [root / "runs" / "spread" / f"fold{number}" for number in range(3)]
    in_shards = [(folder / "test.parquet").read_bytes() for folder in folders]
    assert not list((root / "runs" / "spread").glob(".predict-*.log"))
    done = subprocess.run([sys.executable, "predict.py", "--run", "spread", "--overwrite"], cwd=root)
    assert done.returncode == 0
    assert [(folder / "test.parquet").read_bytes() for folder in folders] == in_shards


def test_what_was_stopped_or_failed_decides_how_the_command_ends():
    first, second = make_tasks([Run("a", "a.yaml", ())], [0, 1])
    stopped, failed = Outcome("stopped"), Outcome("failed", "no such image")
    with pytest.raises(UserError, match=r"^a, fold 1 failed, see log of a, fold 1: no such image$"):
        fan_out.judge({first: stopped, second: failed}, lambda task: f"log of {task.name}", Stop())
    with pytest.raises(Interrupted, match="a, fold 0 was stopped"):
        fan_out.judge({first: stopped, second: Outcome("done")}, str, Stop())


@pytest.mark.skipif(not FULL, reason="starts another Ray: only under RELIABILITY=full")
def test_without_an_address_a_small_cluster_lives_as_long_as_the_command(root, undisturbed):
    configure(root, "local")
    words = ["--configs", "local", *WORDS, "--folds", "1", "--cpus-per-fold", "1"]
    done = subprocess.run([sys.executable, "fan_out.py", *words], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert bytes_of(root, "local", 1) == undisturbed[1]


def test_a_cluster_that_is_not_there_is_told_in_one_line():
    with pytest.raises(UserError, match="^--address 127.0.0.1:1: no answer "), connected("127.0.0.1:1"):
        pass
