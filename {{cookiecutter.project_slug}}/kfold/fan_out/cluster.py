"""The tasks on a Ray cluster, or on this machine: Ray chooses the node, waits for room, and tries again."""

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from kfold.errors import UserError
from kfold.fan_out import worker
from kfold.fan_out.plan import Task
from kfold.stopping import Stop

POLL_SECONDS = 0.5
BOARD_SECONDS = 30  # for an answer of the board; it is on the driver's node
OBJECT_BYTES = 100_000_000  # of shared memory: nothing large is handed over
LOCAL = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "object_store_memory": OBJECT_BYTES}
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to Ray's makers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming rule for tasks without a GPU; today's warns
    "RAY_worker_niceness": "0",  # a training is no less urgent than by hand (Ray: 15)
}

Rows = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True)
class Share:
    """What a fold gets of its node. cores: whole processors; gpus: may be a part of one."""

    cores: int
    gpus: float


@dataclass(frozen=True)
class Outcome:
    """state: done, failed or stopped; problem: why it failed."""

    state: str
    problem: str = ""


def has_ray() -> bool:
    return find_spec("ray") is not None


@contextmanager
def connected(address: str):
    """Ray, connected to the cluster at this address or, without one, to a small one that lives as long as this."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    from kfold import fan_out

    refuse_silent(address)
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        else:
            ray.init(address="local", log_to_driver=False, logging_level="error", **LOCAL)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = f"--address {address}" if address else "on this machine"
        raise UserError(f"Ray does not start {where}: {(str(error) or type(error).__name__).splitlines()[0]}") from None
    try:
        ray.cloudpickle.register_pickle_by_value(fan_out)  # the nodes may have no copy of this repository yet
        yield ray
    finally:
        ray.shutdown()


def refuse_silent(address: str) -> None:
    """Raise UserError where nobody answers at host:port: Ray itself would go on asking for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"--address {address}: no answer ({error}): is `ray start --head` running there?") from None


def choose_share(nodes: Sequence[Mapping[str, float]], cores: int | None, gpus: float | None) -> Share:
    """What each fold gets, where it was not said. nodes: {"CPU": ..., "GPU": ...} of each.

    One GPU where there are any, and the cores of the least node divided by the folds that it takes at once. Raises
    UserError where no node has as much.
    """
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) for node in nodes) else 0.0
    able = [node for node in nodes if node.get("GPU", 0) >= gpus and node.get("CPU", 0) >= (cores or 1)]
    if not able:
        raise UserError(f"no node has {cores or 1} CPU cores and {gpus:g} GPUs: {describe_nodes(nodes)}: ask for less")
    if cores is None:
        cores = min(int(node["CPU"] // folds_at_once(node.get("GPU", 0), gpus)) for node in able)
    return Share(max(1, cores), gpus)


def folds_at_once(num_gpus: float, gpus: float) -> int:
    """Of folds with so many GPUs each, or a part of one, which lies on one GPU; 1 of folds without."""
    if not gpus:
        return 1
    return int(num_gpus) * int(1 / gpus + 1e-9) if gpus < 1 else int(num_gpus // gpus)  # 1 // 0.2 is 4


def describe_nodes(nodes: Sequence[Mapping[str, float]]) -> str:
    return "; ".join(f"{node.get('CPU', 0):g} cores, {node.get('GPU', 0):g} GPUs" for node in nodes) or "no node"


def nodes_of(ray) -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def train_all(
    ray,
    tasks: Sequence[Task],
    errand_of: Callable[[Task], Mapping[str, object]],
    is_prepared: Callable[[str], bool],
    share: Share,
    retries: int,
    show: Callable[[Rows], None],
    stop: Stop,
) -> dict[Task, Outcome]:
    """Train every task; one that fails does not stop the others.

    errand_of: what `worker.train_on_node` is called with. is_prepared: whether folds of a run may start at once; else
    its first starts alone until it has made what all share. After a signal, or the time limit, the trainings save.
    """
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), False)
    board = ray.remote(num_cpus=0, scheduling_strategy=here, max_restarts=-1)(worker.Board).remote()
    remote = ray.remote(num_cpus=share.cores, num_gpus=share.gpus, max_retries=retries, retry_exceptions=True)(
        worker.run_task
    )
    waiting, running, outcomes, ended_at, is_told = list(tasks), {}, {}, {}, False
    rows: dict[str, dict] = {}
    with stop.listening():
        while waiting or running:
            if stop.is_due and not is_told:
                is_told = True  # a second time would interrupt a task that waits for its training to save
                outcomes |= {task: Outcome("stopped") for task in waiting}
                waiting = []
                for reference in running:
                    ray.cancel(reference)
            for task in startable(waiting, set(running.values()), rows, is_prepared):
                waiting.remove(task)
                running[remote.remote(board, task.name, errand_of(task))] = task
            for reference in ray.wait(list(running), timeout=POLL_SECONDS)[0] if running else ():
                task = running.pop(reference)
                outcomes[task], ended_at[task] = outcome_of(ray, reference), time.time()
            rows = read_board(ray, board, rows)
            for task, outcome in outcomes.items():
                rows.setdefault(task.name, {}).update(state=outcome.state)
                if task in ended_at:
                    rows[task.name].update(ended=ended_at[task])
            show(rows)
    return outcomes


def startable(
    waiting: Sequence[Task], running: set[Task], rows: Rows, is_prepared: Callable[[str], bool]
) -> list[Task]:
    """Of each run all, once a fold of it has made what they share or none is under way to do so; else its first."""
    found: list[Task] = []
    for run in dict.fromkeys(task.run for task in waiting):
        tasks = [task for task in waiting if task.run == run]
        said = any(row.get("prepared") for name, row in rows.items() if name.startswith(f"{run.name}, fold "))
        if said or is_prepared(run.name):
            found += tasks
        elif not any(task.run == run for task in running):
            found.append(tasks[0])
    return found


def read_board(ray, board, before: dict[str, dict]) -> dict[str, dict]:
    """What the tasks say, over what they said `before`: where the board is lost, and starts anew, they go on."""
    try:
        return before | ray.get(board.read.remote(), timeout=BOARD_SECONDS)
    except ray.exceptions.RayError as error:
        print(f"warning: how far the tasks are is not known for now ({type(error).__name__})", file=sys.stderr)
        return before


def outcome_of(ray, reference) -> Outcome:
    try:
        problem = ray.get(reference)
    except ray.exceptions.TaskCancelledError:
        return Outcome("stopped")
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        first_line, *_ = [*str(cause).strip().splitlines(), "gives no reason"]
        return Outcome("failed", f"{type(cause).__name__}: {first_line}")
    return Outcome("failed", problem) if problem else Outcome("done")
