"""Memory that this process may still take, without swapping: what the machine has free, or its control group less."""

from pathlib import Path

from kfold.doctor import cgroup_limits, physical_memory


def free_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes. Where the system does not tell (no Linux): its physical memory, or infinity."""
    available = read_number(meminfo, "MemAvailable:", 1024)
    limit = cgroup_limits(cgroup)[1]
    if limit < float("inf"):
        # Files that it has read count as used, but make room when asked.
        cached = read_number(cgroup / "memory.stat", "inactive_file") or 0
        limit -= max(0, read_number(cgroup / "memory.current", "") or 0) - cached
    return min(physical_memory() if available is None else available, limit)


def read_number(path: Path, name: str, unit: int = 1) -> float | None:
    """The number behind `name`, times its unit; None where it cannot be read."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith(name):
                return float(line.removeprefix(name).split()[0]) * unit
    except (OSError, ValueError, IndexError):
        pass
    return None
