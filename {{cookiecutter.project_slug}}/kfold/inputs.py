"""What a fold's model sees, put together from its settings: rows, sizes, augmentation, mixing, statistics of pixels."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from kfold.config import Config
from kfold.data.augment import Augmentation
from kfold.data.input_statistics import dataset_statistics
from kfold.data.loader import mixed_rows
from kfold.data.sampler import RowsOf, classes_of, resampled
from kfold.data.sizes import SizeOf, drawn_sizes, growing_sizes
from kfold.errors import UserError
from kfold.model.build import has_fixed_input
from kfold.model.weights import ModelCard
from kfold.training.mixing import mixer
from kfold.training.objective import Mixer, unmixed


def refuse_fixed_input(config: Config) -> None:
    """Raise UserError where batches of several sizes would go to a backbone that takes one."""
    for key in ("multi_scale", "progressive"):
        if getattr(config, key) and has_fixed_input(config.backbone):
            raise UserError(f"{key} with backbone={config.backbone}, which takes images of one size: drop one of them")


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


def make_mixer(config: Config) -> Mixer:
    betas = {"mixup": config.mixup_alpha, "cutmix": config.cutmix_alpha, "ricap": config.ricap_beta}
    if not config.mixing:
        return unmixed
    return mixer([(name, betas[name]) for name in config.mixing], config.mixing_probability, first_plain_epoch(config))


def with_input(card: ModelCard, config: Config, paths: Sequence[Path]) -> ModelCard:
    """The card with what is done to an image before the model sees it; paths: the fold's real training images."""
    card = replace(card, center_crop=config.center_crop)
    if config.input_statistics == "backbone":
        return card
    mean, std = dataset_statistics(paths, config.image_size, config.center_crop, "input statistics")
    return replace(card, mean=mean, std=std)
