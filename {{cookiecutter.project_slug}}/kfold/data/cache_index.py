"""What a cache holds: a text file that only grows, a line for each image, the newest line of an image counts.

Each line carries a checksum of itself. A line that a kill cut short, or that is damaged, is as good as none: its image
is made again. So whatever was finished before a kill is kept, and nothing is ever believed that was not written whole.
"""

import json
import os
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from kfold.data.reduce import Rule

MISSING = (-1, -1)  # size and time of a file that is not there
TRANSIENT = "cannot be read"  # how a problem of the disk starts, which may be over by now


class Entry(NamedTuple):
    """One image of a cache."""

    path: str  # of the source, absolute
    source_bytes: int
    source_mtime_ns: int
    offset: int  # of the content in the data file, in bytes
    num_bytes: int
    height: int
    width: int
    crc32: int  # of the content
    problem: str = ""  # why the file cannot be used as an image; then the five above are 0


def stamp_of(path: str) -> tuple[int, int]:
    """Size (bytes) and time of change (ns) of a file: what tells whether it is still the same."""
    try:
        status = os.stat(path)
    except OSError:
        return MISSING
    return status.st_size, status.st_mtime_ns


def is_current(entry: Entry | None, stamp: tuple[int, int]) -> bool:
    if entry is None or entry.problem.startswith(TRANSIENT):
        return False
    return (entry.source_bytes, entry.source_mtime_ns) == stamp


def to_line(values: object) -> bytes:
    text = json.dumps(values, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def from_line(line: bytes) -> object:
    """Raises ValueError for a line that is not whole."""
    if zlib.crc32(line[9:]) != int(line[:8], 16) or line[8:9] != b" ":
        raise ValueError("damaged")
    return json.loads(line[9:])


def header_of(rule: Rule) -> bytes:
    return to_line({"cache": 1, "rule": rule.name})


def read_index(index_path: Path, data_path: Path, rule: Rule) -> dict[str, Entry]:
    """The images of the cache by source path, without those whose line or content is not whole; says how many.

    Nothing of a file that was made by another rule, or whose first line is damaged.
    """
    try:
        lines = index_path.read_bytes().split(b"\n")
    except OSError:  # not there, as a rule; what else it may be, writing there will name
        return {}
    data_bytes = max(stamp_of(str(data_path))[0], 0)
    if lines[0] + b"\n" != header_of(rule):
        print(f"{index_path}: damaged, or of another kind: the cache is made again", file=sys.stderr)
        return {}
    found: dict[str, Entry] = {}
    num_damaged = 0
    for line in filter(None, lines[1:]):
        try:
            entry = Entry(*from_line(line))
        except (ValueError, TypeError):
            num_damaged += line is not lines[-1]  # the last one, without its end, a kill may have cut short
            continue
        found[entry.path] = entry
    if num_damaged:
        print(f"{index_path}: {num_damaged} damaged lines: their images are made again", file=sys.stderr)
    whole = {path: entry for path, entry in found.items() if entry.offset + entry.num_bytes <= data_bytes}
    if len(whole) < len(found):
        print(f"{data_path}: cut short: {len(found) - len(whole)} images are made again", file=sys.stderr)
    return whole


def append_entries(index_path: Path, entries: Iterable[Entry]) -> None:
    """One write, so that lines of several processes do not mix."""
    handle = os.open(index_path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(handle, b"".join(to_line(entry) for entry in entries))
    finally:
        os.close(handle)


def forget(index_path: Path, entry: Entry) -> None:
    """Note that the content of an image is damaged: it is made again when the cache is opened next."""
    append_entries(index_path, [entry._replace(source_bytes=MISSING[0], source_mtime_ns=MISSING[1] - 1)])
