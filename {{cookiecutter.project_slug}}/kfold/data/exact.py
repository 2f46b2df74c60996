"""The frequent operations of augment.py without albumentations' own time for each call: the same draws, the same bytes.

Microseconds an image on one core, from 288 x 384 pixels to 224, by albumentations and here: light preset with one flip
231 and 156, with both flips and quarter turns 498 and 191, evaluation 148 and 104.
"""

import random
import threading
from collections.abc import Callable
from copy import deepcopy
from weakref import WeakKeyDictionary

import albumentations as A
import cv2
import numpy as np

from kfold.data.augment import Crop, Shrink
from kfold.data.reduce import interpolation_for
from kfold.seeds import seed_of


class OfThread(threading.local):
    """A transform keeps its generator in itself, so that threads need one each."""

    def __init__(self):
        self.draws = random.Random()
        self.copies: WeakKeyDictionary[A.BasicTransform, A.BasicTransform] = WeakKeyDictionary()


OF_THREAD = OfThread()
QUARTER_TURNS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}


def apply_into(out: np.ndarray, transform: A.Compose, image: np.ndarray, seed: int) -> None:
    """What augment.apply gives, (size, size, 3) uint8, written into `out`. The image is left as it is."""
    for position, shared in enumerate(transform.transforms):
        part, part_seed = own_copy(shared), seed_of(seed, position)
        form = FORMS.get(type(part))
        if form is None:
            part.set_random_seed(part_seed)
            image = part(image=image)["image"]
            continue
        # Their draws all come from this generator; making the other one, NumPy's, takes longer than a flip.
        OF_THREAD.draws.seed(part_seed)
        part.py_random = OF_THREAD.draws
        if part.should_apply():
            image = form(part, image, out)
    if image is not out:
        np.copyto(out, image, casting="no")


def own_copy(shared: A.BasicTransform) -> A.BasicTransform:
    part = OF_THREAD.copies.get(shared)
    if part is None:
        part = OF_THREAD.copies[shared] = deepcopy(shared)
    return part


# Each takes (part, image, out) and gives the new image, which is `out` itself where it fits there.


def crop(part: Crop, image: np.ndarray, out: np.ndarray) -> np.ndarray:
    left, top, right, bottom = part.get_params_dependent_on_data({"shape": image.shape}, {})["crop_coords"]
    return resize(image[top:bottom, left:right], *part.size, out)


def shrink(part: Shrink, image: np.ndarray, out: np.ndarray) -> np.ndarray:
    return resize(image, part.height, part.width, out)


def resize(image: np.ndarray, height: int, width: int, out: np.ndarray) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    target = out if out.shape[:2] == (height, width) and not np.may_share_memory(image, out) else None
    return cv2.resize(image, (width, height), dst=target, interpolation=interpolation_for(image.shape, height, width))


def mirror(part: A.HorizontalFlip, image: np.ndarray, out: np.ndarray) -> np.ndarray:
    return cv2.flip(image, 1, dst=out if out.shape == image.shape else None)


def turn_over(part: A.VerticalFlip, image: np.ndarray, out: np.ndarray) -> np.ndarray:
    return cv2.flip(image, 0, dst=out if out.shape == image.shape else None)


def turn(part: A.RandomRotate90, image: np.ndarray, out: np.ndarray) -> np.ndarray:
    factor = part.get_params()["factor"]
    return cv2.rotate(image, QUARTER_TURNS[factor]) if factor else image


def brighten(part: A.RandomBrightnessContrast, image: np.ndarray, out: np.ndarray) -> np.ndarray:
    return part.apply(image, **part.get_params_dependent_on_data({}, {"image": image}))


FORMS: dict[type, Callable[[A.BasicTransform, np.ndarray, np.ndarray], np.ndarray]] = {
    Crop: crop,
    Shrink: shrink,
    A.HorizontalFlip: mirror,
    A.VerticalFlip: turn_over,
    A.RandomRotate90: turn,
    A.RandomBrightnessContrast: brighten,
}
