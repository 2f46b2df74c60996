"""Parameter groups of an optimizer: which weights decay, and at which share of the learning rate each layer learns.

A group's `lr_scale` multiplies the rate of each step (step.py). timm finds the vectors that do not decay, and the order
of a backbone's layers.
"""

from collections.abc import Iterable

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from kfold.errors import UserError


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    decay_all: bool = False,
    backbone_lr: float = 1.0,
    layer_decay: float = 1.0,
) -> list[dict]:
    """Groups that hold each parameter once; backbone and the rest of a network are never in one group.

    Biases, norms and what the backbone itself names (position embeddings) do not decay unless `decay_all`. backbone_lr:
    factor of everything in `model.backbone` (Howard and Ruder, arxiv.org/abs/1801.06146). layer_decay: factor from
    each layer to the one before, the head with 1 (Bao and others, arxiv.org/abs/2106.08254). Raises UserError where a
    backbone does not tell the order of its layers.
    """
    backbone = getattr(model, "backbone", nn.Identity())
    if decay_all:
        groups = [{"params": [weight for weight in model.parameters() if weight.requires_grad], "weight_decay": 1.0}]
    else:
        spared = {f"backbone.{name}" for name in self_named(backbone)}
        groups = param_groups_weight_decay(model, 1.0, no_weight_decay_list=spared)
    inside = set(backbone.parameters())
    if layer_decay < 1:
        of_backbone = layer_groups(backbone, decay_all, layer_decay)
    else:
        of_backbone = [{**part, "lr_scale": backbone_lr} for part in parts(groups, inside, True)]
    found = [*of_backbone, *parts(groups, inside, False)]
    return [{**group, "weight_decay": weight_decay * group["weight_decay"]} for group in found]


def parts(groups: Iterable[dict], inside: set[nn.Parameter], wish: bool) -> list[dict]:
    """What of the groups is, or is not, in the set."""
    found = []
    for group in groups:
        weights = [weight for weight in group["params"] if (weight in inside) == wish]
        found += [{**group, "params": weights}] if weights else []
    return found


def layer_groups(backbone: nn.Module, decay_all: bool, layer_decay: float) -> list[dict]:
    if not hasattr(backbone, "group_matcher"):
        raise UserError(
            f"layer_decay={layer_decay}: {type(backbone).__name__} does not tell the order of its layers: "
            f"take backbone_lr=0.1 instead, or a backbone of timm that does"
        )
    spared = {} if decay_all else self_named(backbone)
    groups = param_groups_layer_decay(
        backbone, 1.0, spared, weight_decay_exclude_1d=not decay_all, layer_decay=layer_decay
    )
    # timm gives the head's factor to the last layer where there is no head; ours is a layer of its own.
    return [{**group, "lr_scale": layer_decay * group["lr_scale"]} for group in groups]


def self_named(backbone: nn.Module) -> set[str]:
    """The parameters that a timm backbone itself wants to be spared from weight decay."""
    return set(backbone.no_weight_decay()) if hasattr(backbone, "no_weight_decay") else set()


def restart_idle_counters(optimizer: torch.optim.Optimizer) -> None:
    """Take the step counter away from groups that have learned nothing yet.

    LAMB, Adan and AdaBound count steps by group, also while all of its weights are frozen; their bias correction would
    then take the first gradient after it for the mean of many, and step three times too far.
    """
    for group in optimizer.param_groups:
        if not any(optimizer.state.get(weight) for weight in group["params"]):
            group.pop("step", None)
