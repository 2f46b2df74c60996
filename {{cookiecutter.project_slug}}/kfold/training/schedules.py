"""Learning rate schedules: (share of a stretch that is done, 0..1) -> factor, 1 at its start.

A stretch is the whole run after warm-up, or one cycle of it.
"""

import math
from collections.abc import Callable, Sequence


def cosine(done: float) -> float:
    """Half a cosine from 1 to 0 (Loshchilov and Hutter, arxiv.org/abs/1608.03983)."""
    return 0.5 * (1 + math.cos(math.pi * done))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": cosine,
    "cosine_cycles": cosine,  # one a cycle (snapshot ensembles, Huang and others, arxiv.org/abs/1704.00109)
    "constant": lambda done: 1.0,
}


def cycle_ends(epochs: int, num_cycles: int) -> list[int]:
    """The epochs (from 1) that end a cycle; cycles differ by one epoch at most."""
    return [round(epochs * (cycle + 1) / num_cycles) for cycle in range(num_cycles)]


def learning_rate(
    schedule: str, step: int, ends: Sequence[int], num_warmup_steps: int, peak_lr: float, min_lr: float = 0.0
) -> float:
    """The rate of a step (from 0): linear up to `peak_lr`, then the schedule, down to `min_lr` at each stretch's end.

    ends: for each stretch the step after its last, in order.
    """
    if step < num_warmup_steps:
        return peak_lr * (step + 1) / num_warmup_steps
    stretch = next(number for number, end in enumerate(ends) if step < end)
    first = max(ends[stretch - 1] if stretch else 0, num_warmup_steps)
    done = (step - first) / max(1, ends[stretch] - 1 - first)
    return min_lr + (peak_lr - min_lr) * SCHEDULES[schedule](done)
