"""The kinds of archives: what is in one, and the contents of its files; whatever is damaged is one line.

Entries are listed with their CRC-32: of a zip from its directory, of a tar by reading all of it.
"""

import bz2
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kfold.data.archive_rules import BY_HAND, Entry, Limits, too_large
from kfold.errors import UserError

CHUNK = 2**20  # bytes read at once
LONGEST_HEADER = 2**24  # bytes; a longer header of a tar is made to fill the memory
STARTS = {  # first bytes of a file -> how to open it
    b"PK\3\4": "zip",
    b"PK\5\6": "zip",  # without entries
    b"\x1f\x8b": "gz",
    b"BZh": "bz2",
    b"\xfd7zXZ\0": "xz",
}
OPENERS = {"tar": open, "gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
FOREIGN = {b"7z\xbc\xaf": "a 7z archive", b"Rar!": "a RAR archive"}
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
TAR_KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


class Damage(Exception):
    """What our own checks of an archive raise; the libraries raise others."""


DAMAGE = (  # what the libraries raise for damaged files; RuntimeError: also a recursion in a tar's headers
    Damage,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
    LookupError,
    RuntimeError,
    OverflowError,
)


@contextmanager
def damage_named(archive: Path) -> Iterator[None]:
    """Turn what the libraries raise for a damaged archive into a UserError; errors of the disk keep their reason."""
    try:
        yield
    except NotImplementedError as error:
        raise UserError(f"{archive}: packed in a way that Python cannot unpack ({error}): {BY_HAND}") from None
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{archive}: is damaged or cut short ({reason}): download it again") from None
    except OSError as error:
        if error.errno is None:  # gzip's and bz2's own
            raise UserError(f"{archive}: is damaged or cut short ({error}): download it again") from None
        raise UserError(f"{archive}: cannot be unpacked ({error.strerror}): free space or mend rights") from None


def list_entries(archive: Path, kind: str, limits: Limits) -> list[Entry]:
    return list_zip(archive) if kind == "zip" else list_tar(archive, kind, limits)


def open_files(archive: Path, kind: str, wanted: set[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of the wanted files, in the archive's order, each to be read before the next."""
    return open_zip_files(archive, wanted) if kind == "zip" else open_tar_files(archive, kind, wanted)


def archive_kind(archive: Path) -> str:
    """zip, or of a tar how it is packed: gz, bz2, xz, or tar for not at all; by content. Raises UserError."""
    if not archive.is_file():
        raise UserError(f"{archive}: no such file: download it there")
    with archive.open("rb") as file:
        start = file.read(512)
    for first, kind in STARTS.items():
        if start.startswith(first):
            return kind
    if start[257:262] == b"ustar":
        return "tar"
    raise UserError(f"{archive}: {describe_foreign(start)}")


def describe_foreign(start: bytes) -> str:
    if not start.strip(b"\0"):
        return "is empty, or nothing but zero bytes: download it again"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"<", b"{"):
        return "is a web page or an error message, no archive: look into it, log in and download it again"
    for first, what in FOREIGN.items():
        if start.startswith(first):
            return f"is {what}, only .zip and .tar (.gz, .bz2, .xz) are unpacked: {BY_HAND}"
    return f"is no .zip or .tar archive (it starts with {start[:8]!r}): download it again"


# Zip


def list_zip(archive: Path) -> list[Entry]:
    with zipfile.ZipFile(archive) as file:
        infos = file.infolist()
    if (len(infos) - declared_entries(archive)) % 2**16:  # old programs write the count's last 16 bits
        raise Damage("its list of entries is damaged")
    return [Entry(info.orig_filename, zip_kind(info), info.file_size, info.compress_size, info.CRC) for info in infos]


def declared_entries(archive: Path) -> int:
    """The number of entries that the end of a zip says; zipfile does not compare, and a damaged length hides some."""
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - 2**16 - 200))  # both end records and the longest comment
        tail = file.read()
    end = tail.rfind(b"PK\5\6")
    (number,) = struct.unpack_from("<H", tail, end + 10)
    large = tail.rfind(b"PK\6\6", 0, end)
    return struct.unpack_from("<Q", tail, large + 32)[0] if number == 2**16 - 1 and large >= 0 else number


def zip_kind(info: zipfile.ZipInfo) -> str:
    mode = stat.S_IFMT(info.external_attr >> 16)
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a symbolic link" if mode == stat.S_IFLNK else "a device, pipe or socket"
    if info.flag_bits & 1:
        return "encrypted"
    if info.compress_type not in METHODS:
        return f"packed by method {info.compress_type}, which Python does not know"
    return "folder" if info.orig_filename.endswith(("/", "\\")) else "file"


def open_zip_files(archive: Path, wanted: set[str]) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if info.orig_filename in wanted:
                with file.open(info) as content:
                    yield info.orig_filename, content


# Tar


class ForwardReader:
    """A tar's bytes, unpacked, which can only be read onwards: a header that leads back, or asks for more than it may,
    is damage (tarfile by itself would run for ever, or fill the memory)."""

    def __init__(self, file: IO[bytes], most_bytes: int):
        self.file, self.most_bytes, self.position, self.last = file, most_bytes, 0, b""

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LONGEST_HEADER:
            raise Damage(f"a header of {size} bytes")
        data = self.last = self.file.read(size)
        self.position += len(data)
        if self.position > self.most_bytes:
            raise TooLarge
        return data

    def seek(self, position: int) -> int:
        if position < self.position:
            raise Damage("a header leads backwards")
        while self.position < position and self.read(min(CHUNK, position - self.position)):
            pass
        return self.position


class TooLarge(Exception):
    """More bytes come out of a packed tar than its size makes credible."""


def list_tar(archive: Path, kind: str, limits: Limits) -> list[Entry]:
    """All entries, after reading the whole archive once: tar has no list and no checksums of its files."""
    archive_bytes = archive.stat().st_size
    most_bytes = limits.most_bytes(archive_bytes)
    entries: list[Entry] = []
    try:
        with open_tar(archive, kind, most_bytes) as (tar, reader):
            for member in iter(tar.next, None):
                kind_of = tar_kind(member)
                crc = crc_of(tar.extractfile(member)) if kind_of == "file" else 0
                entries.append(Entry(member.name, kind_of, member.size, crc=crc))
                tar.members.clear()  # they are kept for nothing
                if len(entries) > limits.num_entries:
                    return entries  # refused for their number
            refuse_early_end(reader)
    except TooLarge:
        raise UserError(f"{archive}: {too_large(archive_bytes, most_bytes, limits)}") from None
    return entries


@contextmanager
def open_tar(archive: Path, kind: str, most_bytes: int) -> Iterator[tuple[tarfile.TarFile, ForwardReader]]:
    with OPENERS[kind](archive, "rb") as file:
        reader = ForwardReader(file, most_bytes)
        with tarfile.open(fileobj=reader, mode="r:", errors="surrogateescape") as tar:
            yield tar, reader


def tar_kind(member: tarfile.TarInfo) -> str:
    if member.issparse():
        return "a sparse file"
    return TAR_KINDS.get(member.type, "of an unknown kind")


def refuse_early_end(reader: ForwardReader) -> None:
    """Raise unless the archive ends with zeros: tarfile takes a damaged header, or none, for the end as well."""
    if reader.last != bytes(tarfile.BLOCKSIZE):
        raise Damage("unexpected end of data, or a damaged header")
    while data := reader.read(CHUNK):
        if data.strip(b"\0"):
            raise Damage("there is more after the end")


def open_tar_files(archive: Path, kind: str, wanted: set[str]) -> Iterator[tuple[str, IO[bytes]]]:
    with open_tar(archive, kind, most_bytes=2**63) as (tar, _):
        for member in iter(tar.next, None):
            if member.name in wanted and tar_kind(member) == "file":
                yield member.name, tar.extractfile(member)
            tar.members.clear()


def crc_of(file: IO[bytes]) -> int:
    crc = 0
    while data := file.read(CHUNK):
        crc = zlib.crc32(data, crc)
    return crc
