"""Batches of uint8 images in an order and with an augmentation that depend on (seed, fold, epoch, sample) alone."""

import os
import re
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import albumentations as A
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from kfold.data.cache import FileReader
from kfold.data.exact import apply_into
from kfold.data.images import BadImage
from kfold.data.scan import num_cores
from kfold.seeds import seed_of

SHARED_MEMORY = "/dev/shm"
PREFETCHED = 2  # batches that PyTorch keeps ready for each loader process; and we for each thread
MOST_THREADS = 8  # more get in each other's way at Python's lock


Key = tuple[int, int] | tuple[int, int, int]  # epoch (from 0), row, and the size of the batch where it varies


class Batch(NamedTuple):
    """Of several processes that share a batch each has its own images, but the targets and weights of all."""

    images: torch.Tensor  # (B, size, size, 3) uint8
    targets: torch.Tensor  # (B, C) float32; C = 0 where there are none
    weights: torch.Tensor  # (B, C) float32: of each target in the loss
    indices: torch.Tensor  # (B,) int64: rows of the data set
    problems: list[tuple[int, str]]  # (row, reason) of files that cannot be read; their image is black
    own: slice = slice(None)  # of these B rows, those whose images are here


class Images(Dataset):
    """Image files with targets (N, C) and their weights (N, C; default 1). A key is (epoch, row) or (epoch, row, size):
    the epoch varies the augmentation.

    size: of an image, in pixels; the largest where the keys of a batch carry one of their own. transform_of:
    (epoch, size) -> the transform to use; by default `transform`, always. read: row -> pixels, such as a cache's
    reader; by default the files are decoded. share: (this process, of how many) that share each batch.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        targets: np.ndarray,
        transform: A.Compose,
        size: int,
        seed: int = 0,
        fold: int = 0,
        weights: np.ndarray | None = None,
        transform_of: Callable[[int, int], A.Compose] | None = None,
        read: Callable[[int], np.ndarray] | None = None,
        share: tuple[int, int] = (0, 1),
    ):
        self.read = read or FileReader(paths)
        self.paths = np.array([str(path) for path in paths])  # no list: see FileReader
        self.targets = torch.from_numpy(np.ascontiguousarray(targets, np.float32))
        self.weights = torch.ones_like(self.targets) if weights is None else torch.from_numpy(weights)
        self.transform, self.size, self.seed, self.fold = transform, size, seed, fold
        self.transform_of, self.share = transform_of, share

    def num_own(self, num_rows: int) -> int:
        """Of a batch of so many rows, the most that a process reads."""
        return -(-num_rows // self.share[1])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        size = keys[0][2] if len(keys[0]) == 3 else self.size
        own = rows_of_share(len(keys), *self.share)
        images = np.empty((own.stop - own.start, size, size, 3), np.uint8)
        problems = []
        for position, (epoch, row, *_) in enumerate(keys[own]):
            try:
                image = self.read(row)
            except BadImage as problem:
                problems.append((row, f"{self.paths[row]}: {problem}"))
                images[position] = 0
                continue
            transform = self.transform_of(epoch, size) if self.transform_of else self.transform
            apply_into(images[position], transform, image, seed_of(self.seed, self.fold, epoch, row))
        indices = torch.tensor([key[1] for key in keys])
        return Batch(torch.from_numpy(images), self.targets[indices], self.weights[indices], indices, problems, own)


def rows_of_share(num_rows: int, process: int, num_processes: int) -> slice:
    """The rows of a batch that one of the processes (from 0) works on; shares differ by one row at most."""
    return slice(num_rows * process // num_processes, num_rows * (process + 1) // num_processes)


class EpochOrder(Sampler):
    """Batches of keys. Set `epoch` (and `start`, the first batch) before iterating.

    Shuffled orders leave out the incomplete last batch, other rows each epoch; BatchNorm cannot train on a single row.
    rows_of: the rows (n,) of an epoch; by default all. size_of: (epoch, batch) -> the size (pixels) that the batch's
    keys carry; by default they carry none.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        fold: int = 0,
        rows_of: Callable[[int], np.ndarray] | None = None,
        size_of: Callable[[int, int], int] | None = None,
    ):
        self.batch_size, self.shuffle, self.seed, self.fold = batch_size, shuffle, seed, fold
        self.rows_of, self.size_of = rows_of or (lambda epoch: np.arange(num_rows)), size_of
        self.num_rows_of = cache(lambda epoch: len(self.rows_of(epoch)))  # asked for often, and drawn anew each time
        self.epoch = self.start = 0

    def num_batches(self, epoch: int) -> int:
        num_rows = self.num_rows_of(epoch)
        return max(1, num_rows // self.batch_size) if self.shuffle else -(-num_rows // self.batch_size)

    def steps_before(self, epoch: int, batch: int = 0) -> int:
        """How many batches come before this one, from the first epoch on."""
        return sum(self.num_batches(earlier) for earlier in range(epoch)) + batch

    def __len__(self) -> int:
        return self.num_batches(self.epoch)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = self.epoch, self.rows_of(self.epoch)
        if self.shuffle:
            order = np.random.default_rng(seed_of(self.seed, self.fold, epoch, "order")).permutation(order)
        for batch in range(self.start, self.num_batches(epoch)):
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            size = (self.size_of(epoch, batch),) if self.size_of else ()
            yield [(epoch, int(row), *size) for row in rows]


def mixed_rows(
    num_real: int, num_pseudo: int, ratio: float, num_mixed_epochs: int, seed: int, fold: int
) -> Callable[[int], np.ndarray]:
    """Rows of an epoch: all real ones (0 to num_real - 1), then `ratio` pseudo ones for each, where there are as many.

    They are drawn anew each epoch. From epoch `num_mixed_epochs` on (counted from 0): real rows only, the cool-down.
    """
    count = min(num_pseudo, round(ratio * num_real))

    def rows_of(epoch: int) -> np.ndarray:
        real = np.arange(num_real)
        if epoch >= num_mixed_epochs:
            return real
        drawn = np.random.default_rng(seed_of(seed, fold, epoch, "pseudo")).permutation(num_pseudo)[:count]
        return np.concatenate([real, num_real + np.sort(drawn)])

    return rows_of


def as_is(batch: Batch) -> Batch:
    return batch


def make_loader(
    images: Images, order: EpochOrder, workers: int | str, device: torch.device
) -> "DataLoader | ThreadLoader":
    """Batches of `images` in `order`. Iterating draws no global randomness.

    workers: threads, or so many loader processes; 0 reads in this thread. Loader processes hand batches
    over in shared memory: where that is too small, this thread reads, and it is said.
    """
    if workers == "threads":
        return ThreadLoader(images, order, min(num_cores(), MOST_THREADS), device.type == "cuda")
    if (needed := shared_bytes(images, order, workers)) > (free := free_shared_memory()):
        print(
            f"shared memory ({SHARED_MEMORY}) has {free / 1e6:.0f} MB free, {workers} loader processes need "
            f"{needed / 1e6:.0f} MB: workers=0 (docker run --shm-size=1g gives more)",
            file=sys.stderr,
        )
        workers = 0
    return DataLoader(
        images,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=as_is,
        persistent_workers=workers > 0,
        # Children of a fork server, Python 3.14's default, would not notice that this process was killed.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),
        worker_init_fn=leave_interrupt_to_parent,
    )


def shared_bytes(images: Images, order: EpochOrder, num_processes: int) -> int:
    """What so many loader processes keep in shared memory."""
    return num_processes * PREFETCHED * images.num_own(order.batch_size) * 3 * images.size**2


class ThreadLoader:
    """Batches that threads of this process get ready. Reading and OpenCV let go of Python's lock."""

    num_workers = 0  # processes

    def __init__(self, images: Images, order: EpochOrder, num_threads: int, pin_memory: bool):
        self.dataset, self.batch_sampler = images, order
        self.num_threads, self.pin_memory = num_threads, pin_memory

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        coming: deque[Future] = deque()
        with ThreadPoolExecutor(self.num_threads, "loader") as pool:
            try:
                for keys in self.batch_sampler:
                    coming.append(pool.submit(self.get, keys))
                    if len(coming) > PREFETCHED * self.num_threads:
                        yield coming.popleft().result()
                while coming:
                    yield coming.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)  # whoever stops in the middle does not wait for what is ahead

    def get(self, keys: Sequence[Key]) -> Batch:
        batch = self.dataset.__getitems__(keys)
        if not self.pin_memory:
            return batch
        return Batch(*(tensor.pin_memory() for tensor in batch[:4]), *batch[4:])


def free_shared_memory() -> float:
    """Bytes; infinite where the system has no such folder."""
    return float(shutil.disk_usage(SHARED_MEMORY).free) if os.path.isdir(SHARED_MEMORY) else float("inf")


def leave_interrupt_to_parent(_: int) -> None:
    """Ctrl-C reaches loader processes, too: the parent decides when they end (PyTorch ends them with SIGTERM)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def hear_of_dead_workers_here() -> None:
    """PyTorch would raise at any line of this process, in the middle of a step or a save, when a loader process dies.

    Without its handler the next batch that is asked for raises.
    """
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def is_dead_worker(error: RuntimeError) -> bool:
    return re.match(r"DataLoader worker \(pid", str(error)) is not None


def read_batches(loader: DataLoader, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
    """The batches of an epoch from number `start` on. Where a loader process is killed, this process goes on alone."""
    order: EpochOrder = loader.batch_sampler
    order.epoch, order.start = epoch, start
    try:
        batches = iter(loader)
        hear_of_dead_workers_here()
        for batch in batches:
            start += 1
            yield batch
        return
    except RuntimeError as error:
        if not is_dead_worker(error):
            raise
    print("a loader process was killed (by a signal, or memory is full): workers=0 from here on", file=sys.stderr)
    loader.num_workers = 0
    yield from read_batches(loader, epoch, start)
