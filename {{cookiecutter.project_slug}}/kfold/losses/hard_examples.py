"""Online hard example mining: Shrivastava, Gupta and Girshick, arxiv.org/abs/1604.03540."""

import math

import torch


def hardest(losses: torch.Tensor, weights: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Of losses (B, 1 or C) with weights (B, C), those of the ceil(share x B) rows whose weighted loss is largest.

    A share of 1 takes everything as it is. A loss that is not finite is never left out, so that the step sees it.
    """
    count = math.ceil(share * len(losses) - 1e-9)  # 0.07 x 100 is a little more than 7
    if count == len(losses):
        return losses, weights
    of_rows = (losses * weights[:, : losses.shape[1]]).detach().sum(dim=1)
    rows = of_rows.sort(descending=True, stable=True).indices[:count]  # NaN counts as the largest
    return losses[rows], weights[rows]
