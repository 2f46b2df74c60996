"""Make what a cache lacks: in parallel, in parts that a kill leaves finished, after asking whether the disk has room.

Threads, not processes: decoding, shrinking and writing let go of Python's lock, and nothing has to be started.
"""

import os
import shutil
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import FileIO
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from kfold.data.cache_index import Entry, header_of, is_current, read_index, stamp_of, to_line
from kfold.data.header import claimed_size
from kfold.data.images import BadImage, image_kind, open_without_waiting, read_bytes
from kfold.data.reduce import FORMATS, Rule
from kfold.data.scan import num_cores
from kfold.errors import UserError
from kfold.files import atomic_write, sync

PART = 16  # images that a thread makes before it is asked whether to stop
HEAD = 65_536  # bytes of a file that mostly tell its size
MOST_GARBAGE = 0.5  # of the data file, taken by images that have changed since; more: the cache is made anew

Check = Callable[[], object]  # called now and then; raises when it is time to stop


def data_path_of(folder: Path) -> Path:
    return folder / "pixels.bin"


def index_path_of(folder: Path) -> Path:
    return folder / "index.txt"


def look_up(folder: Path, rule: Rule, paths: Sequence[str]) -> tuple[dict[str, Entry], list[tuple[str, int, int]]]:
    """The entries of the images that the cache holds as they are now, and (path, size, time) of those that it lacks."""
    entries = read_index(index_path_of(folder), data_path_of(folder), rule)
    found, lacking = {}, []
    for path in dict.fromkeys(paths):
        stamp, entry = stamp_of(path), entries.get(path)
        if is_current(entry, stamp):
            found[path] = entry
        else:
            lacking.append((path, *stamp))
    return found, lacking


def fill(folder: Path, rule: Rule, paths: Sequence[str], title: str, check: Check) -> dict[str, Entry]:
    """Every image's entry, after making what the cache lacks; one process makes it, others wait for that.

    Raises UserError when the disk is full or refuses.
    """
    found, lacking = look_up(folder, rule, paths)
    if not lacking:
        return found
    try:
        with waiting_lock(folder / ".lock", check):
            start_files(folder, rule)
            found, lacking = look_up(folder, rule, paths)  # another process may just have made it
            found.update(make(folder, rule, lacking, title, check))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}): free space, or cache=off") from error
    return found


@contextmanager
def waiting_lock(path: Path, check: Check) -> Iterator[None]:
    """Keep other processes out, after waiting for the one that is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    is_told = False
    while True:
        try:
            lock.acquire(timeout=1)
            break
        except Timeout:
            if not is_told:
                print(f"{path.parent}: another process is at work there: waiting for it", file=sys.stderr)
            is_told = True
            check()
    try:
        yield
    finally:
        lock.release()


def start_files(folder: Path, rule: Rule) -> None:
    """Leave the two files ready to be added to. Begins anew where they are of no use, or mostly garbage."""
    index_path, data_path = index_path_of(folder), data_path_of(folder)
    entries = read_index(index_path, data_path, rule)
    used = sum(entry.num_bytes for entry in entries.values() if is_current(entry, stamp_of(entry.path)))
    end = max((entry.offset + entry.num_bytes for entry in entries.values()), default=0)
    if entries and end - used <= MOST_GARBAGE * end:
        # Without damaged lines: the last one, cut short, would swallow the next.
        atomic_write(index_path, header_of(rule) + b"".join(to_line(entry) for entry in entries.values()))
        return
    for path in (index_path, data_path):  # processes that read the old ones keep them until they end
        path.unlink(missing_ok=True)
    data_path.touch()
    index_path.write_bytes(header_of(rule))


def make(
    folder: Path, rule: Rule, lacking: Sequence[tuple[str, int, int]], title: str, check: Check
) -> dict[str, Entry]:
    """Add images to the data file, and then to the index."""
    index_path, data_path, made = index_path_of(folder), data_path_of(folder), {}
    parts = [lacking[start : start + PART] for start in range(0, len(lacking), PART)]
    bar = tqdm(total=len(lacking), desc=title, unit="image", disable=not sys.stderr.isatty())
    with (
        data_path.open("ab", buffering=0) as data,
        index_path.open("ab", buffering=0) as index,
        bar,
        ThreadPoolExecutor(num_cores()) as pool,
    ):
        add = partial(add_image, data, index, threading.Lock())
        try:
            for entries in pool.map(partial(make_part, add, rule), parts):
                made.update((entry.path, entry) for entry in entries)
                bar.update(len(entries))
                check()
        finally:
            pool.shutdown(cancel_futures=True)
    sync(data_path)
    sync(index_path)
    return made


def add_image(data: FileIO, index: FileIO, lock: threading.Lock, entry: Entry, content: bytes) -> Entry:
    """Write the content at the end of the data file and list it at once; the entry with its place.

    Whatever the number of threads, a kill leaves no more than one image that is written and not listed: contents
    without a line would lie between those with one, and count as garbage.
    """
    with lock:
        if content:
            entry = entry._replace(offset=data.seek(0, os.SEEK_END))
            rest = memoryview(content)
            while len(rest):  # one call writes 2 GB at most
                rest = rest[data.write(rest) :]
        index.write(to_line(entry))
    return entry


def make_part(add: Callable[[Entry, bytes], Entry], rule: Rule, sources: Sequence[tuple[str, int, int]]) -> list[Entry]:
    entries = []
    for path, num_bytes, mtime_ns in sources:
        try:
            content, shape = FORMATS[rule.format].pack(read_bytes(Path(path)), rule.side)
        except BadImage as problem:
            entries.append(add(Entry(path, num_bytes, mtime_ns, 0, 0, 0, 0, 0, str(problem)), b""))
        else:
            entry = Entry(path, num_bytes, mtime_ns, 0, len(content), *shape, zlib.crc32(content))
            entries.append(add(entry, content))
    return entries


# How much room it takes


def forecast(lacking: Sequence[tuple[str, int, int]], rule: Rule, check: Check) -> int:
    """Bytes that images will take, from their headers; files that tell no size count as nothing."""
    total, of = 0, FORMATS[rule.format].forecast
    with ThreadPoolExecutor(num_cores()) as pool:
        sizes = pool.map(size_of, [path for path, *_ in lacking])
        try:
            for (_, num_bytes, _), (width, height) in zip(lacking, sizes, strict=True):
                check()
                total += of(height, width, num_bytes, rule.side) if height and width else 0
        finally:
            pool.shutdown(cancel_futures=True)
    return total


def size_of(path: str) -> tuple[int, int]:
    """Width and height by a file's header; 0, 0 where it cannot be told."""
    try:
        with open(path, "rb", opener=open_without_waiting) as file:
            head = file.read(HEAD)
            size = claimed_size(head, image_kind(head))
            if (
                size == (0, 0) and len(head) == HEAD and image_kind(head)
            ):  # metadata or, in a TIFF, pixels may come first
                head += file.read()
                size = claimed_size(head, image_kind(head))
            return size
    except OSError:
        return 0, 0


def free_bytes(folder: Path) -> int:
    """Of the disk that the folder is on, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
