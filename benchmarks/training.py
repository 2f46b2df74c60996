"""Images a second of training, end to end from JPEG files: the peers, ours, and the same step without any data work.

Command  python benchmarks/training.py           or --backbone efficientnet_b0 --size 224 --batch 32 --count 160
Reads    the peers of .venv-peers (make bench installs them)

All read the same photographs of 500 x 375 pixels, those of four folds of five: random crop, flip, brightness, Adam,
cross entropy, from random weights. The peers compute as they do by default, in float32, and again in bfloat16 and
channels_last, the format that speed=auto most often takes; ours also in float32 without a cache. Sides take turns
(turns.py); a turn is an epoch, its first one warms up. The limit: as many steps of ours on one batch of noise that lies
on the device, in the same process and computed the same way, after each epoch. speed=auto chooses as for EPOCHS epochs.
"""

import argparse
import sys
from pathlib import Path

from machine import num_workers
from peers_there import DEFAULT_PYTHON, PLAIN, peer_command, peers_there
from project import BENCHMARKS, BUILD, make_project, peers_table
from rows import hand_over, make_row
from turns import take_turns

EPOCHS = 400  # of ours, that is told to train for long and ended after the rounds
OURS, PLAIN_OURS, MATCHED = "ours", "ours, speed=plain", ", bfloat16 and channels_last"


def main(backbone: str, size: int, batch_size: int, count: int, rounds: int, python: Path) -> list[dict]:
    """Rows against the peers' defaults, against the peers in bfloat16, and of ours in float32 without a cache."""
    project = make_project(BUILD / f"photos500-{count}", count, 500, 375)
    table = peers_table(project, ".jpg")
    words = ("--table", table, "--backbone", backbone, "--size", size, "--batch", batch_size, "--epochs", 1 + rounds)
    commands = {
        OURS: ours_command(project, "auto", backbone, size, batch_size),
        PLAIN_OURS: ours_command(project, "plain", backbone, size, batch_size, "speed=plain", "cache=off"),
    }
    for peer in peers_there(python, "train"):
        commands[peer] = peer_command(peer, python, "train", *words)
        commands[peer + MATCHED] = peer_command(peer, python, "train", *words, "--matched")
    answers, left_out = take_turns(commands, rounds, needed=(OURS, PLAIN_OURS, PLAIN))
    speeds = {side: [answer["images_per_second"] for answer in turns] for side, turns in answers.items()}
    limits = {side: [answer["limit"] for answer in answers[side]] for side in (OURS, PLAIN_OURS)}
    by_default = {side: values for side, values in speeds.items() if not side.endswith(MATCHED)}
    by_default = {side: values for side, values in by_default.items() if side not in (OURS, PLAIN_OURS)}
    matched = {side.removesuffix(MATCHED): values for side, values in speeds.items() if side.endswith(MATCHED)}
    facts = {"left_out": left_out, "images": count * 4 // 5, "workers_of_peers": num_workers()}

    def row(title: str, ours: str, peers: dict[str, list[float]]) -> dict:
        what = f"{backbone}, {size} px, batches of {batch_size}, {title}"
        return make_row("2 training", what, "images/s", {"ours": speeds[ours], **peers}, limits[ours], **facts)

    return [
        row("peers as by default", OURS, by_default),
        row("peers in bfloat16 and channels_last", OURS, matched),
        row("ours with speed=plain cache=off", PLAIN_OURS, by_default),
    ]


def ours_command(project: Path, run: str, backbone: str, size: int, batch_size: int, *words: str):
    settings = [f"backbone={backbone}", f"image_size={size}", f"batch_size={batch_size}", f"epochs={EPOCHS}"]
    settings += ["lr=3e-4", "pretrained=false", *words]
    return [sys.executable, BENCHMARKS / "ours.py", "train", project, run, *settings], project


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18", help="default: resnet18")
    parser.add_argument("--size", type=int, default=128, help="pixels (default: 128)")
    parser.add_argument("--batch", type=int, default=64, help="images a step (default: 64)")
    parser.add_argument("--count", type=int, default=640, help="photographs, a fifth held out (default: 640)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--peers", type=Path, default=DEFAULT_PYTHON, help="a Python that has them")
    parser.add_argument("--json", default="", help="a file for the rows")
    given = parser.parse_args()
    rows = main(given.backbone, given.size, given.batch, given.count, given.rounds, given.peers)
    hand_over(rows, given.json)
