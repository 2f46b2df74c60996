"""Files put in place whole, told apart by their sha256, and folders kept to one process."""

import hashlib
import os
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from kfold.errors import UserError

ORPHAN_SECONDS = 20  # PyTorch's loader processes notice within 5 s that their parent is gone


def atomic_write(
    path: Path,
    write: Callable[[Path], object] | bytes | str,
    before_replace: Callable[[], object] = lambda: None,
) -> None:
    """Put a file in place whole or not at all: a temporary in the same folder, fsync, replace, fsync of the folder.

    `write` is the content, or a function that writes a file at the path it is given. `before_replace` is called when
    the new content is safe on the disk and the old file is still there. Raises UserError when the disk refuses.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        os.close(handle)
        if callable(write):
            write(temporary)
        else:
            temporary.write_bytes(write.encode() if isinstance(write, str) else write)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would keep team members out
        sync(temporary)
        before_replace()
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}): free space or mend rights") from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # what was raised says more
                temporary.unlink(missing_ok=True)


def keep_previous(path: Path, previous_path: Path) -> None:
    """Rename a file, if it is there, over its older generation."""
    with suppress(FileNotFoundError):
        os.replace(path, previous_path)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder. Raises UserError that names the holder.

    The operating system drops the lock with its process. What a killed one left (its name, half-written temporaries) is
    taken over and said.
    """
    lock, holder_path = FileLock(folder / ".lock"), folder / ".lock.holder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        holder = holder_path.read_text(errors="replace") if holder_path.exists() else "unknown process"
        if not died_here(holder):
            raise UserError(f"{folder}: in use by {holder}: wait for it or stop it") from None
        try:
            lock.acquire(timeout=ORPHAN_SECONDS)
        except Timeout:
            raise UserError(f"{folder}: {holder} is gone, but its children still run: stop them") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}): mend its rights") from None
    try:
        take_over(folder, holder_path)
        yield
    finally:
        holder_path.unlink(missing_ok=True)
        lock.release()


def take_over(folder: Path, holder_path: Path) -> None:
    """Write this process's name into the folder; tidy up after one that was killed, and say so."""
    try:
        if holder_path.exists():
            print(
                f"{folder}: taken over from {holder_path.read_text(errors='replace')}, which was killed",
                file=sys.stderr,
            )
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        now = datetime.now().isoformat(sep=" ", timespec="seconds")
        holder_path.write_text(f"process {os.getpid()} on {socket.gethostname()} since {now}")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}): free space or mend rights") from None


def died_here(holder: str) -> bool:
    """Whether the text of a holder names a process of this machine that is gone: its children may keep the lock."""
    named = re.match(r"process (\d+) on (\S+) since", holder)
    if not named or named[2] != socket.gethostname() or os.name == "nt":
        return False
    try:
        os.kill(int(named[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
