"""Files put in place whole, told apart by their sha256, and folders kept to one process."""

import hashlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from kfold.errors import UserError


def atomic_write(path: Path, write: Callable[[Path], object] | bytes | str) -> None:
    """Put a file in place whole or not at all: a temporary in the same folder, fsync, replace, fsync of the folder.

    `write` is the content, or a function that writes a file at the path it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        if callable(write):
            write(temporary)
        else:
            temporary.write_bytes(write.encode() if isinstance(write, str) else write)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would keep team members out
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}): free space or mend rights") from error
    finally:
        temporary.unlink(missing_ok=True)


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

    The operating system drops the lock with its process, so a killed run leaves none behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder_path = FileLock(folder / ".lock"), folder / ".lock.holder"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = holder_path.read_text() if holder_path.exists() else "unknown process"
        raise UserError(f"{folder}: in use by {holder}: wait for it or stop it") from None
    try:
        now = datetime.now().isoformat(sep=" ", timespec="seconds")
        holder_path.write_text(f"process {os.getpid()} on {socket.gethostname()} since {now}")
        yield
    finally:
        holder_path.unlink(missing_ok=True)
        lock.release()
