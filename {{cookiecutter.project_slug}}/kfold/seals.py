"""SHA256SUMS: the sha256 of files that no manifest lists, in a folder's own file, which `sha256sum -c` reads as well.

A kill at any moment leaves file and seal in agreement. While a file is replaced, SHA256SUMS lists its old and its new
digest, two lines, and either is right; then the new one alone. A file that is not there counts as one of 0 bytes. The
last line is a comment with the digest of the lines above, so that no byte of SHA256SUMS itself can change unseen.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from kfold.errors import UserError
from kfold.files import atomic_write, file_sha256

FILE_NAME = "SHA256SUMS"
ABSENT = hashlib.sha256(b"").hexdigest()  # stands for "not there", which is right only while two lines are listed
REMEDY = "run the stage that made it again with --overwrite"

Seals = dict[str, list[str]]  # file name -> digests, one but during a write


def write_sealed(path: Path, content: bytes | str) -> None:
    """`atomic_write`, with the file's digest in its folder's SHA256SUMS."""
    data = content.encode() if isinstance(content, str) else content
    replace_sealed(path, hashlib.sha256(data).hexdigest(), lambda: atomic_write(path, data))


def remove_sealed(path: Path) -> None:
    """Delete a file, if it is there, and its line."""
    if path.exists() or path.name in read_seals(path.parent, trusting=True):
        replace_sealed(path, ABSENT, lambda: path.unlink(missing_ok=True))


def replace_sealed(path: Path, digest: str, write) -> None:
    """List the digest beside the present one, `write`, then list it alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.parent / ".seals.lock", timeout=60):  # folds of a run may start at once
            seals = read_seals(path.parent, trusting=True)
            before = seals.get(path.name) or [file_sha256(path) if path.is_file() else ABSENT]
            save_seals(path.parent, {**seals, path.name: list(dict.fromkeys([*before, digest]))})
            write()
            save_seals(path.parent, {**seals, path.name: [digest]})
    except Timeout:
        raise UserError(
            f"{path}: another process has kept its folder for a minute: stop that, run this again"
        ) from None


def check_seals(folder: Path) -> tuple[set[str], list[str]]:
    """The names that SHA256SUMS lists, and a line for each file that does not fit it. Names without a problem are safe.

    Nothing is listed where there is no SHA256SUMS.
    """
    try:
        seals = read_seals(folder)
    except UserError as error:
        return set(read_seals(folder, trusting=True)), error.problems
    problems = [problem for name, digests in seals.items() if (problem := compare(folder / name, digests))]
    return set(seals), problems


def refuse_broken_seal(path: Path) -> None:
    """Raise UserError where SHA256SUMS lists another digest of the file; a file that is not listed passes."""
    digests = read_seals(path.parent).get(path.name)
    if digests and (problem := compare(path, digests)):
        raise UserError(problem)


def compare(path: Path, digests: list[str]) -> str:
    """What is wrong with a file; "" where it has one of the digests."""
    if not path.exists():
        return "" if ABSENT in digests else f"{path}: missing, but listed in {FILE_NAME}: {REMEDY}"
    if not path.is_file() or file_sha256(path) not in digests:
        return f"{path}: damaged or changed (sha256 differs from {FILE_NAME}): {REMEDY}"
    return ""


# The file


def save_seals(folder: Path, seals: Mapping[str, list[str]]) -> None:
    atomic_write(folder / FILE_NAME, seals_text(seals))


def seals_text(seals: Mapping[str, list[str]]) -> str:
    kept = {name: digests for name, digests in sorted(seals.items()) if digests != [ABSENT]}
    lines = "".join(f"{digest}  {name}\n" for name, digests in kept.items() for digest in digests)
    return f"{lines}# {hashlib.sha256(lines.encode()).hexdigest()}\n"


def read_seals(folder: Path, trusting: bool = False) -> Seals:
    """The digests by file name. Raises UserError unless the text is exactly what `save_seals` writes.

    trusting: take what can be read, for a writer that must not lose the other lines; the damage stays to be seen.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return {}
    try:
        text = path.read_bytes().decode(errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): put the file back") from None
    seals: Seals = {}
    for line in text.split("\n"):
        if match := re.fullmatch(r"([0-9a-f]{64})  ([^/\0]+)", line):
            seals.setdefault(match[2], []).append(match[1])
    if not trusting and text != seals_text(seals):
        raise UserError(f"{path}: damaged or changed by hand: compare it with `sha256sum *`, or {REMEDY}")
    return seals
