"""What an archive may hold: names that stay in their folder and apart on every disk, sizes that can be true."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

WINDOWS_DEVICES = {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)}
LONGEST_PART = 255  # bytes of one name between slashes; what usual file systems take
LONGEST_PATH = 1000  # bytes; Linux takes 4096 with the folder's own
DEEPEST = 64  # folders within each other
SCRATCH = ".unpacking"  # folder within the target, on the same disk
RESERVED = (SCRATCH, ".lock", ".lock.holder")  # names that unpacking itself needs
BY_HAND = "ask for a clean archive, or look into it and unpack it by hand"


@dataclass(frozen=True)
class Limits:
    """Where an archive becomes suspicious. Small bombs harm nobody, so a ratio counts only from some size on.

    Measured with deflate: JPEG and PNG 1:1, a CSV of ids and labels 5:1 to 30:1, blank masks up to 1030:1, which is
    the most that deflate can do; bzip2 and xz reach several thousand.
    """

    num_entries: int = 3_000_000  # the largest image competitions have about two million files
    num_bytes: int = 2**40  # unpacked, in all; the largest competitions have half of that
    ratio: float = 200  # unpacked to packed, of a single entry ...
    ratio_from: int = 100 * 2**20  # ... of more bytes than this
    total_ratio: float = 100  # of the whole archive ...
    total_ratio_from: int = 2**30  # ... of more bytes than this

    def most_bytes(self, archive_bytes: int) -> int:
        """How far an archive of this size may be unpacked."""
        return min(self.num_bytes, max(self.total_ratio_from, int(self.total_ratio * archive_bytes)))


@dataclass(frozen=True)
class Entry:
    name: str  # as the archive spells it
    kind: str  # file, folder, or in words what else it is
    size: int  # bytes, as declared
    packed: int = 0  # bytes within the archive; 0: not known
    crc: int = 0  # CRC-32 of the content

    @property
    def path(self) -> str:
        """Relative, with single forward slashes; Windows programs write backslashes."""
        return "/".join(part for part in re.split(r"[/\\]", self.name) if part not in ("", "."))

    def __str__(self) -> str:
        return ascii(self.name if len(self.name) <= 100 else self.name[:100] + "...")


def find_problems(entries: Sequence[Entry], archive_bytes: int, limits: Limits) -> list[str]:
    """One line for each entry, or for the whole, that is to be refused; empty when all are good."""
    sizes = find_size_problems(entries, archive_bytes, limits)
    odd = [f"entry {entry}: {problem}" for entry in entries if (problem := find_odd(entry))]
    return sizes + (odd or find_clashes(entries))


def find_odd(entry: Entry) -> str:
    """What is wrong with one entry taken by itself; empty when nothing is."""
    name, parts = entry.name, entry.path.split("/")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return f"its name holds a control character or is not Unicode: {BY_HAND}"
    if entry.kind not in ("file", "folder"):
        return f"is {entry.kind}, only files and folders are unpacked: {BY_HAND}"
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return f"an absolute path leads out of the folder: {BY_HAND}"
    if ".." in parts:
        return f"leads out of the folder: {BY_HAND}"
    if parts == [""] and entry.kind == "file":
        return f"a file without a name: {BY_HAND}"
    if any(part.casefold() == ".git" for part in parts):
        return f"part of a git repository, whose settings can run commands: {BY_HAND}"
    if parts[0].casefold() in RESERVED:
        return f"has a name that unpacking itself needs: {BY_HAND}"
    longest = max(len(part.encode()) for part in parts)
    if longest > LONGEST_PART or len(name.encode()) > LONGEST_PATH or len(parts) > DEEPEST:
        return f"its name is too long, or too deep in folders: {BY_HAND}"
    return ""


def find_clashes(entries: Sequence[Entry]) -> list[str]:
    """Names that are there twice, or that some disk cannot tell apart, and files that are folders too."""
    problems, files, folders, seen = [], {}, {}, {""}
    for entry in entries:
        if entry.kind == "file":
            other = files.setdefault(disk_key(entry.path), entry)
            if other is not entry and other.path == entry.path:
                problems.append(f"entry {entry}: is in it twice: {BY_HAND}")
            elif other is not entry:
                problems.append(f"entry {entry}: many disks take it for {other}, one would be lost: {BY_HAND}")
        folder = entry.path if entry.kind == "folder" else entry.path.rpartition("/")[0]
        while folder not in seen:
            seen.add(folder)
            other = folders.setdefault(disk_key(folder), folder)
            if other != folder:
                problems.append(f"entry {entry}: many disks take its folder for {ascii(other)}: {BY_HAND}")
            folder = folder.rpartition("/")[0]
    for key in sorted(files.keys() & folders.keys()):
        problems.append(f"entry {files[key]}: is a file and also a folder of others: {BY_HAND}")
    return problems


def disk_key(path: str) -> str:
    """Equal for names that a disk may take for one: case and the composition of accents are ignored."""
    return unicodedata.normalize("NFC", path.casefold())


def find_size_problems(entries: Sequence[Entry], archive_bytes: int, limits: Limits) -> list[str]:
    total = sum(entry.size for entry in entries)
    if len(entries) > limits.num_entries:
        return [f"has {len(entries):,} entries, at most {limits.num_entries:,} are unpacked: {BY_HAND}"]
    if total > limits.most_bytes(archive_bytes):
        return [too_large(archive_bytes, total, limits)]
    if sum(entry.packed for entry in entries) > archive_bytes:
        return [f"its entries overlap, as in an archive made to fill the disk: {BY_HAND}"]
    return [
        f"entry {entry}: would grow from {packed:,} to {entry.size:,} bytes, as if to fill the disk: {BY_HAND}"
        for entry in entries
        if entry.size > max(limits.ratio_from, limits.ratio * (packed := entry.packed or archive_bytes))
    ]


def too_large(archive_bytes: int, total: int, limits: Limits) -> str:
    most = limits.most_bytes(archive_bytes)
    return f"would grow from {archive_bytes:,} to {total:,} bytes or more, at most {most:,} are unpacked: {BY_HAND}"


def find_conflicts(entries: Sequence[Entry], into: Path, overwrite: bool) -> list[str]:
    """What stands in the way in the folder: `entries` are the files that are not there with the same content."""
    problems = []
    for folder in sorted({str(parent) for entry in entries for parent in PurePosixPath(entry.path).parents} - {"."}):
        path = into / folder
        if path.is_symlink() and not path.resolve().is_relative_to(into.resolve()):
            problems.append(f"{path}: is a link out of {into}: unpack --into where it leads, or take it away")
        elif path.exists() and not path.is_dir():
            problems.append(f"{path}: is a file, and the archive has a folder of that name: move it away")
    for entry in entries:
        path = into / entry.path
        if path.is_dir():
            problems.append(f"{path}: is a folder, and the archive has a file of that name: move it away")
        elif not overwrite and (path.exists() or path.is_symlink()):
            problems.append(f"{path}: is there already and differs from the archive's: move it away, or --overwrite")
    return problems


def windows_warnings(entries: Sequence[Entry]) -> list[str]:
    """Names that are good here and not on Windows."""
    odd = []
    for entry in entries:
        for part in entry.path.split("/"):
            stem = part.split(".")[0].rstrip().casefold()
            if stem in WINDOWS_DEVICES or part.endswith((".", " ")) or re.search(r'[<>:"|?*]', part):
                odd.append(entry)
                break
    if not odd:
        return []
    return [f"{len(odd)} of {len(entries)} names cannot be files on Windows, the first is {odd[0]}"]
