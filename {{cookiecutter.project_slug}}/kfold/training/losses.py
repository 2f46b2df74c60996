"""Losses: (logits (B, C) float32, targets (B, C) float32) -> a loss a row (B, 1), or a cell (B, C)."""

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F

from kfold.errors import UserError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

LOSSES: dict[str, Loss] = {
    # Targets are class probabilities.
    "cross_entropy": lambda logits, targets: F.cross_entropy(logits, targets, reduction="none")[:, None],
    "binary_cross_entropy": partial(F.binary_cross_entropy_with_logits, reduction="none"),
    "mse": partial(F.mse_loss, reduction="none"),
    "smooth_l1": partial(F.smooth_l1_loss, reduction="none"),
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


def weighted_mean(losses: torch.Tensor, weights: torch.Tensor, whole: torch.Tensor | None = None) -> torch.Tensor:
    """Scalar mean of losses (B, 1 or C) with weights (B, C) of at least 0; 0 where all weights are 0.

    A loss a row takes the row's first weight. whole: the weights of the batch that these rows are a part of; the means
    of its parts then add up to its mean.
    """
    num_columns = losses.shape[1]
    total = (weights if whole is None else whole)[:, :num_columns].sum()
    return (losses * weights[:, :num_columns]).sum() / total.clamp(min=torch.finfo(losses.dtype).tiny)


def to_probabilities(logits: torch.Tensor, task: str) -> torch.Tensor:
    """Logits (..., C) -> float32 probabilities: softmax over C for multiclass, else sigmoid."""
    return logits.float().softmax(dim=-1) if task == "multiclass" else logits.float().sigmoid()
