"""What the peers' scripts share: their options, the pieces of work that they are timed at, and how they take turns.

A script has `make_loader(table, given, is_training)` and `train(table, held_out, given, clock)`, which returns how many
rows of `held_out` its model got right after the last epoch. Works:

    load       an epoch of batches that are ready for a network, on the device, for each line on stdin
    train      an epoch of training on the rows outside fold 0, for each line on stdin
    folds      every fold: training on the others, with validation after each epoch; then the share of right answers
    import     nothing beyond what the script imports
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

MARK = "TURN "  # as in turns.py
Device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Clock:
    """Says when an epoch may start, and tells images a second of it, without validation."""

    def start(self) -> None:
        if not sys.stdin.readline():
            raise SystemExit  # no more turns
        self.started = time.perf_counter()

    def stop(self, num_images: int) -> None:
        if Device.type == "cuda":
            torch.cuda.synchronize()
        speed = num_images / (time.perf_counter() - self.started)
        print(f"{MARK}{json.dumps({'images_per_second': speed})}", flush=True)


class NoClock(Clock):
    """Of a training that is timed as a whole."""

    def start(self) -> None: ...
    def stop(self, num_images: int) -> None: ...


def work(description: str, make_loader: Callable, train: Callable) -> None:
    given = options(description)
    if given.work == "import":
        return
    table = pd.read_csv(given.table)
    table["path"] = [str(given.table.parent / name) for name in table["file"]]
    if given.work == "load":
        turn_batches(make_loader(table, given, True))
    elif given.work == "train":
        train(table[table["fold"] != 0], table[:0], given, Clock())
    else:
        right = 0
        for fold in sorted(table["fold"].unique()):
            right += train(table[table["fold"] != fold], table[table["fold"] == fold], given, NoClock())
        print(json.dumps({"score": right / len(table)}))


def turn_batches(loader: object) -> None:
    clock = Clock()
    while True:
        clock.start()
        num_images = 0
        for images, *_ in loader:
            num_images += len(images.to(Device, non_blocking=True))
        clock.stop(num_images)


def options(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("work", choices=["load", "train", "folds", "import"])
    parser.add_argument("--table", type=Path, help="CSV with file, label and fold; the files lie beside it")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    parser.add_argument(
        "--matched", action="store_true", help="bfloat16 and channels_last, as ours chooses; default: its own defaults"
    )
    return parser.parse_args()
