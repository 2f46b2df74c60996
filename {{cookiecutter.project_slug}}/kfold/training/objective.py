"""What a step minimises: the supervised loss of a batch, and the terms that join it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kfold.losses.flooding import flooded
from kfold.losses.hard_examples import hardest
from kfold.training.losses import Loss, weighted_mean
from kfold.training.terms import Term

# Pixels (B, S, S, 3), or this process's share of them; targets (B, C); their weights (B, C)
Mixed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Mixer = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], Mixed]


def unmixed(epoch: int, pixels: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> Mixed:
    """The batch as it is, in every epoch."""
    return pixels, targets, weights


@dataclass(frozen=True)
class Objective:
    """label_weight x the supervised loss + the terms.

    mix: joins images and their targets before the forward pass. class_weights: targets (B, C) -> weights (B, 1) or
    (B, C) of the losses. ohem_share: of the rows of a batch (or of each part of it), the hardest, whose mean is taken.
    flooding: the level that this mean is kept around; 0: none.
    """

    loss_function: Loss
    label_weight: float = 1.0
    terms: Sequence[Term] = ()
    mix: Mixer = unmixed
    class_weights: Callable[[torch.Tensor], torch.Tensor] | None = None
    ohem_share: float = 1.0
    flooding: float = 0.0

    def weigh(self, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The weights (B, C) of a whole batch, times those of its classes."""
        return weights if self.class_weights is None else weights * self.class_weights(targets)

    def supervised(
        self, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, whole: torch.Tensor
    ) -> torch.Tensor:
        """Scalar, of a part of a batch: logits, targets and weights (B, C); whole: the weights (N, C) of the batch.

        The parts add up to the mean of the batch, which each part enters by its share of the weights.
        """
        losses = self.loss_function(logits, targets)
        mean = flooded(weighted_mean(*hardest(losses, weights, self.ohem_share)), self.flooding)
        ones = torch.ones_like(losses)
        return self.label_weight * mean * weighted_mean(ones, weights, whole)
