"""Learning rate range test: the rate grows with every step, and the loss tells how far it may go.

Source: Smith, Cyclical Learning Rates for Training Neural Networks, arxiv.org/abs/1506.01186, section 3.3
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kfold.errors import UserError

FIRST_RATE, LAST_RATE, NUM_RATES = 1e-7, 10.0, 100  # each rate is 1.2 times the one before
SMOOTHING = 0.9  # what the mean keeps at each step: about the last ten losses
EXPLODED = 4  # times the least smoothed loss: it will not come back
NUM_AT_START = 20  # losses at rates too small to matter: they give the level, and the noise, of the start
CLEAR = 1.5  # times that noise, below its level: of 3,000 curves of mere noise 4 fall so far, of 1 times it 110
CAREFUL = 0.1  # of the largest rate: a run lives with its peak for epochs, the test for one step


@dataclass(frozen=True)
class Curve:
    """Losses after steps at growing rates; all three are equally long."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]  # of the batch that follows the step at that rate, all finite
    smoothed: tuple[float, ...]
    end: str  # why it ends there


@dataclass(frozen=True)
class Suggestion:
    largest: float  # rate at which the smoothed loss still falls
    careful: float  # a tenth of it
    note: str = ""  # what to mind


def growing_rates(first: float = FIRST_RATE, last: float = LAST_RATE, count: int = NUM_RATES) -> list[float]:
    """`count` rates from `first` to `last`, each the same factor above the one before."""
    return np.geomspace(first, last, count).tolist()


def range_test(step: Callable[[int, float], float], rates: Sequence[float]) -> Curve:
    """The losses at growing rates, until they explode or stop being finite.

    step: (number from 0, rate) -> the loss of a batch before the step that is then taken on it. The loss that a rate
    leads to is therefore the next batch's: there is one step more than rates.
    """
    losses: list[float] = []
    for number, rate in enumerate([*rates, rates[-1]]):
        loss = step(number, rate)
        if not math.isfinite(loss):
            return make_curve(rates, losses, "the loss is not finite any more")
        if number:
            losses.append(loss)
        smoothed = smooth(losses)
        if len(losses) > NUM_AT_START and smoothed[-1] > EXPLODED * min(smoothed):
            return make_curve(rates, losses, f"the loss is {EXPLODED} times its least")
    return make_curve(rates, losses, "all rates are tried")


def make_curve(rates: Sequence[float], losses: Sequence[float], end: str) -> Curve:
    return Curve(tuple(rates[: len(losses)]), tuple(losses), tuple(smooth(losses)), end)


def smooth(losses: Sequence[float], kept: float = SMOOTHING) -> list[float]:
    """The exponential moving average, divided by 1 - kept^n, so that it does not start at 0.

    Source of the correction: Kingma and Ba, Adam, arxiv.org/abs/1412.6980, section 3
    """
    average, smoothed = 0.0, []
    for number, loss in enumerate(losses, start=1):
        average = kept * average + (1 - kept) * loss
        smoothed.append(average / (1 - kept**number))
    return smoothed


def suggest(curve: Curve) -> Suggestion:
    """The rates that a curve speaks for. Raises UserError for a curve that speaks for none."""
    if len(curve.losses) <= NUM_AT_START:
        where = f"after {len(curve.losses)} steps at rates up to {max(curve.rates, default=FIRST_RATE):.1e}"
        raise UserError(f"no rate can be suggested: {curve.end} {where}: look at the data with --overfit-batch first")
    start, noise = np.mean(curve.losses[:NUM_AT_START]), np.std(curve.losses[:NUM_AT_START])
    lowest = NUM_AT_START + int(np.argmin(curve.smoothed[NUM_AT_START:]))
    if start - curve.smoothed[lowest] <= max(CLEAR * noise, 0.01 * abs(start)):
        raise UserError(
            f"no rate can be suggested: the loss never falls below the noise of its start ({start:.4g} +- {noise:.2g}, "
            f"least {curve.smoothed[lowest]:.4g}): see whether one batch can be learned, with --overfit-batch"
        )
    note = "the loss still falls at the last rate that was tried" if lowest == len(curve.rates) - 1 else ""
    return Suggestion(curve.rates[lowest], CAREFUL * curve.rates[lowest], note)
