"""Seconds to train five folds, everything included: from the start of the command to its end, and what the models know.

Command  python benchmarks/five_folds.py         or --count 200 --epochs 1 --rounds 1 --peers <python>
Reads    the peers of .venv-peers (make bench installs them)

Ours is `train.py --fold all` in a generated repository, with empty runs/ and cache/: it decodes and keeps the
photographs, times ways to compute where that can pay, and writes weights, states, logs and out-of-fold predictions. The
plain code and the peers are a script that trains the same network on the same folds, as long, with validation after
each epoch, and prints one number. All start from random weights. Scores: the share of right out-of-fold predictions,
left to chance and to the schedule in so few epochs; they are there to show that a side learned something.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from machine import num_workers
from peers_there import DEFAULT_PYTHON, PLAIN, peer_command, peers_there
from project import BUILD, make_project, peers_table, run
from rows import hand_over, make_row


def main(
    backbone: str, size: int, batch_size: int, count: int, epochs: int, rounds: int, matched: bool, python: Path
) -> list[dict]:
    """A row of seconds; the scores of each round are among its facts."""
    project = make_project(BUILD / f"photos500-{count}", count, 500, 375)
    table = peers_table(project, ".jpg")
    words = ["--table", table, "--backbone", backbone, "--size", size, "--batch", batch_size, "--epochs", epochs]
    words += ["--matched"] if matched else []
    settings = [f"backbone={backbone}", f"image_size={size}", f"batch_size={batch_size}", f"epochs={epochs}"]
    sides: dict[str, Callable[[], float]] = {"ours": lambda: train_ours(project, settings)}
    sides |= {peer: lambda peer=peer: train_peer(peer, python, words) for peer in peers_there(python, "folds")}
    seconds, scores, left_out = ({side: [] for side in sides} for _ in range(3))
    for _ in range(rounds):
        for side in [side for side in sides if not left_out[side]]:
            if side == "ours":
                for name in ("runs", "cache"):
                    shutil.rmtree(project / name, ignore_errors=True)
            started = time.perf_counter()
            try:
                score = sides[side]()
            except SystemExit as failure:
                if side in ("ours", PLAIN):
                    raise
                left_out[side], seconds[side] = str(failure), []
                print(f"  {side}: left out: {failure}", flush=True)
                continue
            seconds[side].append(time.perf_counter() - started)
            scores[side].append(score)
            print(f"  {side}: {seconds[side][-1]:.1f} s, {score:.3f} right", flush=True)
    peers = "peers in bfloat16 and channels_last" if matched else "peers as by default"
    what = f"five folds, {epochs} epochs, {backbone}, {size} px, batches of {batch_size}, {count} photos, {peers}"
    reasons = {side: reason.splitlines()[-1] for side, reason in left_out.items() if reason}
    facts = {"scores": scores, "left_out": reasons, "workers_of_peers": num_workers()}
    return [make_row("4 five folds", what, "s", seconds, **facts)]


def train_ours(project: Path, settings: list[str]) -> float:
    run(project, "train.py", "--fold", "all", "--name", "bench", *settings, "lr=3e-4", "pretrained=false")
    files = sorted((project / "runs" / "bench").glob("fold*/oof.parquet"))
    oof = pd.concat([pd.read_parquet(path) for path in files]).set_index("id").filter(regex="^p_")
    labels = pd.read_csv(project / "folds.csv", dtype=str).set_index("id")["label"]
    return float((oof.idxmax(axis=1).str.removeprefix("p_") == labels[oof.index]).mean())


def train_peer(peer: str, python: Path, words: list[object]) -> float:
    (interpreter, *command), folder = peer_command(peer, python, "folds", *words)
    return json.loads(run(folder, *command, python=interpreter).splitlines()[-1])["score"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18", help="default: resnet18")
    parser.add_argument("--size", type=int, default=64, help="pixels (default: 64)")
    parser.add_argument("--batch", type=int, default=32, help="images a step (default: 32)")
    parser.add_argument("--count", type=int, default=600, help="photographs (default: 600)")
    parser.add_argument("--epochs", type=int, default=3, help="default: 3")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--matched", action="store_true", help="the peers in bfloat16 and channels_last")
    parser.add_argument("--peers", type=Path, default=DEFAULT_PYTHON, help="a Python that has them")
    parser.add_argument("--json", default="", help="a file for the rows")
    given = parser.parse_args()
    rows = main(
        given.backbone, given.size, given.batch, given.count, given.epochs, given.rounds, given.matched, given.peers
    )
    hand_over(rows, given.json)
