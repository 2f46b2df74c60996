"""--profile: where the time of a training step goes, how long a run takes, and how large a batch may be."""

from collections.abc import Mapping

import pandas as pd
import torch

from kfold.data.loader import Batch, EpochOrder
from kfold.errors import UserError
from kfold.forecast import VALID_COST
from kfold.free_memory import free_memory
from kfold.rehearsal.assembled import AssembledFold, ChosenFold, assemble, endless_batches
from kfold.report.rehearsal_pictures import profile_picture
from kfold.report.spreadsheet import to_spreadsheet
from kfold.seals import write_sealed
from kfold.setup.batches import largest_size
from kfold.stopping import describe_seconds
from kfold.training.profiling import (
    PARTS,
    Stopwatch,
    bytes_kept_for_backward,
    largest_fitting,
    time_parts,
    time_steps,
    watched,
)
from kfold.training.step import NotFinite, train_step

WARM_UP_STEPS = 3  # not timed: a device chooses kernels, loader processes start
TIMED_STEPS, TIMED_SECONDS = 20, 30.0
SHARE_OF_FREE = 0.5  # of the memory without a GPU: other programs, and what comes and goes within a step, need some too


def profile(chosen: ChosenFold) -> None:
    """Print where the time goes, how long the whole run will take, and the largest batch that fits into memory."""
    # Sizes that grow over equal stretches of a run cost as much as the same sizes drawn for each batch.
    sizes = {"multi_scale": chosen.config.progressive or chosen.config.multi_scale, "progressive": ()}
    config = chosen.config.model_copy(update=sizes)
    fold = assemble(chosen, config, WARM_UP_STEPS + 2 * TIMED_STEPS)
    order: EpochOrder = fold.batches.batch_sampler
    num_real = len(fold.batches.dataset) * fold.rows.num_real / len(fold.rows.train_paths)
    images_a_row = len(order.rows_of(fold.epoch)) / num_real  # pseudo-labelled ones come on top
    batches = endless_batches(fold.batches, fold.epoch, chosen.stop)
    number = 0

    def step(batch: Batch) -> None:
        nonlocal number
        number += 1
        fold.step(batch, fold.moment(number, fold.recipe.peak_lr))

    where = f"{fold.device.type}, {str(fold.precision.dtype)[6:]}"
    title = f"{chosen.name}: {config.backbone} at {config.image_size} px, batches of {config.batch_size}, {where}"
    print(title)
    for _ in range(WARM_UP_STEPS):
        batch = next(batches)
        step(batch)
    seconds, num_images = time_steps(batches, step, TIMED_STEPS, TIMED_SECONDS, fold.device)
    speed = num_images / seconds
    stopwatch = Stopwatch(fold.device)
    with watched(stopwatch, fold.training.model, fold.training.optimizer):
        num_steps = time_parts(batches, step, TIMED_STEPS, TIMED_SECONDS, stopwatch)
    parts = {part: seconds / num_steps for part, seconds in stopwatch.seconds.items()}
    show_parts(parts, speed)
    whole_run = describe_run(chosen.num_rows, chosen.folds.num_folds, config.epochs, images_a_row, speed)
    print(f"  the whole run: {whole_run}")
    path_of = chosen.workspace.profile_path
    write_sealed(path_of(chosen.run, "csv"), to_spreadsheet(parts_table(parts)))
    write_sealed(path_of(chosen.run, "png"), profile_picture(parts, f"{title}\n{speed:.0f} images/s; {whole_run}"))
    print(f"  the picture: {path_of(chosen.run, 'png')}, and .csv")
    most = max(2, round(chosen.num_rows * (1 - 1 / chosen.folds.num_folds)))
    print(f"  {describe_largest_batch(fold, black(batch, largest_size(config)), most)}")


def show_parts(parts: Mapping[str, float], speed: float) -> None:
    total = sum(parts.values())
    for part, seconds in parts.items():
        print(f"    {part:<10} {1000 * seconds:9.1f} ms  {seconds / total:4.0%}")
    print(f"    {'a step':<10} {1000 * total:9.1f} ms, {speed:.0f} images/s when nothing is measured in between")
    if parts["data"] > 0.2 * total:
        print("  it waits for images: a cache (made when training starts, unless cache=off), or workers=auto, may help")


def parts_table(parts: Mapping[str, float]) -> pd.DataFrame:
    total = sum(parts.values())
    return pd.DataFrame(
        {
            "part": list(PARTS),
            "seconds_per_step": [parts[part] for part in PARTS],
            "percent_of_step": [100 * parts[part] / total for part in PARTS],
        }
    )


def describe_run(num_rows: int, num_folds: int, epochs: int, images_a_row: float, speed: float) -> str:
    """How long all folds take on all rows. images_a_row: trained on in an epoch for each training row."""
    trained = num_rows * (num_folds - 1) * images_a_row  # over the folds
    seconds = epochs * (trained + VALID_COST * num_rows) / speed
    return f"{describe_seconds(seconds)} for {num_folds} folds of {epochs} epochs on {num_rows:,} rows"


def black(batch: Batch, size: int) -> Batch:
    """The batch with black images of size x size pixels: they take as much memory as any."""
    return batch._replace(images=batch.images.new_zeros((len(batch.images), size, size, 3)))


def describe_largest_batch(fold: AssembledFold, batch: Batch, most: int) -> str:
    """The largest batch that needs no splitting. On a GPU it is tried; without, memory is measured and divided."""
    fold.training.accumulate = 1  # a batch that needs no splitting
    if fold.device.type == "cuda":
        largest = largest_fitting(lambda size: fits(fold, batch, size), most)
        end = "as many as a fold has rows" if largest == most else "found by trying"
        return f"largest batch that fits into the GPU's memory: {largest} images ({end})"
    kept = bytes_kept_for_backward(lambda: try_step(fold, batch), fold.training.model) / len(batch.images)
    free = free_memory()
    if free == float("inf"):
        return f"memory: {kept / 1e6:.1f} MB an image (measured); what is free, this system does not tell"
    largest = min(most, int(SHARE_OF_FREE * free / kept))
    return (
        f"largest batch, estimated: {largest} images"
        + (" (as many as a fold has rows)" if largest == most else "")
        + f": each keeps {kept / 1e6:.1f} MB for the backward pass (measured), and half of the {free / 1e9:.1f} GB "
        f"that are free may go there"
    )


def fits(fold: AssembledFold, batch: Batch, size: int) -> bool:
    """Whether a step on that many images works: smaller ones did, so that any failure speaks of the size."""
    rows = torch.arange(size) % len(batch.images)
    larger = Batch(batch.images[rows], batch.targets[rows], batch.weights[rows], batch.indices[rows], [])
    try:
        try_step(fold, larger)
        works = True
    except (RuntimeError, UserError):
        works = False
    fold.training.optimizer.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    return works


def try_step(fold: AssembledFold, batch: Batch) -> None:
    """A step at the rate 0 that is never split; one whose loss is not finite takes as much memory."""
    try:
        moment = fold.moment(0, 0.0)
        train_step(fold.training, fold.card, fold.objective, batch, moment, fold.device, fold.precision)
    except NotFinite:
        pass
