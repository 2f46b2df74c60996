"""Everything that changes while a fold trains, and the file that carries it over an interruption.

Randomness needs no place in it: every batch seeds torch's generator itself, from (seed, fold, epoch, batch).
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from kfold.errors import UserError
from kfold.files import atomic_write, keep_previous

SEAL = b"\x40\0"  # 64 in two bytes: the length of the comment that ends a sealed zip file


@dataclass(frozen=True)
class Averages:
    """Copies of the model that are averaged along the way; None: not wanted."""

    ema: AveragedModel | None = None
    swa: AveragedModel | None = None
    swa_from_epoch: int = 0  # from 1


@dataclass(frozen=True)
class EpochResult:
    """One row of log.csv."""

    epoch: int  # from 1
    train_loss: float
    valid_loss: float  # NaN without validation rows
    score: float  # the metric on the validation fold; NaN without
    lr: float  # at the last step
    skipped: int  # batches whose loss or gradient was not finite
    accumulate: int  # parts that a batch was split into, at the end
    seconds: float  # training and validation
    images_per_second: float  # training only


@dataclass
class Training:
    """A fold in training. The numbers speak of the epoch that is going on."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    averages: Averages = Averages()
    accumulate: int = 1  # parts that a batch is split into
    forward: Callable | None = None  # for training: compiling.py's, or that of several processes; None: the model's
    epoch: int = 0  # from 0; the next batch to train on is (epoch, batch)
    batch: int = 0
    total_loss: float = 0.0  # sum over images; on a GPU a tensor, so that adding to it need not wait
    num_averaged: int = 0  # images in total_loss
    num_images: int = 0  # those of skipped batches, too
    skipped: int = 0  # batches whose loss or gradient was not finite
    train_seconds: float = 0.0
    skipped_in_row: int = 0  # over epochs
    skipped_rows: list[list[int]] = field(default_factory=list)  # [epoch, batch (both from 1), row of the training set]
    log: list[EpochResult] = field(default_factory=list)
    best_score: float | None = None
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)  # of the epoch with the best score
    snapshots: dict[str, str] = field(default_factory=dict)  # sha256 of their files, which are written already

    def next_epoch(self) -> None:
        self.epoch, self.batch = self.epoch + 1, 0
        self.total_loss, self.num_averaged, self.num_images = 0.0, 0, 0
        self.skipped, self.train_seconds = 0, 0.0


TENSORS = ("model", "optimizer", "scaler")
NUMBERS = tuple(
    name for name in Training.__dataclass_fields__ if name not in (*TENSORS, "averages", "forward", "log", "total_loss")
)


def to_state(training: Training, identity: Mapping[str, str]) -> dict:
    """Plain types and tensors. identity: what the state belongs to; it is compared before the state is used."""
    averages = {name: getattr(training.averages, name) for name in ("ema", "swa")}
    return {
        "identity": dict(identity),
        **{name: getattr(training, name).state_dict() for name in TENSORS},
        "averages": {name: average.state_dict() for name, average in averages.items() if average is not None},
        "log": [asdict(result) for result in training.log],
        "total_loss": float(training.total_loss),
        **{name: getattr(training, name) for name in NUMBERS},
    }


def load_state(training: Training, state: Mapping) -> None:
    """Put a state of `to_state` back, in place."""
    for name in ("model", "optimizer"):
        getattr(training, name).load_state_dict(state[name])
    if training.scaler.is_enabled() and state["scaler"]:  # empty where it was saved without float16
        training.scaler.load_state_dict(state["scaler"])
    for name, average in state["averages"].items():
        getattr(training.averages, name).load_state_dict(average)
    training.log = [EpochResult(**row) for row in state["log"]]
    training.total_loss = state["total_loss"]
    for name in NUMBERS:
        setattr(training, name, state[name])


# The file: what torch.save writes, with its own sha256 as the comment that ends a zip archive. Any reader of such files
# opens it; torch alone does not notice a flipped bit.


def write_state(path: Path, previous_path: Path, state: Mapping) -> None:
    """Save a state; the one of before is kept as `previous_path`. A kill at any moment leaves one of them whole."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getbuffer()[:-2]  # without the length of the (absent) comment

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(body)
            file.write(SEAL + hashlib.sha256(body).hexdigest().encode())

    atomic_write(path, write, before_replace=lambda: keep_previous(path, previous_path))


def read_state(path: Path) -> dict:
    """A saved state, tensors on the CPU. Raises UserError when a single bit differs from what was written."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    body, seal, digest = data[:-66], data[-66:-64], data[-64:]
    if seal != SEAL or hashlib.sha256(body).hexdigest().encode() != digest:
        raise UserError(f"{path}: damaged (its sha256 differs)")
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # sealed by someone else: torch names many kinds of refusal
        raise UserError(f"{path}: not a state of this repository ({type(error).__name__})") from None
