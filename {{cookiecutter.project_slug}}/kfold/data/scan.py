"""All image files read once, in parallel: is each usable, what is odd about it, and its fingerprints."""

import hashlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from kfold.data.images import BadImage, decode_image, image_kind, is_cut_short, read_bytes
from kfold.errors import UserError

SUFFIXES = {"jpeg": "jpg", "jpe": "jpg", "jfif": "jpg", "tiff": "tif"}
POOL_BYTES = 100_000_000  # below, starting processes (2 s) takes longer than reading (30 MB of JPEG a second)
CHUNK = 32  # files handed to a process at a time

Result = TypeVar("Result")


class Scan(NamedTuple):
    """What one file holds. Of a bad file only `problem` is set."""

    problem: str = ""  # why it cannot be used
    notes: tuple[str, ...] = ()  # what is odd about a usable file
    sha256: bytes = b""  # of the file
    dhash: int = 0  # 64 bits; near duplicates differ in few
    thumbnail: bytes = bytes(256)  # 16 x 16 grey pixels
    height: int = 0
    width: int = 0


def scan_images(paths: Sequence[Path], title: str) -> list[Scan]:
    """A Scan per path, in order; a progress bar named `title` where stderr is a terminal."""
    return map_files(scan_image, paths, title)


def map_files(function: Callable[[Path], Result], paths: Sequence[Path], title: str) -> list[Result]:
    """What `function` (of a module: processes import it) says of each path, in order; with a progress bar `title`.

    In parallel where the files are large enough. Raises UserError when a process was killed.
    """
    num_processes = num_cores()
    bar = tqdm(total=len(paths), desc=title, unit="image", disable=not sys.stderr.isatty())
    results: list[Result] = []
    with bar:
        if num_processes == 1 or sum(map(file_size, paths)) < POOL_BYTES:
            for path in paths:
                results.append(function(path))
                bar.update()
            return results
        # Spawned, because a forked process can hang on locks that the libraries' threads held.
        with ProcessPoolExecutor(num_processes, get_context("spawn")) as pool:
            try:
                for result in pool.map(function, paths, chunksize=CHUNK):
                    results.append(result)
                    bar.update()
            except BrokenProcessPool:
                raise UserError(f"{title}: a process that reads images was killed: free memory, run again") from None
    return results


def num_cores() -> int:
    """Processors that this process may use: several folds at once share them (kfold/parallel_folds.py)."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(found, int(os.environ.get("KFOLD_CORES") or found))


def file_size(path: Path) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def scan_image(path: Path) -> Scan:
    """Decode one file by the rule that training uses."""
    try:
        data = read_bytes(path)
        image = decode_image(data)
    except BadImage as problem:
        return Scan(str(problem))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    thumbnail = cv2.resize(grey, (16, 16), interpolation=cv2.INTER_AREA)
    notes = tuple(describe(data, path.suffix))
    return Scan("", notes, hashlib.sha256(data).digest(), dhash(grey), thumbnail.tobytes(), *grey.shape)


def dhash(grey: np.ndarray) -> int:
    """64 bits of a grey picture: is each of 9 x 8 cells brighter than its left neighbour?

    Source: N. Krawetz, "Kind of Like That", hackerfactor.com, 2013.
    """
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def describe(data: bytes, suffix: str) -> list[str]:
    """What the decoding rule had to change or guess."""
    notes = []
    kind, named = image_kind(data), suffix.lower().lstrip(".")
    if kind and named and kind != SUFFIXES.get(named, named):
        notes.append(f"{kind} files named {suffix}")
    if is_cut_short(data, kind):
        notes.append(f"{'JPEG' if kind == 'jpg' else kind} files without an end mark (cut short by a few bytes?)")
    try:
        with Image.open(io.BytesIO(data)) as header:
            if header.mode.startswith("I"):
                notes.append("with 16 bits, scaled to 8")
            if header.mode == "CMYK":
                notes.append("CMYK, converted to RGB")
            if header.mode in ("RGBA", "LA", "PA") or "transparency" in header.info:
                notes.append("with transparency, which is dropped")
            if kind != "jpg" and getattr(header, "is_animated", False):
                notes.append("animated, only the first frame is used")
            if header.getexif().get(0x0112, 1) != 1:
                notes.append("turned upright by their EXIF orientation")
    except Exception:  # notes are a courtesy: Pillow may fail in many ways on what OpenCV can read
        pass
    return notes
