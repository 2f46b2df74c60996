"""One fold on its node: train.py as a process of its own, watched, ended with its parent, and run again elsewhere.

Sent to the nodes as it is: imports nothing of this repository but storage.py, which is sent along.
"""

import csv
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from kfold.fan_out.storage import pull_fold, pull_inputs, push_fold, push_run

POLL_SECONDS = 0.5
LOCK_SECONDS = 120  # that a fold waits for its training of before, which is saving its state
LAST_SECONDS = 30  # that a training gets to save
MISTAKE = 2  # exit code of what a person has to mend: trying again would not help
PREPARED_MARK = ("pixels.json, speed.json", 0, 0)
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)

Say = Callable[..., object]


class TryAgain(Exception):
    """A training ended before its fold was done: another try goes on from its state."""


class Board:
    """What the tasks say of themselves, by their names; an actor of Ray."""

    def __init__(self) -> None:
        self.rows: dict[str, dict] = {}

    def tell(self, name: str, facts: Mapping[str, object]) -> None:
        row = self.rows.setdefault(name, {"tries": 0})
        row.update(facts, tries=row["tries"] + (facts.get("state") == "starts"))

    def read(self) -> dict[str, dict]:
        return self.rows


def run_task(board, name: str, errand: Mapping[str, object]) -> str:
    """What a node is asked to do: `train_on_node`, with a board to tell."""
    return train_on_node(**errand, say=lambda **facts: board.tell.remote(name, facts))


def train_on_node(
    words: Sequence[str],
    root: str,
    run: str,
    fold: str,
    cores: int,
    prepared: str,
    say: Say,
    storage: str = "",
    inputs: str = "",
    node_dir: str = "",
) -> str:
    """Run `python words` in the repository: "" when the fold is done, else what a person has to mend.

    run, fold: the run's folder from the root, and the name of the fold's. prepared: what train.py prints before its
    first epoch. storage: the run's address, with the digest of the repository's inputs beside it; "": root is a shared
    folder. Raises TryAgain.
    """
    say(state="starts", node=socket.gethostname(), started=time.time())
    here = Path(root)
    if storage:
        here = pull_inputs(storage.rpartition("/runs/")[0], inputs, Path(os.path.expandvars(node_dir)).expanduser())
        pull_fold(storage, here / run, fold)
    if not (here / words[0]).exists():
        return f"{socket.gethostname()} sees no {here / words[0]}: share this folder with it, or use --storage"
    folder = here / run / fold
    folder.mkdir(parents=True, exist_ok=True)
    log_path, known, known_of_run = folder / "output.log", set(), set()  # known: what was sent to the storage

    def look(is_over: bool = False) -> None:
        facts = progress(folder, log_path, seen, prepared)
        is_news = bool(facts.get("prepared")) and PREPARED_MARK not in known  # the run's other folds wait for this
        if storage and (is_over or is_news or has_changed(folder, known)):
            try:
                push_run(storage, here / run, known_of_run)
                push_fold(storage, here / run, fold, known)
                known.update([PREPARED_MARK] if is_news else [])
                facts.setdefault("problem", "")  # an earlier one is over
            except Exception as error:  # each store has its own; a short failure should not cost the training
                if is_over:
                    raise
                facts["problem"] = f"{storage}: {type(error).__name__}: {error}"
                facts.pop("prepared", None)
        say(**facts)

    wait_for(folder)
    seen = log_path.stat().st_size if log_path.exists() else 0  # what earlier tries said
    code = watch(lambda: start_training(words, here, log_path, cores), look)
    last = last_line(log_path, seen)
    if code == 0:
        log_path.unlink(missing_ok=True)
    look(is_over=True)
    if code not in (0, MISTAKE):
        reason = f"{describe(code)} on {socket.gethostname()}: {last}"
        say(problem=reason)  # Ray tells what the last try raises, not why there was another one
        raise TryAgain(reason)
    return "" if code == 0 else last.removeprefix("error: ")


def start_training(words: Sequence[str], root: Path, log_path: Path, cores: int) -> subprocess.Popen:
    """The training. Its threads are as many on every node: on a CPU they decide the last digits."""
    given = {"PYTHONUNBUFFERED": "1", "KFOLD_CORES": str(cores), "OMP_NUM_THREADS": str(cores)}
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def end_with_parent() -> None:
        if prctl is not None:
            prctl(SET_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGTERM)

    with log_path.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=root,
            env={**os.environ, **given},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ray kills the group of a worker, which would leave no time to save
            preexec_fn=end_with_parent,
        )


def watch(start: Callable[[], subprocess.Popen], look: Callable[..., None]) -> int:
    """The exit code. A KeyboardInterrupt, by which Ray ends a task, is passed on as SIGTERM: the training saves."""
    process = None
    try:
        process = start()
        while process.poll() is None:
            look()
            time.sleep(POLL_SECONDS)
    except BaseException:
        if process is None:
            raise
        process.terminate()
        try:
            process.wait(LAST_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        look(True)
        raise
    return process.returncode


def wait_for(folder: Path) -> None:
    """Until no training holds the fold: one whose driver or worker was killed is saving. train.py names who stays."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        return  # train.py starts, and ends with the holder's name as its last line
    lock.release()


def progress(folder: Path, log_path: Path, seen: int, prepared: str) -> dict[str, object]:
    """How far the training is, by its files; why that cannot be seen is a fact like others: the training goes on."""
    facts: dict[str, object] = {"state": "trains"}
    try:
        if log_path.exists():
            with log_path.open("rb") as file:
                file.seek(seen)
                facts["prepared"] = prepared.encode() in file.read()
        if (folder / "log.csv").exists():  # an epoch is over
            *_, row = csv.DictReader((folder / "log.csv").read_text().splitlines())
            facts |= {"epoch": int(row["epoch"]), "score": float(row["score"] or "nan")}
    except (OSError, KeyError, TypeError, ValueError) as error:  # of the file system, or a file of another form
        facts["problem"] = f"{folder}: {type(error).__name__}: {error}"
    return facts


def has_changed(folder: Path, known: set) -> bool:
    """Whether a state was saved that was not sent."""
    path = folder / "state.pt"
    try:
        return (path.name, path.stat().st_mtime_ns, path.stat().st_size) not in known
    except FileNotFoundError:
        return False


def last_line(path: Path, seen: int = 0) -> str:
    """What a process said last. seen: bytes of earlier ones."""
    lines = path.read_bytes()[seen:].decode(errors="replace").splitlines() if path.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")


def describe(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
