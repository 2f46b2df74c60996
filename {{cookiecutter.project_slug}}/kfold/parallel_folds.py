"""Several folds at once: each its own process of train.py --fold k, this one starts, watches and ends them.

The first starts alone until it has made the image cache and chosen how steps are computed: both are made once, and
timed while nothing else runs. What a fold says goes to its output.log, and from there, with its number, to the screen.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGINT, SIGTERM

from kfold.data.scan import num_cores
from kfold.device_probe import describe_end
from kfold.errors import TRY_AGAIN, Interrupted, UserError
from kfold.folds_at_once import (
    SECONDS_APART,
    Machine,
    Watch,
    folds_at_once,
    folds_beside,
    read_wish,
    start_watch,
    this_machine,
)
from kfold.forecast import PREPARED, UNDER_WAY
from kfold.stopping import Stop

POLL_SECONDS = 0.2
LAST_SECONDS = 30  # that folds get to end when this process cannot wait any longer
STOPPED = (TRY_AGAIN, -SIGTERM, -SIGINT)  # exit codes; the signals: it came before train.py could answer


@dataclass
class Child:
    number: int
    place: int  # of the folds at once, from 0
    process: subprocess.Popen
    log_path: Path
    lines: list[str] = field(default_factory=list)
    num_read: int = 0  # bytes of the log

    def read(self) -> None:
        """Print the lines that are new."""
        with self.log_path.open("rb") as file:
            file.seek(self.num_read)
            content = file.read()
        if self.process.poll() is None:
            content = content[: content.rfind(b"\n") + 1]  # the rest of the line is still to come
        self.num_read += len(content)
        for line in content.decode(errors="replace").splitlines():
            print(f"fold {self.number} | {line}", flush=True)
            self.lines.append(line)

    def has_said(self, text: str) -> bool:
        return any(text in line for line in self.lines)


@dataclass
class Plan:
    """How many folds at once. num_at_once: None until one fold was measured."""

    machine: Machine
    num_folds: int
    num_at_once: int | None
    watch: Watch | None = None
    next_look: float = 0.0

    @property
    def allowed(self) -> int:
        return self.num_at_once or 1

    def environment_of(self, place: int) -> dict[str, str]:
        """A GPU and a share of the cores; a fold that starts before the number is known has all of these."""
        gpus, cores = self.machine.gpus, max(1, self.machine.cores // self.allowed)
        threads = min(cores, int(os.environ.get("OMP_NUM_THREADS") or cores))
        found = {**os.environ, "PYTHONUNBUFFERED": "1", "KFOLD_CORES": str(cores), "OMP_NUM_THREADS": str(threads)}
        return {**found, "CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else found

    def measure(self, child: Child) -> None:
        """Once its first batches are done: how much of the GPU is left. Does nothing where the number is known."""
        now = time.monotonic()
        if self.num_at_once or not child.has_said(UNDER_WAY) or now < self.next_look:
            return
        self.next_look = now + SECONDS_APART
        if one := self.watch.look():
            self.num_at_once, reason = folds_beside(one, self.num_folds, self.machine.cores)
            print(f"{count(self.num_at_once)} at a time: {reason}")


def make_plan(wish: int | None, num_folds: int, machine: Machine) -> Plan:
    """Says why in one line, unless a fold has to be measured first."""
    number, reason = folds_at_once(wish, num_folds, machine)
    watch = start_watch(machine.gpus[0]) if number is None else None
    if number is None and watch is None:
        number, reason = 1, "nvidia-smi does not say how busy the GPU is (--parallel 2 trains two all the same)"
    plan = Plan(machine, num_folds, number, watch)
    if number is not None:
        share = "" if number == 1 else f"; cores for each: {max(1, machine.cores // number)} of {machine.cores}"
        last_digits = " (on a CPU that decides the last digits)" if share and machine.device == "cpu" else ""
        print(f"{count(number)} at a time: {reason}{share}{last_digits}")
    return plan


def count(number: int) -> str:
    return f"{number} fold{'s' * (number > 1)}"


def train_at_once(
    numbers: Sequence[int],
    wish: str,
    command_of: Callable[[int], list[str]],
    log_path_of: Callable[[int], Path],
    stop: Stop,
) -> bool:
    """Train the folds several at once; False, and nothing is done, where they had better be trained one by one.

    wish: auto, or a number. Raises UserError that names the folds which failed, or Interrupted.
    """
    if not numbers:
        return False
    plan = make_plan(read_wish(wish), len(numbers), this_machine(num_cores()))
    if plan.num_at_once == 1:
        return False
    train_side_by_side(numbers, command_of, log_path_of, plan, stop)
    return True


def train_side_by_side(
    numbers: Sequence[int],
    command_of: Callable[[int], list[str]],
    log_path_of: Callable[[int], Path],
    plan: Plan,
    stop: Stop,
) -> None:
    """Run the command of each fold. One that fails does not stop the others.

    Raises UserError that names those which failed, or Interrupted after a signal, or the time limit, was passed on.
    """
    waiting, running, ended = list(numbers), [], []
    is_prepared, is_told = False, False
    try:
        with stop.listening():
            while waiting or running:
                if stop.is_due and not is_told:
                    is_told = True
                    waiting.clear()
                    for child in running:
                        child.process.terminate()
                while waiting and len(running) < (plan.allowed if is_prepared else 1):
                    running.append(start(waiting.pop(0), running, command_of, log_path_of, plan))
                time.sleep(POLL_SECONDS)
                for child in list(running):
                    is_over = child.process.poll() is not None  # first, so that nothing that it said is missed
                    child.read()
                    is_prepared |= child.has_said(PREPARED)
                    if is_over:
                        running.remove(child)
                        ended.append(child)
                        tell_end(child)
                if waiting and len(running) == 1:
                    plan.measure(running[0])
    finally:
        end_all(running)
    judge(ended, stop)


def start(
    number: int,
    running: Sequence[Child],
    command_of: Callable[[int], list[str]],
    log_path_of: Callable[[int], Path],
    plan: Plan,
) -> Child:
    taken = {child.place for child in running}
    place = next(place for place in range(len(taken) + 1) if place not in taken)
    path = log_path_of(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as log:
        process = subprocess.Popen(
            command_of(number),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=plan.environment_of(place),
        )
    return Child(number, place, process, path)


def tell_end(child: Child) -> None:
    """A fold that is done leaves no log; of one that failed its place is told."""
    code = child.process.returncode
    if code == 0:
        child.log_path.unlink(missing_ok=True)
    elif code not in STOPPED:
        print(f"fold {child.number} | failed, the others go on: see {child.log_path}", file=sys.stderr)


def end_all(running: Sequence[Child]) -> None:
    """When this process has to go before its folds are done: they save, or are killed."""
    for child in running:
        child.process.terminate()
    deadline = time.monotonic() + LAST_SECONDS
    for child in running:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()


def judge(ended: Sequence[Child], stop: Stop) -> None:
    """Raise UserError for folds that failed, in the order in which they did, else Interrupted for those stopped."""
    failed = [child for child in ended if child.process.returncode not in (0, *STOPPED)]
    problems = []
    for child in failed:
        last = next((line for line in reversed(child.lines) if line.strip()), "it said nothing")
        how = describe_end(child.process.returncode)
        problems.append(f"fold {child.number} failed ({how}), see {child.log_path}: {last.removeprefix('error: ')}")
    if problems:
        raise UserError(problems)
    stop.check()
    if stopped := [str(child.number) for child in ended if child.process.returncode in STOPPED]:
        raise Interrupted(f"fold {', '.join(stopped)} was stopped")
