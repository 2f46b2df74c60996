"""The BNNeck: a BatchNorm without shift between pooled features and head.

Triplet and center losses see the features before it, where distances are Euclidean; the head sees those after it.
Source: Luo and others, Bag of Tricks and a Strong Baseline for Deep Person Re-identification,
arxiv.org/abs/1903.07071, section 3.5.
"""

from torch import nn


def make_neck(name: str, num_features: int) -> nn.Module:
    """Features (B, D) -> features (B, D); `none` changes nothing."""
    return NECKS[name](num_features)


def batch_norm_neck(num_features: int) -> nn.Module:
    norm = nn.BatchNorm1d(num_features)
    norm.bias.requires_grad_(False)  # stays at 0
    return norm


NECKS = {"none": lambda num_features: nn.Identity(), "bnneck": batch_norm_neck}
