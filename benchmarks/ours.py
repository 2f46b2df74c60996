"""Our side of the benchmarks that take turns (turns.py).

Command  python benchmarks/ours.py train PROJECT RUN key=value ...  an epoch of fold 0 for each line on stdin
         python benchmarks/ours.py load FOLDER SIZE BATCH cached    an epoch of batches, as a training gets them
         python benchmarks/ours.py first PROJECT key=value ...      ends with the first batch that train.py trained on

`train` runs train.py's own main in the project and holds its epochs until their turn. An answer holds the log's images
a second and, as limit, those of the same step, computed in the same way by the same process, on noise that lies on the
device.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from machine import wait
from turns import MARK

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def next_turn() -> None:
    if not sys.stdin.readline():
        raise SystemExit  # there are no more


def answer(**figures: object) -> None:
    print(f"{MARK}{json.dumps(figures)}", flush=True)


def train(project: Path, run: str, words: list[str]) -> None:
    sys.path.insert(0, str(project))
    import train as stage  # the project's train.py

    fit = stage.fit

    def fit_in_turns(training, card, objective, train_batches, *others) -> Iterator:
        next_turn()
        for result in fit(training, card, objective, train_batches, *others):
            yield result  # train.py saves the state now
            _, _, _, device, precision, *_ = others
            limit = limit_of(training, card, objective, train_batches, device, precision)
            answer(images_per_second=result.images_per_second, limit=limit, score=result.score)
            next_turn()

    stage.fit = fit_in_turns
    stage.main("0", overrides=words, name=run, overwrite=True, root=project)


def limit_of(training, card, objective, train_batches, device, precision) -> float:
    """Images a second of as many steps as an epoch has, on one batch of noise that lies on the device.

    Weights and optimizer go on from there, which no time depends on; what the epoch counts is put back.
    """
    from kfold.data.loader import Batch
    from kfold.training.step import Moment, take_step

    count, images = train_batches.batch_sampler.batch_size, train_batches.dataset
    noise = np.random.default_rng(0).integers(0, 256, (count, images.size, images.size, 3), np.uint8)
    pixels, targets = torch.from_numpy(noise).to(device), images.targets[:count].to(device)
    batch = Batch(pixels, targets, torch.ones_like(targets), torch.arange(count), [])
    before, steps = dict(vars(training)), len(train_batches)
    training.model.train()
    take_step(training, card, objective, batch, Moment(0, 0, 0.0, 1e-5, 0), device, precision)
    wait(device)
    started = time.perf_counter()
    for step in range(steps):
        take_step(training, card, objective, batch, Moment(step, 0, 0.0, 1e-5, step), device, precision)
    wait(device)
    speed = steps * count / (time.perf_counter() - started)
    vars(training).update(before)
    return speed


def load(folder: Path, size: int, batch_size: int, cached: bool) -> None:
    from project import PACKAGE

    sys.path.insert(0, str(PACKAGE))
    from kfold.data.augment import Augmentation, least_share, train_transform
    from kfold.data.cache import Pixels
    from kfold.data.cache_build import fill
    from kfold.data.loader import EpochOrder, Images, make_loader, read_batches
    from kfold.data.reduce import Rule, side_for
    from kfold.data.workers import workers_for
    from kfold.model.weights import normalize
    from kfold.training.freed_memory import keep_freed_memory
    from kfold.training.precision import choose_device

    keep_freed_memory(True)  # as `speed: auto` has found best for every network so far
    device, augmentation = choose_device(), Augmentation(hflip=True)
    paths = sorted(folder.glob("*.jpg"))
    rule = Rule(side_for(size, least_share(augmentation), size), "raw")
    pixels = Pixels(rule)
    if cached:
        cache = folder / rule.name
        pixels = Pixels(rule, cache, fill(cache, rule, [str(path) for path in paths], "cache", lambda: None))
    images = Images(
        paths, np.zeros((len(paths), 1)), train_transform(augmentation, size), size, read=pixels.reader(paths)
    )
    order = EpochOrder(len(paths), batch_size, True)
    loader = make_loader(images, order, workers_for(images, order, "auto", device), device)

    def epoch_speed(number: int, is_normalized: bool) -> float:
        started, num_images = time.perf_counter(), 0
        for batch in read_batches(loader, number):
            ready = batch.images.to(device, non_blocking=True)
            num_images += len(normalize(ready, MEAN, STD) if is_normalized else ready)
        wait(device)
        return num_images / (time.perf_counter() - started)

    number = 0
    while True:
        next_turn()
        answer(images_per_second=epoch_speed(number, True), uint8=epoch_speed(number + 1, False))
        number += 2


def first(project: Path, words: list[str]) -> None:
    sys.path.insert(0, str(project))
    import train as stage
    from kfold.training import loop
    from kfold.training.step import take_step

    def only_step(*arguments) -> None:
        take_step(*arguments)
        wait(arguments[5])
        answer(steps=1)
        os._exit(0)  # nothing is to be saved

    loop.take_step = only_step
    stage.main("0", overrides=words, name="first", overwrite=True, root=project)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["train", "load", "first"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("words", nargs="*")
    given = parser.parse_args()
    if given.work == "train":
        train(given.folder, given.words[0], given.words[1:])
    elif given.work == "load":
        load(given.folder, int(given.words[0]), int(given.words[1]), given.words[2:] == ["cached"])
    else:
        first(given.folder, given.words)
