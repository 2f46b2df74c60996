"""Seconds that a fan-out adds to each of its tasks: `fan_out.py` beside the same commands one after another.

Command  python benchmarks/fan_out.py            or --tasks 4 --rounds 1 for a quick look

Both train the folds of a tiny network on few photographs in a generated repository, from an empty runs/, with the
images decoded before. Ray gets one node with the cores of one fold, so that its tasks run one after another, too: what
it takes longer is its start and end, its workers and the driver's looks; nothing is gained by running side by side. The
limit is the loop over the commands of `fan_out.py --print`. Two numbers of tasks tell what is paid once and what for
each task.
"""

import argparse
import os
import shlex
import shutil
import time
from pathlib import Path

from project import BUILD, make_project, run
from rows import hand_over, make_row, median

WORDS = [
    "backbone=test_resnet",
    "image_size=32",
    "epochs=1",
    "batch_size=16",
    "pretrained=false",
    "speed=plain",
    "workers=0",
]


def main(num_tasks: int, count: int, rounds: int) -> list[dict]:
    """A row of seconds for one seed's folds, and one for `num_tasks`; the difference per task is among the facts."""
    os.environ["OMP_NUM_THREADS"] = str(os.cpu_count())  # as each task of the fan-out has
    project = make_project(BUILD / f"photos100-{count}", count, 100, 75)
    few = 5
    sizes = {size: time_both(project, size, rounds) for size in (few, num_tasks)}
    rows = []
    for size, (ours, loop) in sizes.items():
        extra = [mine - theirs for mine, theirs in zip(ours, loop, strict=True)]
        facts = {"extra seconds": extra, "extra seconds a task": [seconds / size for seconds in extra]}
        what = f"{size} tasks one after another, {count} photos, beside their commands in a loop"
        rows.append(make_row("8 fan-out", what, "s", {"ours": ours}, loop, **facts))
        print(f"  {what}: {median(extra):+.1f} s, {median(extra) / size:+.2f} s a task")
    if num_tasks > few:
        once, more = (median(row["facts"]["extra seconds"]) for row in rows)
        print(f"  paid for each further task: {(more - once) / (num_tasks - few):+.2f} s")
    return rows


def time_both(project: Path, num_tasks: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each round, in turns; num_tasks: a multiple of the five folds."""
    words = ["--configs", "baseline", "--seeds", str(num_tasks // 5), *WORDS]
    commands = [
        line for line in run(project, "fan_out.py", *words, "--print").splitlines() if line.startswith("python ")
    ]
    run(project, *shlex.split(commands[0])[1:])  # makes the cache of decoded images
    ours, loop = [], []
    for _ in range(rounds):
        for seconds, work in ((loop, run_in_turn), (ours, fan_out)):
            shutil.rmtree(project / "runs", ignore_errors=True)
            started = time.perf_counter()
            work(project, commands, words)
            seconds.append(time.perf_counter() - started)
            trained = len(list((project / "runs").glob("*/fold*/manifest.json")))
            if trained != num_tasks:
                raise SystemExit(f"{trained} of {num_tasks} folds are trained")
    return ours, loop


def run_in_turn(project: Path, commands: list[str], words: list[str]) -> None:
    for command in commands:
        run(project, *shlex.split(command)[1:])


def fan_out(project: Path, commands: list[str], words: list[str]) -> None:
    run(project, "fan_out.py", *words, "--cpus-per-fold", str(os.cpu_count()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=15, help="a multiple of 5 (default: 15)")
    parser.add_argument("--count", type=int, default=60, help="photographs, 50 or more (default: 60)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--json", default="", help="a file for the rows")
    given = parser.parse_args()
    hand_over(main(given.tasks, given.count, given.rounds), given.json)
