"""What each switch costs a training step: its time over that of plain cross entropy with a linear head, same run.

Command  python benchmarks/step_time.py            or --backbone resnet50 --size 224 --batch 64 on a GPU
Writes   nothing: the table goes to stdout, and from there into benchmarks/README.md

One process, one batch of noise that lies on the device. A round times a few steps of the plain objective and as many of
every switch, one after the other; a switch's ratio is the median over rounds of its time by that of the plain objective
in the same round, so that a slow moment of the machine falls on both.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from machine import device_name, load, wait

sys.path.insert(0, str(next(Path(__file__).resolve().parents[1].glob("*/kfold")).parent))

from kfold.config import Config
from kfold.data.loader import Batch
from kfold.settings import build_settings, parse_overrides
from kfold.setup.network import make_card, make_model
from kfold.setup.objective import make_loss_terms, make_objective
from kfold.setup.rows import TrainingRows
from kfold.setup.start import make_training
from kfold.setup.training import make_recipe
from kfold.training.loop import keep_frozen
from kfold.training.precision import choose_device
from kfold.training.speed import Speed, plain_speed
from kfold.training.step import Moment, take_step

NUM_CLASSES = 10
SWITCHES = (
    "loss=focal", "loss=lovasz", "loss=soft_fbeta", "label_smoothing=0.1", "class_weights=effective_number",
    "ohem_share=0.7", "flooding=0.1", "triplet_weight=1.0", "center_weight=0.001", "l1_penalty=1e-6",
    "mixing=mixup", "mixing=cutmix", "mixing=ricap",
    "head=arcface", "head=subcenter_arcface", "head=cosface", "head=ordinal",
    "pooling=max", "pooling=avg_max", "pooling=concat", "pooling=gem", "pooling=spp", "neck=bnneck",
    "drop_rate=0.3 multi_sample_dropout=5", "drop_path_rate=0.1", "norm=group", "norm=ibn",
    "zero_gamma=off pretrained=false", "freeze_stages=2", "freeze_batch_norm=true",
    "ema_decay=0.999", "clip_grad=1.0", "layer_decay=0.75", "weight_decay=0.01", "accumulate=2",
    "optimizer=adamw weight_decay=0.01", "optimizer=sgd_nesterov", "optimizer=lamb", "optimizer=lion",
    "optimizer=adabelief", "optimizer=adan", "optimizer=adafactor",
)  # fmt: skip


def main(backbone: str, size: int, batch_size: int, rounds: int, steps: int) -> None:
    device = choose_device()
    speed = plain_speed("auto", device)
    words = [f"backbone={backbone}", f"image_size={size}", f"batch_size={batch_size}", "epochs=100"]
    print(
        f"{backbone}, {batch_size} images of {size} x {size}, {NUM_CLASSES} classes, {speed}, "
        f"{device_name(device)}, torch {torch.__version__}; {rounds} rounds of {steps} steps; {load()}\n"
    )
    print("| switch | step / plain | least to most of the rounds |\n|---|---|---|")
    plain = Bench(words, device, speed)
    for switch in SWITCHES:
        bench = Bench([*words, *switch.split()], device, speed)
        ratios = [bench.seconds(steps) / plain.seconds(steps) for _ in range(rounds)]
        print(f"| {switch} | {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |", flush=True)
    seconds = statistics.median(plain.seconds(steps) for _ in range(rounds)) / steps
    print(f"\nplain: {1000 * seconds:.1f} ms a step; at the end: {load()}")


class Bench:
    """A training under some settings, on one batch of noise."""

    def __init__(self, words: Sequence[str], device: torch.device, speed: Speed):
        config = build_settings(Config, {"backbone": "resnet18", **parse_overrides(words)}, "benchmark")
        config = config.model_copy(update={"pretrained": False})  # nothing to download: weights do not change the time
        generator = np.random.default_rng(0)
        classes = generator.integers(NUM_CLASSES, size=config.batch_size)
        targets = np.eye(NUM_CLASSES, dtype=np.float32)[classes]
        shape = (config.batch_size, config.image_size, config.image_size, 3)
        pixels = torch.from_numpy(generator.integers(0, 256, shape, np.uint8))
        values = torch.from_numpy(targets)
        self.batch = Batch(
            pixels.to(device), values.to(device), torch.ones_like(values).to(device), torch.arange(len(values)), []
        )
        self.device, self.precision = device, speed.precision("benchmark")
        self.model = make_model(config, "multiclass", 0, targets).to(device)
        self.card = make_card(self.model, config, "multiclass", tuple("abcdefghij"), targets)
        self.training = make_training(self.model, config, speed, device)
        self.objective = make_objective(
            config, "multiclass", make_loss_terms(config, self.model), False, rows_of(targets)
        )
        self.model.train()
        keep_frozen(self.model, make_recipe(config, 0), epoch=0)
        self.seconds(3)  # kernels are chosen, optimizers make their moments

    def seconds(self, steps: int) -> float:
        """Of so many steps, until the device is done."""
        wait(self.device)
        started = time.perf_counter()
        for step in range(steps):
            moment = Moment(step, epoch=0, epochs_done=0.0, lr=1e-4, seed=step)
            take_step(self.training, self.card, self.objective, self.batch, moment, self.device, self.precision)
        wait(self.device)
        return time.perf_counter() - started


def rows_of(targets: np.ndarray) -> TrainingRows:
    """Real training rows of these targets (N, C), without images."""
    none = np.array([])
    return TrainingRows(none, none, targets, np.ones_like(targets), len(targets), none, none, none)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18", help="default: resnet18")
    parser.add_argument("--size", type=int, default=96, help="pixels (default: 96)")
    parser.add_argument("--batch", type=int, default=16, help="images a step (default: 16)")
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    parser.add_argument("--steps", type=int, default=4, help="of a round (default: 4)")
    given = parser.parse_args()
    main(given.backbone, given.size, given.batch, given.rounds, given.steps)
