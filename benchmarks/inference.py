"""Five folds x all views over photos: the usual notebook loop, our one pass in each way, and the forward passes alone.

Command  python benchmarks/inference.py       or --backbone efficientnet_b0 --count 64 --rounds 1 --views flips

One process. A round runs every way once, one after the other, so that a slow moment of the machine falls on all. The
plain code reads and normalises every photograph anew for each view of each fold, in PyTorch's loader, and computes in
float32; the limit of a way is as many forward passes as it takes, on one batch that lies on the device. What is done
once (conversion, compilation, folding) is among the facts.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from machine import device_name, load, num_workers
from photos import write_photos
from project import BUILD, PACKAGE
from rows import hand_over, make_row
from torch import nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(PACKAGE))

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

NUM_FOLDS, NUM_CLASSES, TOLERANCE = 5, 10, 0.01
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main(
    backbone: str, size: int, batch_size: int, width: int, height: int, count: int, view: str, rounds: int, workers: int
) -> list[dict]:
    """A row for each way to predict, with the plain code for a peer."""
    device, views = choose_device(), make_views(view, size)
    title = f"{NUM_FOLDS} folds x {len(views)} views, {width}x{height} to {size} px, {backbone}"
    print(
        f"{title}, {count} photos, batches of {batch_size}, {workers} loader processes, {device_name(device)}, "
        f"torch {torch.__version__}, {load()}\n"
    )
    card = ModelCard(
        backbone, size, "multiclass", tuple("abcdefghij"), MEAN, STD, (0.0,) * NUM_CLASSES, (1.0,) * NUM_CLASSES
    )
    models = [make_model(backbone, size, fold) for fold in range(NUM_FOLDS)]
    folder = BUILD / f"photos{width}-{count}"
    paths = [folder / name for name in write_photos(folder, count, width, height)["file"]]
    read = partial(batches_of, paths, size, batch_size, workers, device)
    probe = normalize(next(read()).images, MEAN, STD)
    ways, limits, prepared = {}, {}, {}
    for name, inference in ways_to_try(models, card, batch_size, probe, count * NUM_FOLDS * len(views)):
        started = time.perf_counter()
        try:
            ready = [make_ready(model, card, inference, device, batch_size, probe) for model in models]
            passes_alone(ready, probe, inference, 1, device)  # conversions and compilations are made here
        except UserError as error:
            print(f"{name}: left out: {error}")
            continue
        prepared[name] = time.perf_counter() - started
        ways[name] = partial(one_pass, ready, read, count, view, views, device_of(inference.engine, device))
        limits[name] = partial(passes_alone, ready, probe, inference, len(views) * -(-count // batch_size), device)
    usual = partial(notebook, models, paths, views, size, batch_size, workers)
    speeds = time_rounds({"plain code": usual, **ways}, limits, count, rounds)
    return [
        make_row(
            "3 inference", f"{title}, ours {name}", "images/s",
            {"ours": speeds[name], "plain code": speeds["plain code"]}, speeds[f"limit of {name}"],
            seconds_to_prepare=prepared[name], images=count, workers=workers,
        )
        for name in ways
    ]  # fmt: skip


# The ways


def notebook(
    models: Sequence[nn.Module],
    paths: Sequence[Path],
    views: Sequence[Callable],
    size: int,
    batch_size: int,
    workers: int,
) -> None:
    """For each fold, for each view: all images are read, normalised by the loader's processes, and predicted."""
    device = choose_device()
    for model in models:
        model.to(device)
        total = 0
        for view in views:
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
    yield "in plain float32", Inference()

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
    yield f"as chosen: {chosen}", chosen
    for engine in ENGINES[1:]:
        for inference in candidates(engine, device, "auto"):
            yield f"by {inference}", inference


def one_pass(
    ready: Sequence[Ready],
    read: Callable,
    num_images: int,
    view: str,
    views: Sequence[Callable],
    device: torch.device,
) -> None:
    look_at_all([Look(model, view, views) for model in ready], read(), num_images, device)


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


def batches_of(paths: Sequence[Path], size: int, batch_size: int, workers: int, device: torch.device) -> Iterator:
    images = Images(paths, np.zeros((len(paths), 0)), eval_transform(size), size)
    return read_batches(make_loader(images, EpochOrder(len(paths), batch_size, False), workers, device))


# Times


def time_rounds(
    ways: dict[str, Callable], limits: dict[str, Callable], num_images: int, rounds: int
) -> dict[str, list[float]]:
    """Images a second of each way, and of its limit, in each round."""
    speeds: dict[str, list[float]] = {name: [] for name in (*ways, *(f"limit of {name}" for name in limits))}
    for _ in range(rounds):
        for name, run in ways.items():
            speeds[name].append(num_images / timed(run))
            print(f"  {name}: {speeds[name][-1]:.1f} images/s", flush=True)
            if name in limits:
                speeds[f"limit of {name}"].append(num_images / timed(limits[name]))
    return speeds


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18", help="default: resnet18")
    parser.add_argument("--size", type=int, default=128, help="pixels (default: 128)")
    parser.add_argument("--batch", type=int, default=64, help="images (default: 64)")
    parser.add_argument("--width", type=int, default=500, help="pixels of the photographs (default: 500)")
    parser.add_argument("--height", type=int, default=375, help="default: 375")
    parser.add_argument("--count", type=int, default=128, help="photographs (default: 128)")
    parser.add_argument("--views", default="d4", help="default: d4")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--workers", type=int, default=num_workers(), help="loader processes (default: one a core)")
    parser.add_argument("--json", default="", help="a file for the rows")
    given = parser.parse_args()
    rows = main(
        given.backbone, given.size, given.batch, given.width, given.height, given.count, given.views, given.rounds,
        given.workers,
    )  # fmt: skip
    hand_over(rows, given.json)
