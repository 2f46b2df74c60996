"""What a benchmark says of the machine that it runs on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

LIBRARIES = (
    "torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "numpy", "scikit-learn", "lightgbm",
    "cookiecutter", "fastai", "lightning", "autogluon.multimodal",
)  # fmt: skip


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"


def load() -> str:
    return f"load of the machine {os.getloadavg()[0]:.1f} (mean of the last minute, this process included)"


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def num_workers() -> int:
    """Loader processes that the peers get: one a core, as PyTorch's warnings suggest; 8 at most."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def describe_machine() -> dict[str, object]:
    """What results are kept with: processor, cores, memory (GB), GPU, system."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "system": platform.system(),
        "python": platform.python_version(),
    }


def processor(path: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = [line for line in path.read_text().splitlines() if line.startswith("model name")]
        return lines[0].partition(":")[2].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of the libraries that are there."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
