"""Five folds x four views over photos: the usual notebook loop, our one pass in each way, and the forward passes alone.

Command  python benchmarks/inference.py       or --backbone efficientnet_b0 --images 128 --rounds 1
Writes   nothing, or with --json a file: the table goes to stdout

One process. A round runs every way once, one after the other; a way's figures are medians over rounds, so that a slow
moment of the machine falls on all. The photos, 500 x 375 JPEGs, are drawn from noise of several sizes, so that they
decode like photos. What is done once (conversion, compilation, folding) stands in a column of its own.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from machine import device_name, load
from torch import nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(next(Path(__file__).resolve().parents[1].glob("*/kfold")).parent))

from kfold.data.augment import eval_transform
from kfold.data.loader import EpochOrder, Images, make_loader, read_batches
from kfold.engines.inference import ENGINES, Inference, candidates, device_of
from kfold.engines.one_pass import Look, look_at_all, wait_for
from kfold.engines.ready import EXACT, Ready, difference, make_ready
from kfold.engines.trial import Race, choose_inference, describe
from kfold.ensemble.tta import make_views
from kfold.errors import UserError
from kfold.model.build import build_model
from kfold.model.weights import ModelCard, normalize
from kfold.training.precision import choose_device

NUM_FOLDS, NUM_CLASSES, VIEW, TOLERANCE = 5, 10, "flips", 0.01
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main(backbone: str, size: int, batch_size: int, num_images: int, rounds: int, workers: int, out: str) -> None:
    device = choose_device()
    views = make_views(VIEW, size)
    print(
        f"{backbone}, {num_images} photos of 500 x 375 at {size} px, {NUM_FOLDS} folds x {len(views)} views, "
        f"batches of {batch_size}, {workers} loader processes, {device_name(device)}, torch {torch.__version__}, "
        f"{load()}\n"
    )
    card = ModelCard(
        backbone, size, "multiclass", tuple("abcdefghij"), MEAN, STD, (0.0,) * NUM_CLASSES, (1.0,) * NUM_CLASSES
    )
    models = [make_model(backbone, size, fold) for fold in range(NUM_FOLDS)]
    with tempfile.TemporaryDirectory() as folder:
        paths = draw_photos(Path(folder), num_images)
        read = partial(batches_of, paths, size, batch_size, workers, device)
        probe = normalize(next(read()).images, MEAN, STD)
        ways = {"the usual notebook loop, float32": (0.0, partial(notebook, models, paths, size, batch_size, workers))}
        limits = {}
        for name, inference in ways_to_try(models, card, batch_size, probe, num_images * NUM_FOLDS * len(views)):
            started = time.perf_counter()
            try:
                ready = [make_ready(model, card, inference, device, batch_size, probe) for model in models]
                passes_alone(ready, probe, inference, 1, device)  # conversions and compilations are made here
            except UserError as error:
                print(f"{name}: left out: {error}")
                continue
            prepared = time.perf_counter() - started
            where = device_of(inference.engine, device)
            ways[name] = prepared, partial(one_pass, ready, read, num_images, size, where)
            num_passes = len(views) * -(-num_images // batch_size)
            limits[name] = partial(passes_alone, ready, probe, inference, num_passes, device)
        report(ways, limits, num_images, rounds, out)


# The ways


def notebook(models: Sequence[nn.Module], paths: Sequence[Path], size: int, batch_size: int, workers: int) -> None:
    """For each fold, for each view: all images are read, normalised by the loader's processes, and predicted."""
    device = choose_device()
    for model in models:
        model.to(device)
        total = 0
        for view in make_views(VIEW, size):
            loader = DataLoader(Photos(paths, size), batch_size, num_workers=workers)
            with torch.no_grad():
                found = [model(view(images.to(device))).softmax(1).cpu() for images in loader]
            total = total + torch.cat(found)


class Photos(Dataset):
    def __init__(self, paths: Sequence[Path], size: int):
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        image = cv2.cvtColor(cv2.imread(str(self.paths[row])), cv2.COLOR_BGR2RGB)
        image = cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return torch.from_numpy(((image / 255 - MEAN) / STD).astype(np.float32)).permute(2, 0, 1)


def ways_to_try(
    models: Sequence[nn.Module], card: ModelCard, batch_size: int, probe: torch.Tensor, num_forwards: int
) -> Iterator[tuple[str, Inference]]:
    """The plain way, what a trial takes, and the engines."""
    device = choose_device()
    yield "ours, plain float32", Inference()

    def run_of(inference: Inference, place: int) -> Callable[[], torch.Tensor]:
        ready = make_ready(models[place], card, inference, device, batch_size, probe)
        images = probe.to(device)

        @torch.inference_mode()
        def run() -> torch.Tensor:
            return ready.forward(images).cpu()

        return run

    def limit_of(inference: Inference) -> float:
        return EXACT if inference.dtype == "float32" else TOLERANCE

    race = Race(
        run_of, lambda logits, others: difference(logits, others, card.task), limit_of, NUM_FOLDS,
        -(-num_forwards // batch_size),
    )  # fmt: skip
    started = time.perf_counter()
    chosen, tried = choose_inference([Inference(), *candidates("torch", device, "auto")], race)
    print(*describe(tried, chosen, len(probe), "probability"), sep="\n")
    print(f"the trial took {time.perf_counter() - started:.1f} s\n")
    yield f"ours, auto: {chosen}", chosen
    for engine in ENGINES[1:]:
        for inference in candidates(engine, device, "auto"):
            yield f"ours, {inference}", inference


def one_pass(ready: Sequence[Ready], read: Callable, num_images: int, size: int, device: torch.device) -> None:
    views = make_views(VIEW, size)
    look_at_all([Look(model, VIEW, views) for model in ready], read(), num_images, device)


@torch.inference_mode()
def passes_alone(
    ready: Sequence[Ready], probe: torch.Tensor, inference: Inference, num_passes: int, device: torch.device
) -> None:
    """So many passes of a batch through each model: nothing is read, turned or merged."""
    where = device_of(inference.engine, device)
    images = probe.to(where)
    for model in ready:
        for _ in range(num_passes):
            model.forward(images)
    wait_for(where)


# What they work on


def make_model(backbone: str, size: int, fold: int) -> nn.Module:
    torch.manual_seed(fold)
    model = build_model(backbone, NUM_CLASSES, size).eval()
    nn.init.normal_(model.head.weight, std=0.1)
    return model


def draw_photos(folder: Path, count: int) -> list[Path]:
    generator, paths = np.random.default_rng(0), []
    for number in range(count):
        image = np.full((375, 500, 3), 128.0)
        for cells in (4, 16, 64, 250):
            noise = generator.normal(0, 30, (cells * 3 // 4, cells, 3))
            image += cv2.resize(noise, (500, 375), interpolation=cv2.INTER_CUBIC)
        paths.append(folder / f"{number}.jpg")
        cv2.imwrite(str(paths[-1]), image.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 92])
    return paths


def batches_of(paths: Sequence[Path], size: int, batch_size: int, workers: int, device: torch.device) -> Iterator:
    images = Images(paths, np.zeros((len(paths), 0)), eval_transform(size), size)
    return read_batches(make_loader(images, EpochOrder(len(paths), batch_size, False), workers, device))


# What is printed


def report(ways: dict, limits: dict, num_images: int, rounds: int, out: str) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in (*ways, *(f"limit of {name}" for name in limits))}
    for _ in range(rounds):
        for name, run in ((name, run) for name, (_, run) in ways.items()):
            seconds[name].append(timed(run))
            if name in limits:
                seconds[f"limit of {name}"].append(timed(limits[name]))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = next(iter(ways))
    print("| way | images/s | usual / it | share of its forward passes alone | made once, s |\n|---|---|---|---|---|")
    rows = []
    for name, (prepared, _) in ways.items():
        limit = medians.get(f"limit of {name}")
        row = {
            "way": name,
            "images_per_second": num_images / medians[name],
            "ratio": medians[first] / medians[name],
            "of_limit": limit / medians[name] if limit else None,
            "prepared_seconds": prepared,
            "seconds": seconds[name],
        }
        rows.append(row)
        share = f"{row['of_limit']:.2f}" if limit else ""
        print(f"| {name} | {row['images_per_second']:.1f} | {row['ratio']:.2f} | {share} | {prepared:.1f} |")
    print(f"\n{rounds} rounds; at the end: {load()}")
    if out:
        Path(out).write_text(json.dumps({"rows": rows, "torch": torch.__version__, "load": os.getloadavg()}, indent=1))


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18", help="default: resnet18")
    parser.add_argument("--size", type=int, default=128, help="pixels (default: 128)")
    parser.add_argument("--batch", type=int, default=64, help="images (default: 64)")
    parser.add_argument("--images", type=int, default=256, help="photos (default: 256)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--workers", type=int, default=2, help="loader processes (default: 2)")
    parser.add_argument("--json", default="", help="a file for the figures")
    given = parser.parse_args()
    main(given.backbone, given.size, given.batch, given.images, given.rounds, given.workers, given.json)
