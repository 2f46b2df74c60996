"""Images a second of the loaders: from JPEG files, or from the cache, to normalised batches on the device.

Command  python benchmarks/loader.py             or --width 2000 --height 1500 --count 200 --size 64 --rounds 1
Reads    the peers of .venv-peers (make bench installs them)

All decode the same photographs, cut out a random part, mirror, change the brightness, and end with normalised float32
images on the device, which nothing is done with. The plain code and the peers do so as peers/train_*.py says; none of
them keeps decoded images. Ours hands over uint8 and normalises on the device; a row of its own is without that. The
limit is a copy of as many bytes (uint8), from one place in memory to another. Sides take turns (turns.py); a turn is an
epoch.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from machine import num_workers
from peers_there import DEFAULT_PYTHON, PLAIN, peer_command, peers_there
from photos import write_photos
from project import BENCHMARKS, BUILD
from rows import hand_over, make_row
from turns import take_turns


def main(width: int, height: int, size: int, batch_size: int, count: int, rounds: int, python: Path) -> list[dict]:
    """Rows from files and from the cache. The cache is made before the first turn."""
    folder = BUILD / f"photos{width}-{count}"
    write_photos(folder, count, width, height).assign(fold=0).to_csv(folder / "all.csv", index=False)
    words = ("--table", folder / "all.csv", "--size", size, "--batch", batch_size)
    ours = [sys.executable, BENCHMARKS / "ours.py", "load", folder, size, batch_size]
    commands = {"ours": (ours, BENCHMARKS), "ours, cached": ([*ours, "cached"], BENCHMARKS)}
    commands |= {peer: peer_command(peer, python, "load", *words) for peer in peers_there(python, "load")}
    answers, left_out = take_turns(commands, rounds, needed=("ours", "ours, cached", PLAIN))
    limit = [copied_a_second(size, batch_size) for _ in range(rounds)]
    speeds = {side: [answer["images_per_second"] for answer in turns] for side, turns in answers.items()}
    cached, what = speeds.pop("ours, cached"), f"{width}x{height} to {size} px, batches of {batch_size}"
    uint8 = [answer["uint8"] for answer in answers["ours, cached"]]
    facts = {"left_out": left_out, "images": count, "workers_of_peers": num_workers()}

    def row(title: str, ours: list[float]) -> dict:
        return make_row("1 loader", f"{title}, {what}", "images/s", {**speeds, "ours": ours}, limit, **facts)

    return [
        row("from files", speeds["ours"]),
        row("ours from the cache", cached),
        row("ours from the cache, not yet normalised", uint8),
    ]


def copied_a_second(size: int, batch_size: int) -> float:
    """Images (uint8) a second that are copied from one place in memory to another, a batch at a time."""
    source = np.random.default_rng(0).integers(0, 256, (8 * batch_size, size, size, 3), np.uint8)
    target, copies = np.empty_like(source[:batch_size]), 64
    started = time.perf_counter()
    for number in range(copies):
        start = number % 8 * batch_size
        np.copyto(target, source[start : start + batch_size])
    return copies * batch_size / (time.perf_counter() - started)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=500, help="pixels of the photographs (default: 500)")
    parser.add_argument("--height", type=int, default=375, help="default: 375")
    parser.add_argument("--size", type=int, default=224, help="pixels of a batch's images (default: 224)")
    parser.add_argument("--batch", type=int, default=64, help="images (default: 64)")
    parser.add_argument("--count", type=int, default=1024, help="photographs (default: 1024)")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--peers", type=Path, default=DEFAULT_PYTHON, help="a Python that has them")
    parser.add_argument("--json", default="", help="a file for the rows")
    given = parser.parse_args()
    found = main(given.width, given.height, given.size, given.batch, given.count, given.rounds, given.peers)
    hand_over(found, given.json)
