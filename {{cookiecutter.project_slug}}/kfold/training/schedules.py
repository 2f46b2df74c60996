"""Learning rate schedules: (where a step is, what shapes the curve) -> factor of the peak, 1 at its start.

Every schedule but one_cycle comes after a linear warm-up; after it none goes below `min_lr`. A rate is a pure function
of the step and of the losses in the log, so a resumed training needs no state of its own for it.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

ONE_CYCLE_RISE = 0.3  # share of the run that one_cycle rises in
ONE_CYCLE_START = 1 / 25  # of the peak


@dataclass(frozen=True)
class Curve:
    """What shapes single schedules; kfold/config.py has the units."""

    step_epochs: Sequence[int] = ()
    step_factor: float = 0.1
    plateau_patience: int = 4
    plateau_factor: float = 0.1
    polynomial_power: float = 0.9
    decay_rate: float = 0.1


@dataclass(frozen=True)
class Place:
    """Where a step is."""

    done: float  # share of its stretch, 0..1; a stretch is the run after warm-up, or one cycle of it
    epoch: int  # from 0: so many have ended
    epochs: float  # since the end of warm-up, with the fraction
    least: float  # min_lr as a share of the peak
    losses: Sequence[float]  # mean training loss of each epoch that has ended


def cosine(place: Place, curve: Curve) -> float:
    """Half a cosine from 1 to the least rate (Loshchilov and Hutter, arxiv.org/abs/1608.03983)."""
    return between(place.least, 1.0, 0.5 * (1 + math.cos(math.pi * place.done)))


def one_cycle(place: Place, curve: Curve) -> float:
    """Half a cosine up from 1/25 in the first 30 %, then one down (Smith and Topin, arxiv.org/abs/1708.07120).

    The cosine and the share of 30 % are torch.optim.lr_scheduler.OneCycleLR's.
    """
    if place.done < ONE_CYCLE_RISE:
        risen = 0.5 * (1 - math.cos(math.pi * place.done / ONE_CYCLE_RISE))
        return between(max(ONE_CYCLE_START, place.least), 1.0, risen)
    fallen = (place.done - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE)
    return between(place.least, 1.0, 0.5 * (1 + math.cos(math.pi * fallen)))


def step(place: Place, curve: Curve) -> float:
    """step_factor for each of step_epochs that has ended, as torch.optim.lr_scheduler.MultiStepLR."""
    return curve.step_factor ** sum(place.epoch >= epoch for epoch in curve.step_epochs)


def plateau(place: Place, curve: Curve) -> float:
    """plateau_factor for each time that the training loss stood still.

    The training loss, not the validation loss: chosen by the validation fold, the rates would fit it, and the score
    on that fold would be optimistic.
    """
    return curve.plateau_factor ** num_plateaus(place.losses, curve.plateau_patience)


def polynomial(place: Place, curve: Curve) -> float:
    """(1 - t)^power, as in DeepLab (Chen and others, arxiv.org/abs/1606.00915, power 0.9)."""
    return between(place.least, 1.0, (1 - place.done) ** curve.polynomial_power)


def exponential(place: Place, curve: Curve) -> float:
    """exp(-rate x epochs since warm-up)."""
    return math.exp(-curve.decay_rate * place.epochs)


def inverse_time(place: Place, curve: Curve) -> float:
    """1 / (1 + rate x epochs since warm-up); a sum of such rates diverges.

    Source: Robbins and Monro, doi.org/10.1214/aoms/1177729586
    """
    return 1 / (1 + curve.decay_rate * place.epochs)


def constant(place: Place, curve: Curve) -> float:
    return 1.0


SCHEDULES: dict[str, Callable[[Place, Curve], float]] = {
    "cosine": cosine,
    "cosine_cycles": cosine,  # one a cycle (snapshot ensembles, Huang and others, arxiv.org/abs/1704.00109)
    "one_cycle": one_cycle,
    "step": step,
    "plateau": plateau,
    "polynomial": polynomial,
    "exponential": exponential,
    "inverse_time": inverse_time,
    "constant": constant,
}
WITHOUT_WARMUP = ("one_cycle",)  # it rises by itself


def between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def num_plateaus(losses: Sequence[float], patience: int, threshold: float = 1e-4) -> int:
    """How often more than `patience` losses in a row were no better than the best by the relative threshold.

    The count starts again after each. As torch.optim.lr_scheduler.ReduceLROnPlateau in mode min, without its cooldown;
    a NaN is never better.
    """
    best, num_bad, found = math.inf, 0, 0
    for loss in losses:
        if loss < best * (1 - threshold):
            best, num_bad = loss, 0
        else:
            num_bad += 1
        if num_bad > patience:
            found, num_bad = found + 1, 0
    return found


def cycle_ends(epochs: int, num_cycles: int) -> list[int]:
    """The epochs (from 1) that end a cycle; cycles differ by one epoch at most."""
    return [round(epochs * (cycle + 1) / num_cycles) for cycle in range(num_cycles)]


@dataclass(frozen=True)
class Timetable:
    """Steps, from 0, at which something begins."""

    epochs: Sequence[int]  # the first step of each epoch, and the step after the last
    ends: Sequence[int]  # for each stretch the step after its last
    num_warmup_steps: int


def make_timetable(schedule: str, first_steps: Sequence[int], num_cycles: int, warmup_epochs: float) -> Timetable:
    """first_steps: of each epoch, and the step after the last. Warm-up takes half of the first stretch at most."""
    ends = [first_steps[epoch] for epoch in cycle_ends(len(first_steps) - 1, num_cycles)]
    wanted = 0 if schedule in WITHOUT_WARMUP else round(warmup_epochs * first_steps[1])
    return Timetable(first_steps, ends, min(wanted, ends[0] // 2))


def learning_rate(
    schedule: str,
    step: int,
    times: Timetable,
    peak_lr: float,
    min_lr: float = 0.0,
    curve: Curve | None = None,
    losses: Sequence[float] = (),
) -> float:
    """The rate of a step (from 0): linear up to `peak_lr`, then the schedule, never below `min_lr`.

    losses: mean training loss of each epoch before the step's own.
    """
    if step < times.num_warmup_steps:
        return peak_lr * ((step + 1) / times.num_warmup_steps)
    stretch = next(number for number, end in enumerate(times.ends) if step < end)
    first = max(times.ends[stretch - 1] if stretch else 0, times.num_warmup_steps)
    done = (step - first) / max(1, times.ends[stretch] - 1 - first)
    epochs, warmup = np.interp([step, times.num_warmup_steps], times.epochs, range(len(times.epochs)))
    place = Place(done, bisect_right(times.epochs, step) - 1, float(epochs - warmup), min_lr / peak_lr, losses)
    factor = SCHEDULES[schedule](place, curve or Curve())
    return max(min_lr, min(peak_lr, peak_lr * factor))
