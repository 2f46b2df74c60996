"""Augmentation: the only module that knows albumentations. Images stay uint8; the device normalises them."""

import albumentations as A
import numpy as np

from kfold.seeds import seed_of


def crop(size: int, smallest: float, widest: float) -> A.RandomResizedCrop:
    """A random part of at least `smallest` of the area, width/height within 1/widest..widest, made size x size."""
    return A.RandomResizedCrop(
        (size, size), scale=(smallest, 1.0), ratio=(1 / widest, widest), area_for_downscale="image"
    )


def none(size: int) -> list[A.BasicTransform]:
    return [A.Resize(size, size, area_for_downscale="image")]


def light(size: int) -> list[A.BasicTransform]:
    return [crop(size, 0.7, 1.15), A.RandomBrightnessContrast(0.1, 0.1, p=0.5)]


def medium(size: int) -> list[A.BasicTransform]:
    return [
        crop(size, 0.5, 1.25),
        A.Affine(rotate=(-15, 15), p=0.5),
        A.ColorJitter(0.2, 0.2, 0.2, 0.03, p=0.7),
        A.CoarseDropout(hole_height_range=(0.1, 0.25), hole_width_range=(0.1, 0.25), p=0.3),
    ]


def heavy(size: int) -> list[A.BasicTransform]:
    return [
        crop(size, 0.3, 1.33),
        A.Affine(rotate=(-30, 30), shear=(-10, 10), p=0.7),
        A.ColorJitter(0.4, 0.4, 0.4, 0.05, p=0.8),
        A.GaussianBlur(blur_limit=(3, 5), p=0.2),
        A.GaussNoise(std_range=(0.02, 0.1), p=0.2),
        A.CoarseDropout((1, 3), hole_height_range=(0.1, 0.3), hole_width_range=(0.1, 0.3), p=0.5),
    ]


AUGMENTS = {"none": none, "light": light, "medium": medium, "heavy": heavy}


def train_transform(augment: str, size: int, hflip: bool, vflip: bool, rotate90: bool) -> A.Compose:
    """The preset plus the flips and turns that keep the label: (H, W, 3) uint8 -> (size, size, 3) uint8."""
    transforms = AUGMENTS[augment](size)
    transforms += [A.HorizontalFlip(p=0.5)] * hflip + [A.VerticalFlip(p=0.5)] * vflip
    transforms += [A.RandomRotate90(p=0.75)] * rotate90  # p: the identity is one of the four turns
    return A.Compose(transforms)


def eval_transform(size: int) -> A.Compose:
    """Resize only: (H, W, 3) uint8 -> (size, size, 3) uint8."""
    return A.Compose(none(size))


def apply(transform: A.Compose, image: np.ndarray, seed: int) -> np.ndarray:
    """The transformed image; the same seed always gives the same pixels.

    Each transform gets a seed of its own. `Compose.set_random_seed` hands the same one to all, which makes their
    draws move together: of 400 images with two flips, none had just one (albumentations 2.0.8).
    """
    for position, part in enumerate(transform.transforms):
        part.set_random_seed(seed_of(seed, position))
    return transform(image=image)["image"]
