"""Center loss: Wen and others, A Discriminative Feature Learning Approach for Deep Face Recognition (ECCV 2016),
ydwen.github.io/papers/WenECCV16.pdf

The centers are a buffer of the model, so that they are saved with its state, and put back when a batch fails.
"""

import torch
from torch import nn

MOVE = 0.5  # alpha of the paper: what part of the way a center goes at each step


def add_centers(model: nn.Module, num_classes: int, image_size: int) -> None:
    """Register `model.centers` (num_classes, D) of zeros; D: the features that the model gives with its logits."""
    model.eval()  # one image must not enter BatchNorm's statistics
    with torch.no_grad():
        _, features = model(torch.zeros(1, 3, image_size, image_size), with_features=True)
    model.train()
    model.register_buffer("centers", torch.zeros(num_classes, features.shape[1]))


def center_loss(
    features: torch.Tensor, labels: torch.Tensor, centers: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Half the squared distance from features (B, D) to the center (C, D) of their class (B,), mean over rows.

    weights: (B,), of each row in the mean; 0 where all are 0.
    """
    distances = (features - centers[labels]).square().sum(dim=1)
    return (weights * distances).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny) / 2


@torch.no_grad()
def move_centers(centers: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> None:
    """In place: c_j -= alpha x the sum of c_j - x_i over rows of class j / (1 + their number) (the paper's equation 4).

    A row counts as often as its weight (B,) says. Classes that are not in the batch stay where they are.
    """
    members = (labels[:, None] == torch.arange(len(centers), device=labels.device)) * weights[:, None]  # (B, C)
    counts = members.sum(dim=0)[:, None]
    centers.sub_(MOVE * (counts * centers - members.T @ features) / (1 + counts))
