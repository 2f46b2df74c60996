"""Images without labels, for the mean teacher: two views of the same test images for each step of a fold."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from kfold.config import Config
from kfold.data.augment import Augmentation, train_transform
from kfold.data.cache import FILES, Pixels
from kfold.data.loader import EpochOrder, Images, ThreadLoader, make_loader
from kfold.data.workers import workers_for
from kfold.distributed import share
from kfold.errors import UserError
from kfold.seeds import seed_of
from kfold.setup.batches import make_augmentation
from kfold.training.terms import Pair, endless_pairs


def make_pairs(
    paths: Sequence,
    config: Config,
    number: int,
    device: torch.device,
    order: EpochOrder,
    first_step: int,
    pixels: Pixels = FILES,
) -> Iterator[Pair]:
    """For each step from `first_step` on (from 0), images for the student and for the teacher.

    order: of the training batches, which says at which step plain_epochs begin: epochs of test images have another
    length. Raises UserError where fewer than two images are there.
    """
    if sum(Path(path).is_file() for path in paths) < 2:  # BatchNorm cannot train on one
        raise UserError(f"consistency_weight learns from test images, and fewer than 2 of {len(paths)} are there")
    augmentation = make_augmentation(config)
    pairs = endless_pairs(*make_both_sides(paths, augmentation, config, number, device, pixels), first_step)
    if not config.plain_epochs:
        return pairs
    plain_step = max(first_step, order.steps_before(config.epochs - config.plain_epochs))
    plain_pairs = endless_pairs(*make_both_sides(paths, augmentation.plain, config, number, device, pixels), plain_step)
    return chain(islice(pairs, plain_step - first_step), plain_pairs)


def make_both_sides(
    paths: Sequence, augmentation: Augmentation, config: Config, number: int, device: torch.device, pixels: Pixels
) -> tuple[DataLoader | ThreadLoader, DataLoader | ThreadLoader]:
    """Two loaders of the same images in the same order, augmented differently."""
    transform, batch_size = train_transform(augmentation, config.image_size), min(config.batch_size, len(paths))
    loaders = []
    for side in ("student", "teacher"):
        seed = seed_of(config.seed, "unlabelled", side)
        targets, read = np.zeros((len(paths), 0)), pixels.reader(paths)
        images = Images(paths, targets, transform, config.image_size, seed, number, read=read, share=share())
        order = EpochOrder(len(paths), batch_size, True, config.seed, number)
        workers = workers_for(images, order, config.workers, device)
        loaders.append(make_loader(images, order, workers, device))
    return loaders[0], loaders[1]
