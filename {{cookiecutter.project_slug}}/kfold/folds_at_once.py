"""How many folds to train at the same time, for train.py --parallel: by what the machine has and one fold leaves over.

Nothing here touches a GPU, which would take some of its memory: PyTorch counts them, nvidia-smi says how they are used.
"""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from kfold.errors import UserError
from kfold.training.precision import choose_device

CORES_A_FOLD = 2  # one launches kernels, one gets batches ready
MARGIN = 1.5  # of a fold's memory: a batch that found no room would be split, which changes the fold's bytes
LEAST_BUSY = 0.01
NUM_LOOKS, SECONDS_APART = 10, 0.5  # nvidia-smi's share is a mean of less than a second


@dataclass(frozen=True)
class Machine:
    device: str  # cuda, mps or cpu
    gpus: tuple[str, ...]  # what CUDA_VISIBLE_DEVICES calls them
    cores: int


@dataclass(frozen=True)
class OneFold:
    """A GPU while one fold trains on it. busy: the share (0..1) of the time that it has something to do."""

    busy: float
    num_bytes: float  # that the fold takes
    free_bytes: float  # beside it


def read_wish(text: str) -> int | None:
    """`auto` (None) or a number of folds. Raises UserError."""
    if text == "auto":
        return None
    if not text.isdecimal() or not int(text):
        raise UserError(f"--parallel {text}: write a number of folds from 1 on, or auto")
    return int(text)


def folds_at_once(wish: int | None, num_folds: int, machine: Machine) -> tuple[int | None, str]:
    """How many of the folds that are to be trained, and why; None where one fold has to be measured first."""
    if wish is not None or num_folds == 1:
        return min(wish or 1, num_folds), "as asked for" if wish else "one is left"
    if machine.device != "cuda":
        return 1, f"a fold keeps the {machine.device} busy by itself (--parallel 2 trains two all the same)"
    if len(machine.gpus) > 1:
        return min(len(machine.gpus), num_folds), f"one on each of {len(machine.gpus)} GPUs"
    return None, ""


def folds_beside(one: OneFold, num_folds: int, cores: int) -> tuple[int, str]:
    """How many folds one GPU takes at once, and why: as its memory holds, as it has time for, as the cores can feed."""
    by_memory = 1 + int(max(0.0, one.free_bytes) / (MARGIN * max(one.num_bytes, 1.0)))
    by_time = int(1 / max(one.busy, LEAST_BUSY))
    by_cores = max(1, cores // CORES_A_FOLD)
    reason = (
        f"with one fold the GPU is busy {one.busy:.0%} of the time, the fold takes {one.num_bytes / 1e9:.1f} GB, "
        f"{one.free_bytes / 1e9:.1f} GB are free; {cores} cores"
    )
    return min(by_memory, by_time, by_cores, num_folds), reason


def this_machine(cores: int, environment: Mapping[str, str] = os.environ) -> Machine:
    device = choose_device().type
    count = torch.cuda.device_count() if device == "cuda" else 0
    named = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return Machine(device, tuple(named[:count] if named else map(str, range(count))), cores)


@dataclass
class Watch:
    """Looks at a GPU while one fold trains there. before: bytes that others took."""

    gpu: str
    before: float
    busy: list[float] = field(default_factory=list)
    used: list[float] = field(default_factory=list)
    total: float = 0.0

    def look(self) -> OneFold | None:
        """One look more; what was seen once there were enough."""
        if seen := look_at_gpu(self.gpu):
            share, used, self.total = seen
            self.busy.append(share)
            self.used.append(used)
        if len(self.busy) < NUM_LOOKS:
            return None
        most = max(self.used)
        return OneFold(sum(self.busy) / len(self.busy), most - self.before, self.total - most)


def start_watch(gpu: str) -> Watch | None:
    """None where nvidia-smi is not there or says nothing of the GPU."""
    seen = look_at_gpu(gpu)
    return Watch(gpu, seen[1]) if seen else None


def look_at_gpu(gpu: str) -> tuple[float, float, float] | None:
    """The share of the time (0..1) that it is busy, and its used and total memory in bytes."""
    query = ["nvidia-smi", "-i", gpu, "--query-gpu=utilization.gpu,memory.used,memory.total"]
    try:
        told = subprocess.run([*query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=10)
        share, used, total = (float(cell) for cell in told.stdout.strip().split(","))
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return share / 100, used * 2**20, total * 2**20
