"""Mean and standard deviation of the pixels that a fold trains on, in place of the backbone's own.

Source: LeCun and others, Efficient BackProp, 1998, yann.lecun.com/exdb/publis/pdf/lecun-98b.pdf, section 4.3
"""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kfold.data.augment import eval_transform
from kfold.data.cache import FILES, Pixels
from kfold.data.exact import apply_into
from kfold.data.images import BadImage
from kfold.data.scan import num_cores
from kfold.errors import UserError

MOST_IMAGES = 2000  # the mean of so many differs from that of all by about 1/45 of their spread


def dataset_statistics(
    paths: Sequence[Path], size: int, center_crop: float, title: str, pixels: Pixels = FILES
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (0..1, per RGB channel) over all pixels of the images, as validation sees them.

    Of more than MOST_IMAGES, so many evenly spaced ones are read. Sums of whole numbers are exact, so a resume gets
    the same bits. Raises UserError on an image that cannot be read.
    """
    if len(paths) > MOST_IMAGES:
        paths = [paths[row] for row in np.linspace(0, len(paths) - 1, MOST_IMAGES).round().astype(int)]
    read = pixels.reader(paths)

    def sums_of(row: int) -> np.ndarray:
        return sum_pixels(read, row, paths[row], size, center_crop)

    # Threads: reading and OpenCV let go of Python's lock, and a cache is mapped once.
    with ThreadPoolExecutor(num_cores()) as pool:
        try:
            rows = pool.map(sums_of, range(len(paths)))
            sums = list(tqdm(rows, title, len(paths), unit="image", disable=not sys.stderr.isatty()))
        finally:
            pool.shutdown(cancel_futures=True)
    total, squares = np.sum(sums, axis=0)  # (2, 3) int64
    num_pixels = len(paths) * size**2
    mean = total / num_pixels
    deviation = np.sqrt(np.maximum(squares / num_pixels - mean**2, 1))  # a grey level at least: it is divided by
    return tuple((mean / 255).tolist()), tuple((deviation / 255).tolist())


def sum_pixels(read: Callable[[int], np.ndarray], row: int, path: Path, size: int, center_crop: float) -> np.ndarray:
    """Sums (2, 3) int64 of the pixels and of their squares, per channel."""
    try:
        image = read(row)
    except BadImage as problem:
        raise UserError(f"{path}: {problem}: run make_folds.py --check") from None
    seen = np.empty((size, size, 3), np.uint8)
    apply_into(seen, eval_transform(size, center_crop), image, 0)
    pixels = seen.reshape(-1, 3).astype(np.int64)
    return np.stack([pixels.sum(axis=0), (pixels**2).sum(axis=0)])
