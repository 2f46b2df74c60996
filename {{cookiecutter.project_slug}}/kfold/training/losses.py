"""Losses: (logits (B, C) float32, targets (B, C) float32) -> scalar mean."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from kfold.errors import UserError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

LOSSES: dict[str, Loss] = {
    "cross_entropy": F.cross_entropy,  # targets are class probabilities
    "binary_cross_entropy": F.binary_cross_entropy_with_logits,
    "mse": F.mse_loss,
    "smooth_l1": F.smooth_l1_loss,
}
LOSSES_OF_TASK = {  # the first is `auto`
    "multiclass": ("cross_entropy",),
    "binary": ("binary_cross_entropy",),
    "multilabel": ("binary_cross_entropy",),
    "regression": ("smooth_l1", "mse"),
}


def choose_loss(name: str, task: str) -> Loss:
    """The loss called `name`, or the task's own for `auto`. Raises UserError when it does not fit the task."""
    fitting = LOSSES_OF_TASK[task]
    if name != "auto" and name not in fitting:
        raise UserError(f"loss={name} does not fit task {task}: choose {' or '.join(fitting)}")
    return LOSSES[fitting[0] if name == "auto" else name]


def to_probabilities(logits: torch.Tensor, task: str) -> torch.Tensor:
    """Logits (..., C) -> float32 probabilities: softmax over C for multiclass, else sigmoid."""
    return logits.float().softmax(dim=-1) if task == "multiclass" else logits.float().sigmoid()
