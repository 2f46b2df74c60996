"""Seconds before anything happens: from cookiecutter to the first trained batch, and to import what a script needs.

Command  python benchmarks/start.py              or --rounds 1 --peers <python>
Reads    the peers of .venv-peers (make bench installs them)

Rows: (1) `cookiecutter` with the demo's answers, demo_data.py, make_folds.py, and train.py until its first batch is
trained on; no peer writes a project. (2) The last of these, by now with images in the cache and a speed that is known,
beside the peers' training scripts on the same scans, of which they get one batch. (3) Each script with --help, which
imports what the script imports, train.py's beside the peers' training scripts; the limit is a Python that imports
torch. All are processes of their own, in turns.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from machine import num_workers
from peers_there import DEFAULT_PYTHON, peer_command, peers_there
from project import BENCHMARKS, TEMPLATE, peers_table, run
from rows import hand_over, make_row
from turns import Side

SCRIPTS = ("make_folds.py", "predict.py", "pseudo_label.py", "stack.py", "submit.py", "embed.py", "ablate.py")
BATCH = 64  # as the demo's baseline


def main(rounds: int, python: Path) -> list[dict]:
    with tempfile.TemporaryDirectory() as name:
        folder, parts = Path(name), []
        for _ in range(rounds):
            shutil.rmtree(folder / "digits-demo", ignore_errors=True)
            parts.append(from_nothing(folder))
            print(f"  from nothing: {parts[-1]}", flush=True)
        project = folder / "digits-demo"
        first = in_turns(first_batches(project, python), rounds)
        peers = peers_there(python, "import")
        imports = in_turns(imports_of(project, python, peers), rounds)
    limit, facts = imports.pop("limit"), {"workers_of_peers": num_workers()}
    total = [sum(seconds.values()) for seconds in parts]
    with_peers = {side: imports[side] for side in peers}
    return [
        make_row("6 start", "cookiecutter to the first trained batch, demo", "s", {"ours": total}, parts=parts),
        make_row("6 start", "training script to its first trained batch, demo", "s", first, **facts),
        make_row("6 import", "train.py", "s", {"ours": imports["train.py"], **with_peers}, limit),
        *(make_row("6 import", script, "s", {"ours": imports[script]}, limit) for script in SCRIPTS),
    ]


def from_nothing(folder: Path) -> dict[str, float]:
    """Seconds of each step from no project to a trained batch."""
    bake_words = ["-m", "cookiecutter", TEMPLATE, "--no-input", "--default-config", "--output-dir", folder]
    project = folder / "digits-demo"
    steps: dict[str, Callable[[], object]] = {
        "cookiecutter": lambda: run(folder, *bake_words),
        "demo_data.py": lambda: run(project, "demo_data.py"),
        "make_folds.py": lambda: run(project, "make_folds.py"),
        "train.py": lambda: until_first_batch(our_first_batch(project)),
    }
    return {name: seconds_of(step) for name, step in steps.items()}


def our_first_batch(project: Path) -> tuple[Sequence[object], Path]:
    return [sys.executable, BENCHMARKS / "ours.py", "first", project], project


def until_first_batch(command: tuple[Sequence[object], Path]) -> None:
    side = Side(*command)
    side.turn()
    side.close()


def first_batches(project: Path, python: Path) -> dict[str, Callable[[], object]]:
    table = peers_table(project, ".png")
    rows = pd.read_csv(table)
    rows[rows["fold"] != 0].head(BATCH).to_csv(table, index=False)
    words = ("--table", table, "--size", 32, "--batch", BATCH, "--epochs", 1)
    commands = {"ours": our_first_batch(project)}
    commands |= {peer: peer_command(peer, python, "train", *words) for peer in peers_there(python, "train")}
    return {side: lambda command=command: until_first_batch(command) for side, command in commands.items()}


def imports_of(project: Path, python: Path, peers: Sequence[str]) -> dict[str, Callable[[], object]]:
    commands = {"limit": ([sys.executable, "-c", "import torch"], project)}
    commands |= {script: ([sys.executable, script, "--help"], project) for script in ("train.py", *SCRIPTS)}
    commands |= {peer: peer_command(peer, python, "import") for peer in peers}
    return {side: lambda command=command: silently(*command) for side, command in commands.items()}


def silently(command: Sequence[object], folder: Path) -> None:
    subprocess.run([str(word) for word in command], cwd=folder, stdout=subprocess.DEVNULL, check=True)


def in_turns(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each piece of work in each round; the first may read from a cold disk, the median forgets that."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(seconds_of(work))
            print(f"  {name}: {seconds[name][-1]:.2f} s", flush=True)
    return seconds


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--peers", type=Path, default=DEFAULT_PYTHON, help="a Python that has them")
    parser.add_argument("--json", default="", help="a file for the rows")
    given = parser.parse_args()
    hand_over(main(given.rounds, given.peers), given.json)
