"""Label smoothing: Szegedy and others, Rethinking the Inception Architecture, arxiv.org/abs/1512.00567, section 7."""

import torch


def smooth_labels(targets: torch.Tensor, share: float, task: str) -> torch.Tensor:
    """Targets (B, C) with `share` of their mass spread over all classes alike; 0: as they are.

    Each column of binary and multilabel has two classes, yes and no.
    """
    num_classes = targets.shape[1] if task == "multiclass" else 2
    return (1 - share) * targets + share / num_classes
