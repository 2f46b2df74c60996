"""Copies of a teammate's run for import_run.py: only plain files that a stage writes, of their sizes and digests.

Whatever a stranger's file says is taken for text or numbers, never for a path, a link or code: no state of a training
(a pickle) is copied, nor a picture.
"""

import os
import re
import shutil
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kfold import artifacts
from kfold.artifacts import ALL_DATA, Workspace
from kfold.errors import UserError
from kfold.files import atomic_write
from kfold.seals import FILE_NAME, read_seals, write_sealed
from kfold.verify import OF_A_RUN, WRITTEN_BY_STAGES

MANIFEST = "manifest.json"
LONGEST_TEXT = 20 * 2**20  # bytes of a file that is read as text: a manifest, a table, settings
MOST_CELL_BYTES = 2000  # of a Parquet cell on average; ids are texts, all else are numbers
FOLD_FILE = (
    r"(oof|test|pseudo)\.parquet|(last|best|ema|swa|snapshot\d{1,4})\.safetensors|"
    r"(log|skipped|dropped|feature_map)\.csv|lightgbm(_\d{1,4})?\.txt"
)
ALONE = "leave the run out with --runs, or ask for a clean copy"


@dataclass
class Copied:
    """What was copied of a run. problems: why it cannot be taken; manifests: of each fold, by its number."""

    problems: list[str] = field(default_factory=list)
    manifests: dict[int, dict] = field(default_factory=dict)
    num_bytes: int = 0


def find_runs_dir(folder: Path) -> Path:
    """The folder of runs: `folder`/runs, or `folder` itself. Raises UserError."""
    for candidate in (folder / "runs", folder):
        if candidate.is_dir() and runs_in(candidate):
            return candidate
    raise UserError(
        f"{folder}: no runs in it, nor in its folder runs: name a teammate's repository, or its runs folder"
    )


def runs_in(folder: Path) -> list[str]:
    """Names of the runs in a folder of runs, in order. Raises UserError where it cannot be read."""
    try:
        return sorted(path.name for path in folder.iterdir() if holds_run(path))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}): mend its rights") from None


def holds_run(path: Path) -> bool:
    try:
        return (path / "config.yaml").is_file()
    except OSError:  # nobody may enter lost+found
        return False


def copy_run(source: Path, staged: Workspace, run: str, num_folds: int) -> Copied:
    """Copy the run folder `source` to `staged`, as far as it can be trusted by itself."""
    copied = Copied()
    folders = {number: source / staged.fold_dir(run, number).name for number in (*range(num_folds), ALL_DATA)}
    plans: list[tuple[Path, Path, str, int]] = []  # from, to, sha256, bytes
    for number, folder in folders.items():
        if number == ALL_DATA and not (folder / MANIFEST).exists():
            continue
        try:
            copied.manifests[number] = read_plain_manifest(folder)
            plans += plan_fold(folder, staged.fold_dir(run, number), copied.manifests[number])
        except UserError as error:
            copied.problems += error.problems
    copied.num_bytes = sum(size for *_, size in plans)
    free = shutil.disk_usage(staged.root).free
    if copied.num_bytes > free:
        copied.problems.append(f"{source}: has {copied.num_bytes:,} bytes, {free:,} are free here: free space")
    if not copied.problems:
        copied.problems += collect(lambda: copy_sealed(source, staged.run_dir(run), run_files(source)))
    if not copied.problems:
        for path, target, sha256, _ in plans:
            copied.problems += collect(lambda path=path, target=target, sha256=sha256: copy_plain(path, target, sha256))
        for number, folder in folders.items():
            if number in copied.manifests:
                target, manifest = staged.fold_dir(run, number), copied.manifests[number]
                copied.problems += collect(
                    lambda folder=folder, target=target, manifest=manifest: copy_fold_texts(folder, target, manifest)
                )
    return copied


def collect(work: Callable[[], object]) -> list[str]:
    try:
        work()
    except UserError as error:
        return error.problems
    return []


# What may be copied


def plain_size(path: Path) -> int:
    """Bytes of a regular file. Raises UserError for whatever else is there: a link may lead anywhere."""
    try:
        status = path.lstat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): {ALONE}") from None
    if stat.S_ISLNK(status.st_mode):
        raise UserError(f"{path}: is a link: {ALONE}")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: is no plain file: {ALONE}")
    return status.st_size


def refuse_long(path: Path) -> None:
    if (size := plain_size(path)) > LONGEST_TEXT:
        raise UserError(f"{path}: has {size:,} bytes, more than such a file can: {ALONE}")


def refuse_link(folder: Path) -> None:
    if folder.is_symlink():
        raise UserError(f"{folder}: is a link: {ALONE}")


def read_plain_manifest(folder: Path) -> dict:
    """The manifest of a finished fold. Raises UserError where there is none, or its list of files is none of ours."""
    refuse_link(folder)
    if not (folder / MANIFEST).exists():
        raise UserError(f"{folder}: not finished, it has no {MANIFEST}: import it when it is, or {ALONE}")
    refuse_long(folder / MANIFEST)
    manifest = artifacts.read_manifest(folder)
    for name, entry in manifest["files"].items():
        is_entry = isinstance(entry, dict) and set(entry) == {"sha256", "bytes"} and isinstance(entry["bytes"], int)
        if not (is_entry and re.fullmatch("[0-9a-f]{64}", str(entry["sha256"])) and re.fullmatch(FOLD_FILE, name)):
            raise UserError(f"{folder / MANIFEST}: lists {name[:100]!r}, which no stage writes: {ALONE}")
    return manifest


def plan_fold(folder: Path, target: Path, manifest: dict) -> list[tuple[Path, Path, str, int]]:
    """From, to, sha256 and size of the files that the manifest vouches for, and of the manifest."""
    plan, problems = [], []
    for name, entry in manifest["files"].items():
        path = folder / name
        problems += collect(lambda path=path: plain_size(path))
        if not problems and path.lstat().st_size != entry["bytes"]:
            problems.append(f"{path}: damaged or changed, it has other than {entry['bytes']} bytes: {ALONE}")
        plan.append((path, target / name, entry["sha256"], entry["bytes"]))
    if problems:
        raise UserError(problems)
    return plan


def run_files(source: Path) -> list[str]:
    """Names of the run's own files that are taken: those every run has, and whatever else a stage writes there."""
    refuse_link(source)
    others = [name for name in WRITTEN_BY_STAGES if name not in OF_A_RUN and not name.endswith(".png")]
    return [*OF_A_RUN, *(name for name in others if name != "imported.json" and (source / name).exists())]


# Copying


def copy_sealed(source: Path, target: Path, names: Sequence[str]) -> None:
    """Copy files that SHA256SUMS vouches for. Raises UserError where it does not."""
    if names and (source / FILE_NAME).exists():
        refuse_long(source / FILE_NAME)
    seals, problems = read_seals(source) if names else {}, []
    for name in names:
        path = source / name
        try:
            refuse_long(path)
            content = read_plain(path)
        except UserError as error:
            problems += error.problems
            continue
        write_sealed(target / name, content)
        if artifacts.file_sha256(target / name) not in seals.get(name, []):
            problems.append(f"{path}: damaged or changed (its sha256 is not in {FILE_NAME}): {ALONE}")
    if problems:
        raise UserError(problems)


def copy_fold_texts(folder: Path, target: Path, manifest: dict) -> None:
    """The manifest, as it was read, and files of a fold's folder that SHA256SUMS vouches for beside it."""
    artifacts.save_manifest(target, manifest)
    names = ("pseudo.parquet", "dropped.csv")
    copy_sealed(folder, target, [name for name in names if (folder / name).exists()])


def copy_plain(path: Path, target: Path, sha256: str) -> None:
    """Copy a file. Raises UserError where the copy is not what the manifest says: the copy is what will be used."""
    handle = open_plain(path)
    with os.fdopen(handle, "rb") as file:

        def write(temporary: Path) -> None:
            with temporary.open("wb") as copy:
                shutil.copyfileobj(file, copy, 2**20)

        atomic_write(target, write)
    if artifacts.file_sha256(target) != sha256:
        raise UserError(f"{path}: damaged or changed (sha256 differs from {MANIFEST}): {ALONE}")


def read_plain(path: Path) -> bytes:
    with os.fdopen(open_plain(path), "rb") as file:
        return file.read(LONGEST_TEXT + 1)


def open_plain(path: Path) -> int:
    """Neither waits for a pipe nor follows a link that has taken the file's place since."""
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): {ALONE}") from None


def refuse_bomb(path: Path, most_rows: int, num_columns: int) -> None:
    """Raise UserError for a Parquet file that claims more than it can hold: reading it would fill the memory."""
    try:
        metadata = pq.read_metadata(path)
        claimed = sum(metadata.row_group(place).total_byte_size for place in range(metadata.num_row_groups))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: damaged ({str(error).splitlines()[0]}): {ALONE}") from None
    most_bytes = 2**20 + most_rows * (num_columns * 8 + MOST_CELL_BYTES)
    if metadata.num_rows > most_rows or metadata.num_columns > num_columns or claimed > most_bytes:
        raise UserError(
            f"{path}: claims {metadata.num_rows:,} rows, {metadata.num_columns} columns and {claimed:,} bytes, at most "
            f"{most_rows:,}, {num_columns} and {most_bytes:,} are expected: {ALONE}"
        )
