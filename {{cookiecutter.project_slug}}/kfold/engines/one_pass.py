"""One pass over images for all that look at them: each is decoded once, for every view of every model."""

import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kfold.data.loader import Batch
from kfold.engines.ready import Ready
from kfold.ensemble.tta import View
from kfold.model.weights import normalize
from kfold.training.precision import Precision
from kfold.training.predicting import forward_views, refuse_unreadable, same, to_target_units

AS_IT_IS = Precision(torch.float32, "a ready model chooses its own")


@dataclass(frozen=True)
class Look:
    """A model and the views that it is shown; looks with the same `view` share the views."""

    model: Ready
    view: str
    views: Sequence[View]


@dataclass(frozen=True)
class Seen:
    """values: (N, C) float32, the mean over the views; seconds: reading, which all looks share, and the look's own."""

    values: np.ndarray
    seconds: float


@torch.inference_mode()
def look_at_all(
    looks: Sequence[Look],
    batches: Iterable[Batch],
    num_rows: int,
    device: torch.device,
    on_problem: Callable[[int, str], None] | None = None,
    timed: bool = False,
) -> list[Seen]:
    """What each look predicts for the data set's rows; of the images, one batch is held at a time.

    A file that cannot be read is passed to `on_problem(row, reason)`, or raises UserError where that is None. timed:
    wait for the device after each model, so that the seconds are right.
    """
    values = [np.empty((num_rows, len(look.model.card.names)), np.float32) for look in looks]
    seconds, started = np.zeros(len(looks)), time.perf_counter()
    for batch in batches:
        if on_problem is None:
            refuse_unreadable(batch)
        for row, reason in batch.problems:
            on_problem(row, reason)
        logits = look_at(batch.images.to(device, non_blocking=True), looks, device, seconds if timed else None)
        for look, of_views, of_rows in zip(looks, logits, values, strict=True):
            predictions = to_target_units(torch.stack(of_views).cpu(), look.model.card)  # (V, B, C)
            of_rows[batch.indices.numpy()] = predictions.numpy().mean(axis=0)
    reading = time.perf_counter() - started - seconds.sum()
    return [Seen(of_rows, reading + own) for of_rows, own in zip(values, seconds.tolist(), strict=True)]


def look_at(
    images: torch.Tensor, looks: Sequence[Look], device: torch.device, seconds: np.ndarray | None
) -> list[list[torch.Tensor]]:
    """For each look the logits (B, C) of each of its views. images: (B, H, W, 3) uint8 on the device.

    One view of the batch is held at a time: eight of 64 images of 224 px would be 300 MB.
    """
    logits: list[list[torch.Tensor]] = [[] for _ in looks]
    places = range(len(looks))
    for statistics, of_statistics in grouped(places, lambda place: looks[place].model.statistics).items():
        normalized = normalize(images, *statistics)
        for of_view in grouped(of_statistics, lambda place: looks[place].view).values():
            for view in looks[of_view[0]].views:
                seen = view(normalized)
                for place in of_view:
                    started = time.perf_counter()
                    logits[place].append(forward_views(looks[place].model.forward, seen, [same], device, AS_IT_IS)[0])
                    if seconds is not None:
                        wait_for(device)
                        seconds[place] += time.perf_counter() - started
    return logits


def grouped(places: Iterable[int], key: Callable[[int], Hashable]) -> dict[Hashable, list[int]]:
    """Places with the same key, in order of their first one."""
    groups: dict[Hashable, list[int]] = {}
    for place in places:
        groups.setdefault(key(place), []).append(place)
    return groups


def wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
