"""Images a second of training, end to end from JPEG files: the peers, ours, and the same step without any data work.

Command  python benchmarks/training.py --peers .venv-peers/bin/python        (make bench installs them)
         --backbones resnet18 efficientnet_b0 --sizes 128 224 --count 2000 --rounds 3
Returns  rows for benchmarks/bench.py; alone, it prints their table

All read the same files, 500 x 375 pixels, of four folds of five: random crop, flip, brightness; batches of 64, Adam,
cross entropy, from random weights. Each side is a process of its own, started one after the other, round by round; a
figure is the median over rounds of a process's epochs after the first. The ratio is ours over theirs in the same round.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

from project import BUILD, TEMPLATE, fold_table, logged_speeds, make_project, run

PEERS = ("timm", "fastai", "lightning")
EPOCHS = 3


def measure(backbone: str, size: int, count: int, rounds: int, peers_python: Path) -> list[dict]:
    """A row for each side: {side, images_per_second, of_rounds, ratio of ours to it}."""
    photos = BUILD / "photos500"
    project = make_project(photos, count, 500, 375)
    table = fold_table(project, photos, fold=0)
    words = (f"backbone={backbone}", f"image_size={size}")
    sides: dict[str, Callable[[], float]] = {}
    for peer in PEERS:
        for matched in (False, True):
            name = f"{peer}, bfloat16 and channels_last" if matched else f"{peer}, its defaults"
            sides[name] = lambda peer=peer, matched=matched: speed_of_peer(
                peer, peers_python, table, backbone, size, matched
            )
    sides["ours, speed=plain"] = lambda: speed_of_ours(project, "plain", *words, "speed=plain", "cache=off")
    sides["ours"] = lambda: speed_of_ours(project, "auto", *words)
    sides["limit: ours on one batch that lies on the device"] = lambda: speed_of_limit(project, "auto", *words)
    speeds = {name: [] for name in sides}
    for _ in range(rounds):
        for name, of in sides.items():
            speeds[name].append(of())
            print(f"  {backbone} at {size}: {name}: {speeds[name][-1]:.1f} images/s", flush=True)
    return [
        {
            "side": name,
            "images_per_second": statistics.median(values),
            "of_rounds": values,
            "ratio": statistics.median(ours / other for ours, other in zip(speeds["ours"], values, strict=True)),
        }
        for name, values in speeds.items()
    ]


def speed_of_peer(peer: str, python: Path, table: Path, backbone: str, size: int, matched: bool) -> float:
    words = ["--backbone", backbone, "--size", size, "--epochs", EPOCHS, *(["--matched"] if matched else [])]
    output = run(TEMPLATE / "benchmarks" / "peers", f"train_{peer}.py", table, *words, python=str(python))
    return statistics.median(json.loads(output.splitlines()[-1])["images_per_second"])


def speed_of_ours(project: Path, name: str, *words: str) -> float:
    settings = (*words, f"epochs={EPOCHS}", "batch_size=64", "lr=3e-4", "pretrained=false")
    run(project, "train.py", "--fold", 0, "--name", name, "--overwrite", *settings)
    return statistics.median(logged_speeds(project, name))


def speed_of_limit(project: Path, name: str, *words: str) -> float:
    """Computed in the way that `speed_of_ours` chose for the run of that name."""
    folder = TEMPLATE / "benchmarks"
    output = run(folder, "limit.py", project, name, *words, "batch_size=64", "lr=3e-4")
    return statistics.median(json.loads(output.splitlines()[-1])["images_per_second"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=TEMPLATE / ".venv-peers" / "bin" / "python")
    parser.add_argument("--backbones", nargs="+", default=["resnet18", "efficientnet_b0"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[128, 224])
    parser.add_argument("--count", type=int, default=2000, help="photographs (default: 2000)")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    for backbone in given.backbones:
        for size in given.sizes:
            for row in measure(backbone, size, given.count, given.rounds, given.peers):
                print(f"| {row['side']} | {row['images_per_second']:.1f} | {row['ratio']:.2f} |")
