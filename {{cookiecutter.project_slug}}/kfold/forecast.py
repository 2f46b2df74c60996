"""How much disk and time a training will take, said before it is too late."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from kfold.errors import UserError
from kfold.stopping import Stop, describe_seconds
from kfold.training.state import Averages, Training

FIRST_BATCHES = 10  # that the forecast of time is made from; the first of them, which warms up, left out
PREPARED, UNDER_WAY = "  forecast: ", " for this fold"  # by these the parent of several folds knows how far each is
VALID_COST = 1 / 3  # of a validation image to a training image: it goes forward only


def bytes_needed(
    model: torch.nn.Module,
    num_moments: float,
    averages: Averages,
    num_snapshots: int,
    num_folds: int,
    folder: Path,
) -> int:
    """Disk space of the folds' weights files, and of three states of one fold (two, and the one being written).

    num_moments: numbers that the optimizer keeps for each number of the model. What lies in `folder`, the fold's own,
    is there already.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    num_averages = sum(average is not None for average in (averages.ema, averages.swa))
    num_weights = 2 + num_averages + num_snapshots  # last, best
    in_state = 2 + num_moments + num_averages  # the model, and its best weights
    there = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return max(0, round(size * (num_weights * num_folds + 3 * in_state)) - there)


def refuse_full_disk(folder: Path, needed: int) -> str:
    """The forecast in words. Raises UserError when the disk is too small for `needed` bytes."""
    free = shutil.disk_usage(folder).free
    forecast = f"{needed / 1e9:.2f} GB on the disk, {free / 1e9:.1f} GB are free"
    if needed > free:
        raise UserError(f"{folder}: the weights and states need {forecast}: make room before you start")
    return forecast


@dataclass
class TimeForecast:
    """Prints, after the first batches, how long the fold and the others will take."""

    steps_of_fold: int
    steps_left: int  # of this fold: it may have been under way already
    steps_an_epoch: int
    valid_share: float  # validation rows for each training row
    folds_left: int  # with this one
    stop: Stop
    training: Training
    seen: tuple[int, int] = (-1, -1)  # epoch and batch
    num_batches: int = 0
    started: float = 0.0

    def between_batches(self) -> None:
        if self.seen == (self.training.epoch, self.training.batch):
            return  # a batch of validation
        self.seen = (self.training.epoch, self.training.batch)
        self.num_batches += 1
        if self.num_batches == 1:
            self.started = time.monotonic()
        measured = self.num_batches - 1
        if measured and self.num_batches == min(FIRST_BATCHES, self.steps_an_epoch, self.steps_left):
            print(f"{PREPARED}{self.describe((time.monotonic() - self.started) / measured)}")

    def describe(self, seconds_a_step: float) -> str:
        of_fold = seconds_a_step * (1 + VALID_COST * self.valid_share)
        fold = of_fold * (self.steps_left - self.num_batches)
        text = f"{describe_seconds(fold)}{UNDER_WAY}"
        if self.folds_left > 1:
            fold += of_fold * self.steps_of_fold * (self.folds_left - 1)
            text += f", {describe_seconds(fold)} for {self.folds_left} folds"
        left = self.stop.deadline - time.monotonic()
        if fold > left:
            text += f"; the time limit comes first, in {describe_seconds(max(left, 0))}: it will save and stop there"
        return text
