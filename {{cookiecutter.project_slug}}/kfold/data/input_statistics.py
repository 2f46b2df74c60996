"""Mean and standard deviation of the pixels that a fold trains on, in place of the backbone's own.

Source: LeCun and others, Efficient BackProp, 1998, yann.lecun.com/exdb/publis/pdf/lecun-98b.pdf, section 4.3
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from kfold.data.augment import apply, eval_transform
from kfold.data.images import BadImage, read_image
from kfold.data.scan import map_files
from kfold.errors import UserError

MOST_IMAGES = 2000  # the mean of so many differs from that of all by about 1/45 of their spread


def dataset_statistics(
    paths: Sequence[Path], size: int, center_crop: float, title: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (0..1, per RGB channel) over all pixels of the images, as validation sees them.

    Of more than MOST_IMAGES, so many evenly spaced ones are read. Sums of whole numbers are exact, so a resume gets
    the same bits. Raises UserError on an image that cannot be read.
    """
    if len(paths) > MOST_IMAGES:
        paths = [paths[row] for row in np.linspace(0, len(paths) - 1, MOST_IMAGES).round().astype(int)]
    sums = map_files(partial(sum_pixels, size=size, center_crop=center_crop), [Path(path) for path in paths], title)
    total, squares = np.sum(sums, axis=0)  # (2, 3) int64
    num_pixels = len(paths) * size**2
    mean = total / num_pixels
    deviation = np.sqrt(np.maximum(squares / num_pixels - mean**2, 1))  # a grey level at least: it is divided by
    return tuple((mean / 255).tolist()), tuple((deviation / 255).tolist())


def sum_pixels(path: Path, size: int, center_crop: float) -> np.ndarray:
    """Sums (2, 3) int64 of the pixels and of their squares, per channel."""
    try:
        image = read_image(path)
    except BadImage as problem:
        raise UserError(f"{path}: {problem}: run make_folds.py --check") from None
    pixels = apply(eval_transform(size, center_crop), image, 0).reshape(-1, 3).astype(np.int64)
    return np.stack([pixels.sum(axis=0), (pixels**2).sum(axis=0)])
