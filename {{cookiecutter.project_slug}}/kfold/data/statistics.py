"""Numbers that describe an image file without any model: size, brightness, contrast, colours."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from kfold.data.images import BadImage, decode_image, read_bytes
from kfold.data.scan import map_files

STATISTICS = ("height", "width", "aspect", "bytes", "mean", "contrast", "red", "green", "blue")


def image_statistics(paths: Sequence[Path], title: str) -> pd.DataFrame:
    """One row a file, in order: height and width (pixels), aspect (width / height), bytes, and of the pixels (0..1)
    mean, contrast (standard deviation) and mean of each colour.

    Decoded as for training. A file that cannot be read is a row of NaN. A progress bar named `title`.
    """
    return pd.DataFrame(map_files(measure_image, paths, title), columns=list(STATISTICS), dtype=np.float64)


def measure_image(path: Path) -> tuple[float, ...]:
    """The STATISTICS of one file."""
    try:
        data = read_bytes(path)
        image = decode_image(data)
    except BadImage:
        return (float("nan"),) * len(STATISTICS)
    height, width, _ = image.shape
    means, deviations = (cells[:, 0] / 255 for cells in cv2.meanStdDev(image))  # per channel, without a copy in float
    contrast = (np.square(deviations).mean() + means.var()) ** 0.5
    return (height, width, width / height, len(data), means.mean(), contrast, *means)
