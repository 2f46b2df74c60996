"""Learning rate schedules: (share of the steps after warm-up that are done, 0..1) -> factor of the peak rate."""

import math
from collections.abc import Callable

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),  # Loshchilov and Hutter, arxiv.org/abs/1608.03983
    "constant": lambda done: 1.0,
}


def lr_factor(schedule: str, step: int, num_steps: int, num_warmup_steps: int) -> float:
    """The factor of the peak rate at a step (0..num_steps - 1): linear up to 1, then the schedule."""
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    return SCHEDULES[schedule]((step - num_warmup_steps) / max(1, num_steps - num_warmup_steps))
