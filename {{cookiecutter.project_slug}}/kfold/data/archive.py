"""Archives from Kaggle or a team mate, unpacked safely: all or nothing, and never outside of the folder.

Everything is checked before the first file is written, then written and checked again beside its place, then moved.
"""

import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from kfold.data.archive_formats import CHUNK, Damage, archive_kind, crc_of, damage_named, list_entries, open_files
from kfold.data.archive_rules import SCRATCH, Entry, Limits, find_conflicts, find_problems, windows_warnings
from kfold.data.tables import shorten
from kfold.errors import UserError
from kfold.files import locked


@dataclass(frozen=True)
class Unpacked:
    written: int  # files
    already: int  # files that were there with the same content
    warnings: list[str]


def unpack(archive: Path, into: Path, overwrite: bool = False, limits: Limits | None = None) -> Unpacked:
    """Put an archive's files in place, all or none. Raises UserError with a line for each entry that is refused.

    Files that are there with the same size and CRC-32 stay; others of the same name only go with `overwrite`.
    """
    limits = limits or Limits()
    with damage_named(archive):
        kind, archive_bytes = archive_kind(archive), archive.stat().st_size
        entries = list_entries(archive, kind, limits)
    if problems := find_problems(entries, archive_bytes, limits):
        raise UserError(shorten([f"{archive}: {problem}" for problem in problems]))
    files = [entry for entry in entries if entry.kind == "file"]
    if not files:
        raise UserError(f"{archive}: holds no files: download it again")
    warnings = [f"{archive}: {line}" for line in windows_warnings(files)]
    new = [entry for entry in files if not is_there(entry, into)]
    if conflicts := find_conflicts(new, into, overwrite):
        raise UserError(shorten(conflicts))
    if new:
        put_in_place(archive, kind, new, into)
    return Unpacked(len(new), len(files) - len(new), warnings)


def is_there(entry: Entry, into: Path) -> bool:
    """Whether the file lies in its place with the size and the CRC-32 that the archive says."""
    path = into / entry.path
    if not path.is_file() or path.is_symlink() or path.stat().st_size != entry.size:
        return False
    with path.open("rb") as file:
        return crc_of(file) == entry.crc


def put_in_place(archive: Path, kind: str, entries: Sequence[Entry], into: Path) -> None:
    """Write the files into a scratch folder beside their places, then move them."""
    into.mkdir(parents=True, exist_ok=True)
    refuse_full_disk(archive, entries, into)
    scratch = into / SCRATCH
    with locked(into):
        shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
        try:
            with damage_named(archive):
                write_files(archive, kind, entries, scratch)
                if hasattr(os, "sync"):
                    os.sync()  # once for all; file by file took minutes for a million of them
                for entry in entries:
                    (into / entry.path).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(scratch / entry.path, into / entry.path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def refuse_full_disk(archive: Path, entries: Sequence[Entry], into: Path) -> None:
    needed = sum(entry.size + 4096 for entry in entries)  # a file fills whole blocks
    free = shutil.disk_usage(into).free
    if needed > free:
        raise UserError(f"{archive}: needs {needed:,} bytes in {into}, where {free:,} are free: free some space")


def write_files(archive: Path, kind: str, entries: Sequence[Entry], scratch: Path) -> None:
    by_name = {entry.name: entry for entry in entries}
    files = open_files(archive, kind, set(by_name))
    for name, content in tqdm(files, total=len(entries), desc="unpacking", unit="file", disable=None, leave=False):
        entry = by_name.pop(name)
        target = scratch / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        write_file(content, target, entry)
    if by_name:
        raise Damage(f"{len(by_name)} files are missing")


def write_file(content: IO[bytes], target: Path, entry: Entry) -> None:
    """Copy an entry while counting: what is declared may be untrue."""
    size = crc = 0
    with target.open("xb") as file:
        while data := content.read(CHUNK):
            size, crc = size + len(data), zlib.crc32(data, crc)
            if size > entry.size:
                break
            file.write(data)
    if (size, crc) != (entry.size, entry.crc):
        raise Damage(f"{entry} is not as long as declared, or damaged")
