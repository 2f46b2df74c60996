"""Batches of uint8 images in an order and with an augmentation that depend on (seed, fold, epoch, sample) alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import albumentations as A
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from kfold.data.augment import apply
from kfold.data.images import BadImage, read_image
from kfold.seeds import seed_of


class Batch(NamedTuple):
    images: torch.Tensor  # (B, size, size, 3) uint8
    targets: torch.Tensor  # (B, C) float32; C = 0 where there are none
    indices: torch.Tensor  # (B,) int64: rows of the data set
    problems: list[tuple[int, str]]  # (row, reason) of files that cannot be read; their image is black


class Images(Dataset):
    """Image files with targets. A key is (epoch, row): the epoch varies the augmentation."""

    def __init__(
        self,
        paths: Sequence[Path],
        targets: np.ndarray,
        transform: A.Compose,
        size: int,
        seed: int = 0,
        fold: int = 0,
    ):
        # One array of text, not a list: reading list items in workers copies their memory pages (PyTorch issue 13246).
        self.paths = np.array([str(path) for path in paths])
        self.targets = torch.from_numpy(np.ascontiguousarray(targets, np.float32))
        self.transform, self.size, self.seed, self.fold = transform, size, seed, fold

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        images = np.zeros((len(keys), self.size, self.size, 3), np.uint8)
        problems = []
        for position, (epoch, row) in enumerate(keys):
            try:
                image = read_image(Path(self.paths[row]))
            except BadImage as problem:
                problems.append((row, f"{self.paths[row]}: {problem}"))
                continue
            images[position] = apply(self.transform, image, seed_of(self.seed, self.fold, epoch, row))
        indices = torch.tensor([row for _, row in keys])
        return Batch(torch.from_numpy(images), self.targets[indices], indices, problems)


class EpochOrder(Sampler):
    """Batches of (epoch, row) keys. Set `epoch` (and `start`, the first batch) before iterating.

    Shuffled orders leave out the incomplete last batch, other rows each epoch; BatchNorm cannot train on a single row.
    """

    def __init__(self, num_rows: int, batch_size: int, shuffle: bool, seed: int = 0, fold: int = 0):
        self.num_rows, self.batch_size, self.shuffle, self.seed, self.fold = num_rows, batch_size, shuffle, seed, fold
        self.epoch = self.start = 0

    def __len__(self) -> int:
        if self.shuffle:
            return max(1, self.num_rows // self.batch_size)
        return -(-self.num_rows // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.num_rows)
        if self.shuffle:
            order = np.random.default_rng(seed_of(self.seed, self.fold, self.epoch, "order")).permutation(order)
        for batch in range(self.start, len(self)):
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, int(row)) for row in rows]


def as_is(batch: Batch) -> Batch:
    return batch


def make_loader(images: Images, order: EpochOrder, num_workers: int, device: torch.device) -> DataLoader:
    """Batches of `images` in `order`; num_workers = 0 reads in this process. Iterating draws no global randomness."""
    return DataLoader(
        images,
        batch_sampler=order,
        num_workers=num_workers,
        collate_fn=as_is,
        persistent_workers=num_workers > 0,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),
    )
