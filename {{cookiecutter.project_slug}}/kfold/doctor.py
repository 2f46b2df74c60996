"""Is this machine fit to train? Asked by `make_folds.py --check`, so that hours are not lost to what a minute can tell.

Each check is a function of its own with inputs that a test can replace, and adds lines to a Diagnosis.
"""

import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

from kfold.device_probe import Diagnosis, check_device, first_line
from kfold.files import sync

MIN_DISK = 2e9  # bytes: five folds with three weights files each of a ResNet-50 are 1.5 GB
# Bytes of shared memory for a loader process: it keeps two batches ahead, and two of 32 images of 512 px are 50 MB.
MIN_SHARED_PER_WORKER = 64e6
MIN_MEMORY = 4e9  # bytes: torch and two loader processes take 2 GB before the first image
MAX_CLOCK_DIFFERENCE = 60  # seconds, between this machine and the disk's
OTHER_NAMES = {  # builds that serve as well
    "opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")
}


Check = Callable[[Diagnosis, Path], None]  # (where to put lines, the repository)


def examine(root: Path, checks: Mapping[str, Check]) -> Diagnosis:
    """All checks; one that fails itself is a warning."""
    found = Diagnosis()
    for name, check in checks.items():
        try:
            check(found, root)
        except Exception as error:  # a machine that is odd in a new way must not stop the check of the data
            found.warnings.append(f"machine: {name} cannot be told ({type(error).__name__}: {first_line(str(error))})")
    return found


# Disk and memory


def check_disk(found: Diagnosis, root: Path, usage: Callable = shutil.disk_usage) -> None:
    free = usage(root).free
    found.notes.append(f"machine: {gigabytes(free)} free on the disk of {root}")
    if free < MIN_DISK:
        found.warnings.append(
            f"machine: only {gigabytes(free)} free on the disk of {root}, and a run of five folds takes "
            f"{gigabytes(MIN_DISK)}: free space, or delete runs that are not needed"
        )


def check_writing(
    found: Diagnosis, root: Path, write: Callable[[Path], None] = lambda path: path.write_bytes(b"x")
) -> None:
    """Write a file, flush it to the disk, compare its time with the clock, and delete it."""
    path = None
    try:
        handle, name = tempfile.mkstemp(dir=root, prefix=".doctor.")
        os.close(handle)
        path = Path(name)
        write(path)
        sync(path)
        sync(root)
        difference = abs(path.stat().st_mtime - time.time())
    except OSError as error:
        found.errors.append(
            f"machine: {root}: no file can be written and flushed there ({error.strerror or error}): "
            f"mend its rights, or copy the repository to a disk that can be written"
        )
        return
    finally:
        if path is not None:
            path.unlink(missing_ok=True)
    if difference > MAX_CLOCK_DIFFERENCE:
        found.warnings.append(
            f"machine: its clock and that of the disk of {root} differ by {difference:.0f} s: set the clock"
        )


def check_shared_memory(
    found: Diagnosis,
    root: Path,
    folder: Path = Path("/dev/shm"),
    num_workers: int = 2,
    usage: Callable = shutil.disk_usage,
) -> None:
    """Loader processes hand their batches over there; where it is full they die by SIGBUS."""
    if not folder.is_dir():
        return  # no Linux: handed over in other ways
    total, _, free = usage(folder)
    found.notes.append(f"machine: {gigabytes(total)} of shared memory in {folder}, {gigabytes(free)} free")
    if free < num_workers * MIN_SHARED_PER_WORKER:
        fitting = int(free // MIN_SHARED_PER_WORKER)
        found.warnings.append(
            f"machine: {folder} has {free / 1e6:.0f} MB free, {num_workers} loader processes want "
            f"{MIN_SHARED_PER_WORKER / 1e6:.0f} MB each: set workers=threads, or workers={fitting}, or start the "
            f"container with --shm-size=2g"
        )


def check_processors(
    found: Diagnosis, root: Path, cgroup: Path = Path("/sys/fs/cgroup"), memory: int | None = None
) -> None:
    """Cores and memory that this process may use: a container's limits count, not the machine's."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    memory = memory or physical_memory()
    core_limit, memory_limit = cgroup_limits(cgroup)
    cores, memory = min(cores, core_limit), min(memory, memory_limit)
    known = f", {gigabytes(memory)} of memory" if memory < float("inf") else ""
    found.notes.append(f"machine: {cores:g} cores{known}, {platform.system()} {platform.machine()}")
    if memory < MIN_MEMORY:
        found.warnings.append(
            f"machine: only {gigabytes(memory)} of memory: take workers=0 and a small batch_size, or more memory"
        )


def physical_memory() -> float:
    """Bytes; infinite where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def cgroup_limits(cgroup: Path) -> tuple[float, float]:
    """Cores and bytes that the control group grants (version 2, else 1); infinite where it sets no limit."""

    def numbers(name: str) -> list[float]:
        try:
            words = (cgroup / name).read_text().split()
        except OSError:
            return []
        return [float(word) if re.fullmatch(r"-?\d+", word) else float("inf") for word in words]

    quota = numbers("cpu.max") or numbers("cpu/cpu.cfs_quota_us") + numbers("cpu/cpu.cfs_period_us")
    cores = quota[0] / quota[1] if len(quota) == 2 and quota[0] > 0 and quota[1] > 0 else float("inf")
    memory = numbers("memory.max") or numbers("memory/memory.limit_in_bytes")
    return cores, memory[0] if memory else float("inf")


# Packages


def check_packages(
    found: Diagnosis,
    root: Path,
    version_of: Callable[[str], str] = version,
    python: tuple[int, int] = sys.version_info[:2],
) -> None:
    """What requirements.txt asks for; the remedy is one command for all."""
    if python < (3, 11):
        found.errors.append(f"machine: Python {python[0]}.{python[1]}: 3.11 or newer is needed")
    path, odd = root / "requirements.txt", []
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if not text or text.startswith("-"):
            continue
        wanted = Requirement(text)
        there = installed(wanted.name, version_of)
        if there is None:
            odd.append(text)
            found.warnings.append(f"machine: {wanted.name} is not installed: pip install '{text}'")
        elif not wanted.specifier.contains(there, prereleases=True):
            odd.append(text)
            found.warnings.append(f"machine: {wanted.name} is {there}: pip install '{text}'")
    found.notes.append(
        f"machine: Python {python[0]}.{python[1]}, "
        + (f"{len(odd)} packages do not fit requirements.txt" if odd else "all packages fit requirements.txt")
    )


def installed(name: str, version_of: Callable[[str], str]) -> str | None:
    for candidate in (name, *OTHER_NAMES.get(name, ())):
        try:
            return version_of(candidate)
        except PackageNotFoundError:
            continue
    return None


def gigabytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB"


CHECKS: dict[str, Check] = {
    "free space": check_disk,
    "writing": check_writing,
    "shared memory": check_shared_memory,
    "cores and memory": check_processors,
    "packages": check_packages,
    "the device": check_device,
}
