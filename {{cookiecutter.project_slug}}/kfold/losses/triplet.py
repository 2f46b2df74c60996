"""Triplet loss, batch hard: Hermans, Beyer and Leibe, In Defense of the Triplet Loss, arxiv.org/abs/1703.07737."""

import torch


def triplet(features: torch.Tensor, labels: torch.Tensor, margin: float, weights: torch.Tensor) -> torch.Tensor:
    """Mean over anchors of max(0, margin + distance to the furthest of its class - distance to the nearest of another).

    features (B, D), Euclidean and as they are; labels (B,) int64; weights (B,), of each anchor in the mean: a row of
    weight 0 is no other row's furthest or nearest, either. Anchors without a second image of their class, or without
    one of another, are left out; 0 where none remains.
    """
    counted = weights > 0
    features, labels, weights = features[counted], labels[counted], weights[counted]
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    anchors = (positive.any(dim=1) & ~same.all(dim=1)).nonzero()[:, 0]
    if not len(anchors):
        return features.new_zeros(())
    with torch.no_grad():
        distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
        furthest = distances.masked_fill(~positive, -1).argmax(dim=1)[anchors]
        nearest = distances.masked_fill(same, torch.inf).argmin(dim=1)[anchors]
    # Distances once more, of the chosen pairs alone: gradients of all pairs would take B x B x D of memory.
    to_positive = torch.linalg.vector_norm(features[anchors] - features[furthest], dim=1)
    to_negative = torch.linalg.vector_norm(features[anchors] - features[nearest], dim=1)
    losses = (margin + to_positive - to_negative).relu()
    return (weights[anchors] * losses).sum() / weights[anchors].sum()
