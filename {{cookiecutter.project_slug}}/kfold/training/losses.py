"""Losses: (logits (B, C) float32, targets (B, C) float32) -> a loss a row (B, 1), or a cell (B, C)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch.nn import functional as F

from kfold.errors import UserError
from kfold.losses.asymmetric import asymmetric
from kfold.losses.focal import sigmoid_focal, softmax_focal
from kfold.losses.lovasz import lovasz_hinge, lovasz_softmax
from kfold.losses.soft_fbeta import sigmoid_fbeta, softmax_fbeta
from kfold.settings import show

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(B, 1). Targets are probabilities of the classes."""
    return F.cross_entropy(logits, targets, reduction="none")[:, None]


binary_cross_entropy = partial(F.binary_cross_entropy_with_logits, reduction="none")
LOSSES_OF_CELLS: dict[str, Callable[..., torch.Tensor]] = {
    "binary_cross_entropy": binary_cross_entropy,
    "focal": sigmoid_focal,
    "asymmetric": asymmetric,
    "lovasz": lovasz_hinge,
    "soft_fbeta": sigmoid_fbeta,
}
LOSSES_OF_TASK: dict[str, dict[str, Callable[..., torch.Tensor]]] = {  # the first is `auto`
    "multiclass": {
        "cross_entropy": cross_entropy,
        "focal": softmax_focal,
        "lovasz": lovasz_softmax,
        "soft_fbeta": softmax_fbeta,
        # One class against the rest. Predictions stay a softmax, which orders the classes of an image alike.
        "binary_cross_entropy": binary_cross_entropy,
    },
    "binary": LOSSES_OF_CELLS,
    "multilabel": LOSSES_OF_CELLS,
    "regression": {
        "smooth_l1": partial(F.smooth_l1_loss, reduction="none"),
        "mse": partial(F.mse_loss, reduction="none"),
        "mae": partial(F.l1_loss, reduction="none"),
    },
}


def choose_loss(
    names: str | Sequence[str],
    task: str,
    weights: Sequence[float] = (),
    options: Mapping[str, Mapping[str, float]] | None = None,
) -> Loss:
    """The loss of that name, or the weighted sum of several; `auto` is the task's own.

    weights: of each, 1 by default. options: name -> arguments of that loss. Raises UserError when a loss does not fit
    the task, or is named twice, once as `auto`.
    """
    fitting, names = LOSSES_OF_TASK[task], [names] if isinstance(names, str) else names
    for name in names:
        if name != "auto" and name not in fitting:
            raise UserError(f"loss={name} does not fit task {task}: choose {' or '.join(fitting)}")
    own = next(iter(fitting))
    if "auto" in names and own in names:
        raise UserError(f"loss={show(tuple(names))}: auto is {own} for task {task}: drop one of them")
    names = [own if name == "auto" else name for name in names]
    losses = [with_options(fitting[name], (options or {}).get(name)) for name in names]
    if len(losses) == 1 and not weights:
        return losses[0]
    weights = weights or (1.0,) * len(losses)

    def total(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        # A loss a row and one a cell make a loss a cell: (B, 1) + (B, C), with the means of both.
        return sum(weight * loss(logits, targets) for weight, loss in zip(weights, losses, strict=True))

    return total


def with_options(loss: Callable[..., torch.Tensor], options: Mapping[str, float] | None) -> Loss:
    return partial(loss, **options) if options else loss


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
