"""Image files as they are, out of a cache where one holds their own pixels.

A rule never enlarges, and makes the shorter side exactly its own where it reduces: content that is smaller is the file.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from kfold.data.cache import CacheReader, FileReader
from kfold.data.cache_build import look_up
from kfold.data.cache_index import Entry
from kfold.data.reduce import FORMATS, Rule


class UnreducedReader:
    """A row -> the pixels that the file gives, (H, W, 3) uint8 RGB; raises BadImage.

    cache_dir: the folder of caches; the one that holds the most of the files is used.
    """

    def __init__(self, paths: Sequence[Path], cache_dir: Path):
        self.files, names = FileReader(paths), [str(Path(path).absolute()) for path in paths]
        usable = [(rule, unreduced(cache_dir / rule.name, rule, names)) for rule in rules_in(cache_dir)]
        rule, entries = max(usable, key=lambda one: len(one[1]), default=(None, {}))
        rows = [row for row, name in enumerate(names) if name in entries]
        self.places = np.full(len(names), -1)  # in the cache, by row
        self.places[rows] = np.arange(len(rows))
        self.cached = CacheReader(cache_dir / rule.name, rule, [entries[names[row]] for row in rows]) if rows else None

    def __call__(self, row: int) -> np.ndarray:
        place = int(self.places[row])
        return self.files(row) if place < 0 else self.cached(place)


def rules_in(cache_dir: Path) -> Iterator[Rule]:
    """Of the caches that this machine's OpenCV made, or would make alike."""
    for folder in sorted(cache_dir.glob("*-opencv-*")):
        if (match := re.match(r"([a-z]+)-(\d+)-", folder.name)) and match[1] in FORMATS:
            rule = Rule(int(match[2]), match[1])
            if rule.name == folder.name:
                yield rule


def unreduced(folder: Path, rule: Rule, names: Sequence[str]) -> dict[str, Entry]:
    """The cache's entries of files that were usable, and no larger than the rule allows."""
    found, _ = look_up(folder, rule, names)
    return {name: entry for name, entry in found.items() if 0 < min(entry.height, entry.width) < rule.side}
