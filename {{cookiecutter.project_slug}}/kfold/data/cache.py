"""Images decoded once: kept in one file that every fold, run and process maps into its memory.

A folder holds pixels.bin (the contents one after another) and index.txt (cache_index.py); cache_build.py fills it. The
contents depend on the source files and the rule alone, so it does not matter who made them, or when.
"""

import mmap
import sys
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kfold.data.cache_build import data_path_of, index_path_of
from kfold.data.cache_index import Entry, forget
from kfold.data.images import BadImage, read_image
from kfold.data.reduce import FORMATS, Rule, read_by


@dataclass(frozen=True)
class Pixels:
    """Where the pixels of image files come from: a cache, the files by a rule, or (no rule) the files as they are."""

    rule: Rule | None = None
    folder: Path | None = None  # of the cache; None: the files themselves
    entries: Mapping[str, Entry] = field(default_factory=dict)  # of the cache, by absolute path

    @property
    def name(self) -> str:
        """Which pixels they are, wherever they come from."""
        return f"{self.rule.format} {self.rule.side}" if self.rule else "as they are"

    def holds(self, paths: Sequence[Path]) -> bool:
        """Whether all of these are in the cache."""
        return self.folder is not None and all(str(Path(path).absolute()) in self.entries for path in paths)

    def reader(self, paths: Sequence[Path]) -> "FileReader | CacheReader":
        """What reads the images: a row -> (H, W, 3) uint8 RGB; raises BadImage."""
        if self.folder is None:
            return FileReader(paths, self.rule)
        return CacheReader(self.folder, self.rule, [self.entries[str(Path(path).absolute())] for path in paths])


FILES = Pixels()


class FileReader:
    """Decodes the files anew each time."""

    def __init__(self, paths: Sequence[Path], rule: Rule | None = None):
        # One array of text, not a list: reading list items in workers copies their memory pages (PyTorch issue 13246).
        self.paths, self.rule = np.array([str(path) for path in paths]), rule

    def __call__(self, row: int) -> np.ndarray:
        path = Path(self.paths[row])
        return read_by(self.rule, path) if self.rule else read_image(path)


class CacheReader:
    """Takes the pixels from a cache; they cannot be written to.

    A content is compared with its checksum the first time that a process reads it. A damaged one is named, noted in the
    index so that it is made again, and never used: its image is read from the source.
    """

    def __init__(self, folder: Path, rule: Rule, entries: Sequence[Entry]):
        self.folder, self.rule = folder, rule
        self.paths = np.array([entry.path for entry in entries])
        self.problems = {row: entry.problem for row, entry in enumerate(entries) if entry.problem}
        columns = [entry[1:8] for entry in entries]  # all whole numbers
        self.entries = np.array(columns, np.int64).reshape(-1, 7)
        self.is_checked = np.zeros(len(entries), bool)
        self.content: np.ndarray | None = map_file(data_path_of(folder))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "content": None}  # a process that does not inherit the map opens its own

    def __call__(self, row: int) -> np.ndarray:
        if row in self.problems:
            raise BadImage(self.problems[row])
        if self.content is None:
            self.content = map_file(data_path_of(self.folder))
        _, _, offset, num_bytes, height, width, crc32 = self.entries[row].tolist()
        content = self.content[offset : offset + num_bytes]
        if not self.is_checked[row]:
            if zlib.crc32(content) != crc32:
                return self.read_source(row)
            self.is_checked[row] = True
        return FORMATS[self.rule.format].unpack(content, height, width)

    def read_source(self, row: int) -> np.ndarray:
        path = str(self.paths[row])
        where = f"{data_path_of(self.folder)}: damaged at the image {path}"
        print(f"{where}: read from there, and made again at the next start", file=sys.stderr)
        with suppress(OSError):  # it may lie where nobody can write
            forget(index_path_of(self.folder), Entry(path, *self.entries[row].tolist()))
        return read_by(self.rule, Path(path))


def map_file(path: Path) -> np.ndarray:
    """The file's bytes (n,) uint8, read from the disk as they are asked for; its name may go away meanwhile."""
    with path.open("rb") as file:
        if not file.seek(0, 2):
            return np.zeros(0, np.uint8)  # an empty file cannot be mapped
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
