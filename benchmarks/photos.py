"""Photographs made up for timing: JPEG files that take as long to read as real ones, in classes that can be told apart.

    python benchmarks/photos.py FOLDER --count 2000 --width 500 --height 375

Writes FOLDER/<number>.jpg and FOLDER/labels.csv (file, label). The same count and size give the same pixels. Each
photograph is a stack of noises, coarse to fine, with the share of fine detail that gives about 0.25 bytes a pixel at
quality 90, as cameras do; its class is the hue of the coarse ones.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

NUM_CLASSES = 10
QUALITY = 90


def write_photos(folder: Path, count: int, width: int, height: int) -> pd.DataFrame:
    """Table of file and label. Photographs that lie there already are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = [number % NUM_CLASSES for number in range(count)]
    files = [f"{number:06d}.jpg" for number in range(count)]

    def write(number: int) -> None:
        path = folder / files[number]
        if not path.exists():
            photo = make_photo(np.random.default_rng(number), labels[number], width, height)
            beside = path.with_suffix(".tmp")  # an interruption leaves no half of a photograph
            beside.write_bytes(cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes())
            beside.replace(path)

    with ThreadPoolExecutor() as pool:  # drawing and OpenCV let go of Python's lock
        list(tqdm(pool.map(write, range(count)), "photographs", count, disable=None, leave=False))
    table = pd.DataFrame({"file": files, "label": labels})
    table.to_csv(folder / "labels.csv", index=False)
    return table


def make_photo(generator: np.random.Generator, label: int, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: noise of 4, 8, 16, ... cells a side, finer ones fainter, tinted by the class."""
    photo = np.zeros((height, width, 3), np.float32)
    cells, strength = 4, 60.0
    while cells < height:
        noise = generator.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        photo += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        cells, strength = cells * 2, strength * 0.62
    angle = 2 * np.pi * label / NUM_CLASSES
    tint = 40 * np.array([np.cos(angle), np.sin(angle), np.cos(angle + 2)])
    return np.clip(photo + 128 + tint, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--width", type=int, default=500, help="pixels")
    parser.add_argument("--height", type=int, default=375, help="pixels")
    given = parser.parse_args()
    write_photos(given.folder, given.count, given.width, given.height)
