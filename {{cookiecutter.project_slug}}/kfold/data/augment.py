"""Augmentation, in the language of albumentations, which only this module and exact.py know. Images stay uint8; the
device normalises them.

A preset, and extras that are added to it. Milliseconds an image from a cache at 288 pixels to 224, on one core: light
0.2, medium 1.1, heavy 1.4, autoaugment 1.8, trivialaugment 1.9, randaugment 2.9; each extra adds 0.1 to 0.4.
"""

from dataclasses import dataclass
from functools import cache

import albumentations as A
import numpy as np
import torch
from torchvision.transforms import v2

from kfold.data.fancy_pca import shift_colours
from kfold.data.reduce import interpolation_for
from kfold.seeds import seed_of

BILINEAR, GREY = v2.InterpolationMode.BILINEAR, 128
COLOUR = (A.ColorJitter, A.RandomBrightnessContrast)  # of a preset, which color_jitter takes the place of


@dataclass(frozen=True)
class Augmentation:
    """Plain values of an experiment, as in kfold/config.py."""

    preset: str = "light"
    hflip: bool = False
    vflip: bool = False
    rotate90: bool = False
    crop_scale: float = 0.0  # least share of the area; 0: the preset's crop
    color_jitter: float = 0.0  # strength; 0: the preset's colours
    fancy_pca: float = 0.0  # this and the next two: probabilities
    cutout: float = 0.0
    random_erasing: float = 0.0

    @property
    def plain(self) -> "Augmentation":
        """The light preset (none where there was none) with the flips and turns that keep the label."""
        preset = "none" if self.preset == "none" else "light"
        return Augmentation(preset, self.hflip, self.vflip, self.rotate90)


class Crop(A.RandomResizedCrop):
    def _get_interpolation_for_resize(self, crop_shape: tuple[int, int], target_type: str) -> int:
        return interpolation_for(crop_shape, *self.size)


class Shrink(A.Resize):
    """To size x size, or enlarged to it."""

    def apply(self, img: np.ndarray, **params) -> np.ndarray:
        self.interpolation = interpolation_for(img.shape, self.height, self.width)
        return super().apply(img, **params)


def crop(size: int, smallest: float, widest: float) -> Crop:
    """A random part of at least `smallest` of the area, width/height within 1/widest..widest, made size x size."""
    return Crop((size, size), scale=(smallest, 1.0), ratio=(1 / widest, widest))


def none(size: int) -> list[A.BasicTransform]:
    return [Shrink(size, size)]


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


class Policy(A.ImageOnlyTransform):
    """One of torchvision's policies. They draw from torch's global generator, which is put back as it was."""

    def __init__(self, policy: v2.Transform):
        super().__init__(p=1.0)
        self.policy = policy

    def get_params(self) -> dict[str, int]:
        return {"seed": int(self.random_generator.integers(2**63))}

    def apply(self, image: np.ndarray, seed: int, **_) -> np.ndarray:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU's, too
            pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)  # those of a cache cannot be written to
            return self.policy(pixels).permute(1, 2, 0).numpy()


def draws_globally(transform: A.Compose) -> bool:
    """Whether a transform draws from torch's global generator: another thread of the process may be using that."""
    return any(isinstance(part, Policy) for part in transform.transforms)


def autoaugment(size: int) -> list[A.BasicTransform]:
    """The policy found on ImageNet: Cubuk and others, arxiv.org/abs/1805.09501"""
    return [light(size)[0], Policy(v2.AutoAugment(interpolation=BILINEAR, fill=GREY))]


def randaugment(size: int) -> list[A.BasicTransform]:
    """Two operations of magnitude 9 of 30: Cubuk and others, arxiv.org/abs/1909.13719"""
    return [light(size)[0], Policy(v2.RandAugment(interpolation=BILINEAR, fill=GREY))]


def trivialaugment(size: int) -> list[A.BasicTransform]:
    """One operation of random magnitude: Mueller and Hutter, arxiv.org/abs/2103.10158"""
    return [light(size)[0], Policy(v2.TrivialAugmentWide(interpolation=BILINEAR, fill=GREY))]


class FancyPCA(A.ImageOnlyTransform):
    """kfold/data/fancy_pca.py"""

    def apply(self, image: np.ndarray, **_) -> np.ndarray:
        return shift_colours(image, self.random_generator)


AUGMENTS = {  # the first transform of each makes size x size
    "none": none,
    "light": light,
    "medium": medium,
    "heavy": heavy,
    "autoaugment": autoaugment,
    "randaugment": randaugment,
    "trivialaugment": trivialaugment,
}


@cache
def train_transform(augmentation: Augmentation, size: int) -> A.Compose:
    """The preset and what is added to it: (H, W, 3) uint8 -> (size, size, 3) uint8."""
    of = augmentation
    transforms = AUGMENTS[of.preset](size)
    if of.crop_scale:
        transforms[0] = crop(size, of.crop_scale, 4 / 3)  # Szegedy and others, arxiv.org/abs/1409.4842
    if of.color_jitter:
        strength = of.color_jitter
        transforms = [transform for transform in transforms if not isinstance(transform, COLOUR)]
        transforms.append(A.ColorJitter(strength, strength, strength, strength / 8, p=0.8))
    if of.fancy_pca:
        transforms.append(FancyPCA(p=of.fancy_pca))
    transforms += [A.HorizontalFlip(p=0.5)] * of.hflip + [A.VerticalFlip(p=0.5)] * of.vflip
    transforms += [A.RandomRotate90(p=1.0)] * of.rotate90  # no turn is one of the four
    if of.cutout:  # DeVries and Taylor, arxiv.org/abs/1708.04552
        side = (0.4, 0.4)  # of the image's
        transforms.append(A.CoarseDropout((1, 1), side, side, fill=GREY, p=of.cutout))
    if of.random_erasing:  # Zhong and others, arxiv.org/abs/1708.04896
        transforms.append(A.Erasing(fill="random", p=of.random_erasing))
    return A.Compose(transforms)


def least_share(augmentation: Augmentation) -> float:
    """The least share of an image's area that a training image may show; 1 without random crops."""
    scales = [part.scale[0] for part in train_transform(augmentation, 32).transforms if isinstance(part, Crop)]
    return min(scales, default=1.0)


def transform_of_epoch(augmentation: Augmentation, first_plain_epoch: float, epoch: int, size: int) -> A.Compose:
    """The transform of an epoch (from 0) at a size: plain from `first_plain_epoch` on."""
    return train_transform(augmentation.plain if epoch >= first_plain_epoch else augmentation, size)


@cache
def eval_transform(size: int, center_crop: float = 1.0) -> A.Compose:
    """Resize, and cut out the middle, that share of each side: (H, W, 3) uint8 -> (size, size, 3) uint8."""
    if center_crop == 1:
        return A.Compose(none(size))
    return A.Compose([*none(round(size / center_crop)), A.CenterCrop(size, size)])


def apply(transform: A.Compose, image: np.ndarray, seed: int) -> np.ndarray:
    """The transformed image; the same seed always gives the same pixels.

    Each transform gets a seed of its own. `Compose.set_random_seed` hands the same one to all, which makes their
    draws move together: of 400 images with two flips, none had just one (albumentations 2.0.8).
    """
    for position, part in enumerate(transform.transforms):
        part.set_random_seed(seed_of(seed, position))
    return transform(image=image)["image"]
