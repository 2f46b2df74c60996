"""Whether `speed: auto` finds what is fastest: its choice against every combination that it could have chosen.

Command  python benchmarks/speed_auto.py          or --backbone resnet50 --size 224 --batch 64
Writes   nothing: the tables go to stdout, and from there into benchmarks/README.md

For each network and size the choice is made first, as train.py makes it, then all combinations are timed in turns, a
few steps each. Ratios are of the fastest turns, as those of the search are; beside them the medians over the rounds.
`choice / best` is 1 where nothing is faster than the choice.
"""

import argparse
import statistics
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from machine import load
from torch import nn

sys.path.insert(0, str(next(Path(__file__).resolve().parents[1].glob("*/kfold")).parent))

from kfold.artifacts import Workspace
from kfold.config import Config
from kfold.settings import build_settings
from kfold.setup.network import make_card, make_model
from kfold.setup.rows import TrainingRows
from kfold.setup.speed_measure import Fold, cpu_name, dtypes_of, make_batch, make_rig, measure
from kfold.stopping import Stop
from kfold.training.depthwise import is_depthwise
from kfold.training.freed_memory import can_keep_freed_memory
from kfold.training.precision import choose_device, make_deterministic
from kfold.training.speed import Speed
from kfold.training.speed_search import Unfit, combinations, pick
from kfold.training.speed_trial import NUM_SANE_IMAGES, trial_of

NUM_CLASSES = 10


def main(
    backbones: list[str], sizes: list[int], batch_size: int, rounds: int, num_steps: int, with_compile: bool
) -> None:
    device = choose_device()
    make_deterministic(True)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{cpu_name()}, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}; batches of {batch_size}; {rounds} rounds; {load()}")
    for backbone, size in product(backbones, sizes):
        print(f"\n## {backbone} at {size} px\n", flush=True)
        fold = make_fold(backbone, size, batch_size, num_steps, device)
        trials, _ = measure(fold)
        chosen = pick(trials, fold.num_steps).speed
        turns = time_grid(fold, rounds, with_compile)
        plain, medians = Speed(dtypes_of(fold.config, device)[0]), {s: statistics.median(t) for s, t in turns.items()}
        times = {speed: min(taken) for speed, taken in turns.items()}
        best = min(times, key=times.get)
        print("\n| way to compute | ms a step | median | plain / it | it / best |\n|---|---|---|---|---|")
        for speed, seconds in sorted(times.items(), key=lambda item: item[1]):
            mark = " (chosen)" if speed == chosen else ""
            ratios = f"{times[plain] / seconds:.2f} | {seconds / times[best]:.2f}"
            print(f"| {speed}{mark} | {1000 * seconds:.1f} | {1000 * medians[speed]:.1f} | {ratios} |")
        if chosen in times:
            by_median = medians[chosen] / min(medians.values())
            print(f"\nchoice / best: {times[chosen] / times[best]:.3f}, by medians {by_median:.3f}", flush=True)
    print(f"\nat the end: {load()}")


def make_fold(backbone: str, size: int, batch_size: int, num_steps: int, device: torch.device) -> Fold:
    """What train.py would choose for, with noise for images."""
    values = {"backbone": backbone, "image_size": size, "batch_size": batch_size, "pretrained": False}
    config = build_settings(Config, values, "benchmark")
    targets = np.eye(NUM_CLASSES, dtype=np.float32)[np.arange(160) % NUM_CLASSES]
    none = np.array([])
    rows = TrainingRows(none, none, targets, np.ones_like(targets), len(targets), none, none, none)
    model = make_model(config, "multiclass", 0, targets).to(device)
    card = make_card(model, config, "multiclass", tuple("abcdefghij"), targets)
    return Fold(Workspace(Path()), "benchmark", 0, config, model, card, rows, {}, num_steps, 1, device, Stop())


def grid(fold: Fold, with_compile: bool) -> list[Speed]:
    """Every combination that `speed: auto` may choose."""
    modules, device = list(fold.model.modules()), fold.device
    has_depthwise = device.type == "cpu" and any(map(is_depthwise, modules))
    has_convolutions = any(isinstance(module, nn.Conv2d) for module in modules)
    first = combinations(dtypes_of(fold.config, device), has_depthwise, has_convolutions)
    compiled = (False, True) if with_compile else (False,)
    kept = (False, True) if device.type == "cpu" and can_keep_freed_memory() else (False,)
    # Kept memory comes last: each change of it costs the next step its warm pages.
    choices = product(kept, compiled, (False, True), first)
    return [replace(core, keep_memory=keep, compiled=comp, fused=fused) for keep, comp, fused, core in choices]


def time_grid(fold: Fold, rounds: int, with_compile: bool) -> dict[Speed, list[float]]:
    """Seconds a step of each round; without what does not work here."""
    sample, turns = make_batch(fold, NUM_SANE_IMAGES), {}
    with trial_of(make_rig(fold), make_batch(fold, fold.config.batch_size), sample) as bench:
        for speed in grid(fold, with_compile):
            try:
                bench.prepare(speed)
                turns[speed] = []
            except Unfit as reason:
                print(f"    {speed}: {reason}")
        for _ in range(rounds):
            for speed in turns:
                turns[speed].append(bench.turn(speed))
    return turns


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", default=["resnet18", "efficientnet_b0"], help="names of timm")
    parser.add_argument("--size", nargs="+", type=int, default=[64, 128], help="pixels (default: 64 128)")
    parser.add_argument("--batch", type=int, default=32, help="images a step (default: 32)")
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    parser.add_argument("--steps", type=int, default=1000, help="of the training that is chosen for (default: 1000)")
    parser.add_argument("--compile", action="store_true", help="compile every combination, too: minutes for each")
    given = parser.parse_args()
    main(given.backbone, given.size, given.batch, given.rounds, given.steps, given.compile)
