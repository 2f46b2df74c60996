"""Flooding: Ishida and others, Do We Need Zero Training Loss After Achieving Zero Training Error?,
arxiv.org/abs/2002.08709"""

import torch


def flooded(loss: torch.Tensor, level: float) -> torch.Tensor:
    """|loss - level| + level of a batch's mean loss: below the level the gradient turns round. 0: the loss as it is."""
    return (loss - level).abs() + level if level else loss
