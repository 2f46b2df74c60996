"""One fold on several processes: their images a second, validation and start left out, against one process.

Command  python benchmarks/scaling_ranks.py      or --processes 4 --backbone resnet50 --size 224 --batch 256 on 4 GPUs
Writes   nothing: the table goes to stdout, and from there into benchmarks/README.md

`torchrun train.py` and `python train.py` in a generated repository, in turns; a figure is the median over epochs of the
images a second that its manifest tells. Batches are of all processes together, so both sides take the same steps. On a
CPU each process has one thread, and there are two rows: the limit is one process with one thread, times their number
(the scaling efficiency), and one process with as many threads as they have together. On GPUs it is one GPU, times their
number.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from project import BUILD, make_project, run
from rows import hand_over, make_row


def main(
    processes: int, backbone: str, size: int, batch_size: int, count: int, epochs: int, rounds: int
) -> list[dict[str, object]]:
    has_gpus = torch.cuda.is_available()
    if has_gpus and torch.cuda.device_count() < processes:
        raise SystemExit(f"{torch.cuda.device_count()} GPUs are there, not {processes}: say --processes")
    project = make_project(BUILD / f"photos500-{count}", count, 500, 375)
    words = [f"backbone={backbone}", f"image_size={size}", f"batch_size={batch_size}", f"epochs={epochs}"]
    words += ["pretrained=false", "lr=3e-4", *([] if has_gpus else ["workers=0"])]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    sides = {"together": (launch, 1), "one": ([], 1), **({} if has_gpus else {"one with all threads": ([], processes)})}
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(-1, rounds):  # the first, which fills the cache, does not count
        for side, (launched, threads) in sides.items():
            found = images_per_second(project, [*launched, "train.py"], words, threads)
            print(f"  {side}{', warm' if number < 0 else ''}: {found:.1f} images/s", flush=True)
            speeds[side] += [found] if number >= 0 else []
    return make_rows(speeds, processes, f"{backbone}, {size} px, batches of {batch_size}", has_gpus)


def images_per_second(project: Path, command: list[object], words: list[str], threads: int) -> float:
    shutil.rmtree(project / "runs", ignore_errors=True)
    run(project, *command, "--fold", 0, "--name", "bench", "speed=plain", *words, OMP_NUM_THREADS=str(threads))
    return json.loads((project / "runs" / "bench" / "fold0" / "manifest.json").read_text())["images_per_second"]


def make_rows(speeds: Mapping[str, list[float]], processes: int, what: str, has_gpus: bool) -> list[dict[str, object]]:
    kind = "GPUs" if has_gpus else "processes of 1 thread"
    ours, ideal = {"ours": speeds["together"]}, [processes * speed for speed in speeds["one"]]
    name = "8 several processes"
    rows = [make_row(name, f"{processes} {kind}; limit: {processes} times one; {what}", "images/s", ours, ideal)]
    if not has_gpus:
        limit = speeds["one with all threads"]
        rows.append(
            make_row(
                name, f"{processes} {kind}; limit: one process of {processes} threads; {what}", "images/s", ours, limit
            )
        )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="default: 2")
    parser.add_argument("--backbone", default="resnet18", help="default: resnet18")
    parser.add_argument("--size", type=int, default=96, help="pixels (default: 96)")
    parser.add_argument("--batch", type=int, default=32, help="images a step, of all together (default: 32)")
    parser.add_argument("--count", type=int, default=400, help="photographs (default: 400)")
    parser.add_argument("--epochs", type=int, default=3, help="default: 3")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--json", default="", help="a file for the rows")
    given = parser.parse_args()
    rows = main(given.processes, given.backbone, given.size, given.batch, given.count, given.epochs, given.rounds)
    hand_over(rows, given.json)
