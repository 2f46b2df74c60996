"""Batches of a fold: which rows, at which size, with which augmentation, in which epoch."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader

from kfold.config import Config
from kfold.data.augment import Augmentation, eval_transform, train_transform, transform_of_epoch
from kfold.data.cache import FILES, Pixels
from kfold.data.loader import EpochOrder, Images, ThreadLoader, make_loader, mixed_rows
from kfold.data.sampler import RowsOf, classes_of, resampled
from kfold.data.sizes import SizeOf, drawn_sizes, growing_sizes
from kfold.data.workers import workers_for
from kfold.distributed import share
from kfold.setup.rows import TrainingRows


def make_batches(
    rows: TrainingRows,
    task: str,
    config: Config,
    number: int,
    device: torch.device,
    pixels: Pixels = FILES,
    check: Callable[[], object] = lambda: None,
) -> tuple[DataLoader | ThreadLoader, DataLoader | ThreadLoader | None]:
    """Augmented, shuffled batches of the training rows, and plain ones of the validation rows in order.

    check: raises when it is time to stop.
    """
    augmentation, size, largest = make_augmentation(config), config.image_size, largest_size(config)
    train_images = Images(
        rows.train_paths,
        rows.train_targets,
        train_transform(augmentation, largest),
        largest,
        config.seed,
        number,
        rows.train_weights,
        partial(transform_of_epoch, augmentation, first_plain_epoch(config)),
        pixels.reader(rows.train_paths),
        share(),
    )
    rows_of = make_rows_of(config, rows.train_targets, rows.num_real, task, number)
    size_of = make_size_of(config, number)
    train_order = EpochOrder(len(train_images), config.batch_size, True, config.seed, number, rows_of, size_of)
    workers = workers_for(train_images, train_order, config.workers, device, check)
    train_batches = make_loader(train_images, train_order, workers, device)
    if not len(rows.valid_paths):
        return train_batches, None
    valid_images = Images(
        rows.valid_paths,
        rows.valid_targets,
        eval_transform(size, config.center_crop),
        size,
        read=pixels.reader(rows.valid_paths),
        share=share(),
    )
    valid_order = EpochOrder(len(valid_images), 2 * config.batch_size, False)
    return train_batches, make_loader(valid_images, valid_order, workers, device)


def make_rows_of(config: Config, targets: np.ndarray, num_real: int, task: str, number: int) -> RowsOf:
    """Which rows an epoch trains on; targets (N, C): of the fold's training rows, real ones first."""
    num_mixed_epochs = config.epochs - config.cooldown_epochs
    num_pseudo = len(targets) - num_real
    rows_of = mixed_rows(num_real, num_pseudo, config.pseudo_ratio, num_mixed_epochs, config.seed, number)
    if config.sampler == "shuffled":
        return rows_of
    return resampled(rows_of, classes_of(targets, task), config.sampler, config.seed, number)


def make_size_of(config: Config, number: int) -> SizeOf | None:
    """The size of each batch of training images; None: image_size."""
    if config.multi_scale:
        return drawn_sizes(config.multi_scale, config.seed, number)
    return growing_sizes(config.progressive, config.epochs) if config.progressive else None


def largest_size(config: Config) -> int:
    """Of training images, in pixels."""
    return max(config.multi_scale or config.progressive or (config.image_size,))


def make_augmentation(config: Config) -> Augmentation:
    return Augmentation(
        config.augment,
        config.hflip,
        config.vflip,
        config.rotate90,
        config.crop_scale,
        config.color_jitter,
        config.fancy_pca,
        config.cutout,
        config.random_erasing,
    )


def first_plain_epoch(config: Config) -> float:
    """The first (from 0) of the last epochs without mixing and heavy augmentation; infinite where none is."""
    return config.epochs - config.plain_epochs if config.plain_epochs else float("inf")
