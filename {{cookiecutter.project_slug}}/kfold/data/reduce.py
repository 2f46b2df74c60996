"""The pixels that a run works on: an image file, reduced to the side that its crops need. Never enlarged.

A FORMAT says how such pixels are kept in a cache, and what comes back. Whether a cache is there or not, the pixels are
the same: without one they are made anew each time.

Files are often several times larger than a batch's images, and shrinking a photograph of 2000 x 1500 for each batch is
most of the work. Reduced once, random crops shrink them by less than two, where bilinear interpolation is enough.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from kfold.data.header import claimed_size
from kfold.data.images import decode_image, image_kind, read_bytes

STEP = 32  # pixels that a side is rounded up to, so that runs of similar sizes share a cache
QUALITY = 95  # of JPEG
JPEG_BYTES_A_PIXEL = 0.6  # at that quality; two photographs, reduced to 160 to 416 pixels, took 0.25 to 0.51
# JPEG leaves out the frequencies that a smaller picture cannot show. Without IMREAD_COLOR: it stands for BGR.
REDUCED_FLAGS = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_COLOR_RGB,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB,
}


class Rule(NamedTuple):
    """Which pixels a file gives."""

    side: int  # pixels of the shorter side, at most
    format: str  # of FORMATS

    @property
    def name(self) -> str:
        """A cache made by another release of OpenCV may differ in its pixels, so it has another name."""
        return f"{self.format}-{self.side}-opencv-{cv2.__version__}"


def side_for(size: int, least_share: float, eval_size: int = 0) -> int:
    """The side that keeps crops of `least_share` of the area at `size` pixels, and whole images at eval_size, sharp."""
    needed = max(min(size / math.sqrt(least_share), 2 * size), eval_size)
    return STEP * math.ceil(needed / STEP)


def reduced_shape(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width with the shorter one at most `side`, in the same proportion."""
    shorter = min(height, width)
    if shorter <= side:
        return height, width
    return max(side, round(height * side / shorter)), max(side, round(width * side / shorter))


def decode_reduced(data: bytes, side: int) -> tuple[np.ndarray, bool]:
    """The pixels of a file's bytes, (H, W, 3) uint8, and whether they were reduced.

    Raises BadImage with the reason.
    """
    kind = image_kind(data)
    shorter = min(claimed_size(data, kind)) if kind == "jpg" else 0
    flags = next((flags for factor, flags in REDUCED_FLAGS.items() if shorter >= factor * side), cv2.IMREAD_COLOR_RGB)
    image = decode_image(data, flags)
    height, width = reduced_shape(*image.shape[:2], side)
    if (height, width) == image.shape[:2]:
        return image, flags != cv2.IMREAD_COLOR_RGB
    return cv2.resize(image, (width, height), interpolation=interpolation_for(image.shape, height, width)), True


def interpolation_for(shape: tuple[int, ...], height: int, width: int) -> int:
    """Bilinear down to half the size, where it still sees every pixel; averaging beyond, which takes 3 to 5 times as
    long."""
    return cv2.INTER_LINEAR if shape[0] <= 2 * height and shape[1] <= 2 * width else cv2.INTER_AREA


# Formats


@dataclass(frozen=True)
class Format:
    pack: Callable[[bytes, int], tuple[bytes, tuple[int, int]]]  # a file's bytes, side -> content, (height, width)
    unpack: Callable[[np.ndarray, int, int], np.ndarray]  # content (n,) uint8, height, width -> (H, W, 3) uint8
    forecast: Callable[[int, int, int, int], int]  # height, width, bytes of the file, side -> bytes of the content


def pack_raw(data: bytes, side: int) -> tuple[bytes, tuple[int, int]]:
    image, _ = decode_reduced(data, side)
    return image.tobytes(), image.shape[:2]


def unpack_raw(content: np.ndarray, height: int, width: int) -> np.ndarray:
    return content.reshape(height, width, 3)


def forecast_raw(height: int, width: int, num_bytes: int, side: int) -> int:
    return 3 * math.prod(reduced_shape(height, width, side))


def pack_jpeg(data: bytes, side: int) -> tuple[bytes, tuple[int, int]]:
    """A file that needs no reducing is kept as it is, so that its pixels stay the same."""
    image, was_reduced = decode_reduced(data, side)
    if not was_reduced:
        return data, image.shape[:2]
    _, content = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return content.tobytes(), image.shape[:2]


def unpack_jpeg(content: np.ndarray, height: int, width: int) -> np.ndarray:
    return decode_image(content.tobytes())


def forecast_jpeg(height: int, width: int, num_bytes: int, side: int) -> int:
    if min(height, width) <= side:
        return num_bytes
    return round(JPEG_BYTES_A_PIXEL * math.prod(reduced_shape(height, width, side)))


FORMATS = {
    "raw": Format(pack_raw, unpack_raw, forecast_raw),
    "jpeg": Format(pack_jpeg, unpack_jpeg, forecast_jpeg),
}


def read_by(rule: Rule, path: Path) -> np.ndarray:
    """The pixels, (H, W, 3) uint8 RGB, without a cache. Raises BadImage with the reason."""
    if rule.format == "raw":
        return decode_reduced(read_bytes(path), rule.side)[0]
    content, shape = FORMATS[rule.format].pack(read_bytes(path), rule.side)
    return FORMATS[rule.format].unpack(np.frombuffer(content, np.uint8), *shape)
