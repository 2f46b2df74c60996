"""Optimizers by name; weight decay spares biases and norms."""

from collections.abc import Callable, Iterable

import torch
from timm.optim import param_groups_weight_decay
from torch import nn

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": lambda groups, **options: torch.optim.SGD(groups, momentum=0.9, nesterov=True, **options),
}


def make_optimizer(name: str, model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    groups: Iterable = model.parameters()
    if weight_decay:
        groups = param_groups_weight_decay(model, weight_decay)  # sets it to 0 for vectors: biases, norms
    return OPTIMIZERS[name](groups, lr=lr, weight_decay=weight_decay)
