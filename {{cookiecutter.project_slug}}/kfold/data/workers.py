"""workers=auto: who gets the batches ready, by a measurement at the start. The batches are the same whoever does.

This thread, where there is little to do and no GPU waits; else threads or loader processes, whichever are faster on
these very images. Threads need no copies and no start; they share Python's lock, which processes do not.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch

from kfold.data.augment import draws_globally
from kfold.data.loader import (
    MOST_THREADS,
    EpochOrder,
    Images,
    Key,
    free_shared_memory,
    hear_of_dead_workers_here,
    is_dead_worker,
    make_loader,
    shared_bytes,
)
from kfold.data.scan import num_cores

MOST_PROCESSES = 8
LITTLE = 2.0  # seconds an epoch takes this thread, below which measuring takes longer than it can save
ROUNDS = 4  # batches of each worker that are timed
PATIENCE = 4.0  # seconds that a kind is timed, at most
MARGIN = 1.1  # how many times faster than threads others must be: processes take memory, this thread cannot work ahead


class Keys:
    """The first batches of an order, as often as it takes, for a loader that is measured."""

    def __init__(self, order: EpochOrder, count: int):
        self.order, self.count, self.batch_size = order, count, order.batch_size

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Sequence[Key]]:
        yield from islice((keys for _ in range(self.count) for keys in self.order), self.count)


def workers_for(
    images: Images,
    order: EpochOrder,
    wish: int | str,
    device: torch.device,
    check: Callable[[], object] = lambda: None,
) -> int | str:
    """What is wished for; of auto the fastest: threads, or a number of loader processes (0: this thread).

    Prints one line where it measured. check: raises when it is time to stop.
    """
    if wish != "auto":
        return wish
    cores, has_threads = num_cores(), not draws_globally(images.transform)
    if cores == 1 or not len(order):
        return 0
    here = time_here(images, order)
    if here * len(order) < LITTLE:
        return "threads" if has_threads and device.type == "cuda" else 0
    speeds: dict[int | str, float] = {0: images.num_own(order.batch_size) / here}
    num_processes = min(cores, MOST_PROCESSES)
    kinds: list[int | str] = ["threads"] * has_threads
    if shared_bytes(images, order, num_processes) < free_shared_memory():
        kinds.append(num_processes)
    for kind in kinds:
        speeds[kind] = measure(images, order, kind, device, check)
    favoured = {kind: speed * (MARGIN if kind == "threads" else 1) for kind, speed in speeds.items()}
    chosen = max(favoured, key=favoured.get)
    table = ", ".join(f"{name_of(kind)} {speed:.0f}" for kind, speed in speeds.items())
    print(f"  workers={chosen}: images/s ready without a step: {table}")
    return chosen


def time_here(images: Images, order: EpochOrder) -> float:
    """Seconds a batch takes this thread; the first, which reads from a cold disk, does not count."""
    batches = iter(Keys(order, 2))
    images.__getitems__(next(batches))
    started = time.perf_counter()
    images.__getitems__(next(batches))
    return time.perf_counter() - started


def measure(
    images: Images, order: EpochOrder, kind: int | str, device: torch.device, check: Callable[[], object]
) -> float:
    """Images a second, once every worker has done a batch; 0 where a process is killed."""
    num_workers = min(num_cores(), MOST_THREADS) if kind == "threads" else kind
    loader, num_images = make_loader(images, Keys(order, (1 + ROUNDS) * num_workers), kind, device), 0
    try:
        for number, batch in enumerate(loader, 1):
            check()
            if number <= num_workers:
                hear_of_dead_workers_here()
                started = time.perf_counter()
                continue
            num_images += len(batch.images)
            if time.perf_counter() - started > PATIENCE:
                break
    except RuntimeError as error:
        if not is_dead_worker(error):
            raise
        return 0.0
    return num_images / (time.perf_counter() - started)


def name_of(kind: int | str) -> str:
    return {0: "this thread", "threads": "threads"}.get(kind, f"{kind} processes")
