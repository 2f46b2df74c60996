"""--profile: where the time of a training step goes, how long a run takes, and how large a batch may be."""

from collections.abc import Mapping

import pandas as pd
import torch

from kfold.data.loader import Batch, EpochOrder
from kfold.errors import UserError
from kfold.forecast import VALID_COST
from kfold.free_memory import free_memory
from kfold.rehearsal.cast import Cast, Scene, assemble, endless_batches
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


def profile(scene: Scene) -> None:
    """Print where the time goes, how long the whole run will take, and the largest batch that fits into memory."""
    # Sizes that grow over equal stretches of a run cost as much as the same sizes drawn for each batch.
    sizes = {"multi_scale": scene.config.progressive or scene.config.multi_scale, "progressive": ()}
    config = scene.config.model_copy(update=sizes)
    cast = assemble(scene, config, WARM_UP_STEPS + 2 * TIMED_STEPS)
    order: EpochOrder = cast.batches.batch_sampler
    num_real = len(cast.batches.dataset) * cast.rows.num_real / len(cast.rows.train_paths)
    images_a_row = len(order.rows_of(cast.epoch)) / num_real  # pseudo-labelled ones come on top
    batches = endless_batches(cast.batches, cast.epoch, scene.stop)
    number = 0

    def step(batch: Batch) -> None:
        nonlocal number
        number += 1
        cast.step(batch, cast.moment(number, cast.recipe.peak_lr))

    where = f"{cast.device.type}, {str(cast.precision.dtype)[6:]}"
    title = f"{scene.name}: {config.backbone} at {config.image_size} px, batches of {config.batch_size}, {where}"
    print(title)
    for _ in range(WARM_UP_STEPS):
        batch = next(batches)
        step(batch)
    seconds, num_images = time_steps(batches, step, TIMED_STEPS, TIMED_SECONDS, cast.device)
    speed = num_images / seconds
    stopwatch = Stopwatch(cast.device)
    with watched(stopwatch, cast.training.model, cast.training.optimizer):
        num_steps = time_parts(batches, step, TIMED_STEPS, TIMED_SECONDS, stopwatch)
    parts = {part: seconds / num_steps for part, seconds in stopwatch.seconds.items()}
    show_parts(parts, speed, config.num_workers)
    whole_run = describe_run(scene.num_rows, scene.folds.num_folds, config.epochs, images_a_row, speed)
    print(f"  the whole run: {whole_run}")
    path_of = scene.workspace.profile_path
    write_sealed(path_of(scene.run, "csv"), to_spreadsheet(parts_table(parts)))
    write_sealed(path_of(scene.run, "png"), profile_picture(parts, f"{title}\n{speed:.0f} images/s; {whole_run}"))
    print(f"  the picture: {path_of(scene.run, 'png')}, and .csv")
    most = max(2, round(scene.num_rows * (1 - 1 / scene.folds.num_folds)))
    print(f"  {describe_largest_batch(cast, black(batch, largest_size(config)), most)}")


def show_parts(parts: Mapping[str, float], speed: float, num_workers: int) -> None:
    total = sum(parts.values())
    for part, seconds in parts.items():
        print(f"    {part:<10} {1000 * seconds:9.1f} ms  {seconds / total:4.0%}")
    print(f"    {'a step':<10} {1000 * total:9.1f} ms, {speed:.0f} images/s when nothing is measured in between")
    if parts["data"] > 0.2 * total:
        print(
            f"  it waits for images: try more loader processes (num_workers={num_workers} now), or smaller image files"
        )


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


def describe_largest_batch(cast: Cast, batch: Batch, most: int) -> str:
    """The largest batch that needs no splitting. On a GPU it is tried; without, memory is measured and divided."""
    cast.training.accumulate = 1  # a batch that needs no splitting
    if cast.device.type == "cuda":
        largest = largest_fitting(lambda size: fits(cast, batch, size), most)
        end = "as many as a fold has rows" if largest == most else "found by trying"
        return f"largest batch that fits into the GPU's memory: {largest} images ({end})"
    kept = bytes_kept_for_backward(lambda: try_step(cast, batch), cast.training.model) / len(batch.images)
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


def fits(cast: Cast, batch: Batch, size: int) -> bool:
    """Whether a step on that many images works: smaller ones did, so that any failure speaks of the size."""
    rows = torch.arange(size) % len(batch.images)
    larger = Batch(batch.images[rows], batch.targets[rows], batch.weights[rows], batch.indices[rows], [])
    try:
        try_step(cast, larger)
        works = True
    except (RuntimeError, UserError):
        works = False
    cast.training.optimizer.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    return works


def try_step(cast: Cast, batch: Batch) -> None:
    """A step at the rate 0 that is never split; one whose loss is not finite takes as much memory."""
    try:
        moment = cast.moment(0, 0.0)
        train_step(cast.training, cast.card, cast.objective, batch, moment, cast.device, cast.precision)
    except NotFinite:
        pass
