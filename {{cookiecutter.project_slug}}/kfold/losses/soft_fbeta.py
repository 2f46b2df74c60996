"""Soft F-beta: the F-measure with probabilities for counts; with beta 1, the Dice loss.

Milletari and others, V-Net, arxiv.org/abs/1606.04797; Bénédict and others, sigmoidF1, arxiv.org/abs/2108.10566
"""

import torch


def softmax_fbeta(logits: torch.Tensor, targets: torch.Tensor, beta: float = 1.0) -> torch.Tensor:
    """(B, 1), alike in all rows: 1 - the mean F-beta of the classes in the batch."""
    return soft_fbeta(logits.softmax(dim=1), targets, beta)


def sigmoid_fbeta(logits: torch.Tensor, targets: torch.Tensor, beta: float = 1.0) -> torch.Tensor:
    """(B, 1), alike in all rows: 1 - the mean F-beta of the columns with a positive in the batch."""
    return soft_fbeta(logits.sigmoid(), targets, beta)


def soft_fbeta(probabilities: torch.Tensor, targets: torch.Tensor, beta: float) -> torch.Tensor:
    """(1 + b^2) TP / ((1 + b^2) TP + b^2 FN + FP), where TP = sum of t p, FN = sum of t (1 - p), FP = sum of (1 - t) p.

    Without a positive it is 0 whatever is predicted, and teaches nothing: such columns are left out of the mean.
    """
    hits, wanted, given = (targets * probabilities).sum(dim=0), targets.sum(dim=0), probabilities.sum(dim=0)
    tiny = torch.finfo(probabilities.dtype).tiny
    scores = (1 + beta**2) * hits / (beta**2 * wanted + given).clamp(min=tiny)
    present = wanted > 0
    value = ((1 - scores) * present).sum() / present.sum().clamp(min=1)
    return value.expand(len(targets), 1)
