"""Residual blocks that start as the identity: the last norm of each has weight 0.

Source: Goyal and others, Accurate, Large Minibatch SGD, arxiv.org/abs/1706.02677, section 5.1.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torchvision.models import resnet

from kfold.errors import UserError

NORMS = (nn.BatchNorm2d, nn.GroupNorm)
LAYER_SCALES = ("gamma", "layer_scale")  # ConvNeXt and some transformers


def set_zero_gamma(backbone: nn.Module, name: str, choice: str) -> None:
    """Set the last scale of each residual branch to 0 (on) or 1 (off); default leaves it.

    Raises UserError where the backbone, called `name`, has no residual blocks that are known.
    """
    if choice == "default":
        return
    scales = list(last_scales(backbone))
    if not scales:
        raise UserError(f"zero_gamma={choice}: {name} has no residual blocks that end in a norm: leave zero_gamma out")
    with torch.no_grad():
        for scale in scales:
            scale.fill_(0.0 if choice == "on" else 1.0)


def last_scales(backbone: nn.Module) -> Iterator[nn.Parameter]:
    """The weights (D,) by which each residual branch is multiplied last, before the sum."""
    for block in backbone.modules():
        scales = [getattr(block, name, None) for name in LAYER_SCALES]
        if found := [scale for scale in scales if isinstance(scale, nn.Parameter)]:
            yield from found
        elif is_residual(block) and (norms := branch_norms(block)) and is_linear(norms[-1]):
            yield norms[-1].weight


def is_residual(block: nn.Module) -> bool:
    """Whether timm or torchvision say that a block adds its input to its output."""
    adds = getattr(block, "has_skip", False) or getattr(block, "use_res_connect", False)  # timm's, torchvision's MBConv
    return bool(adds) or hasattr(block, "zero_init_last") or isinstance(block, (resnet.BasicBlock, resnet.Bottleneck))


def branch_norms(block: nn.Module) -> list[nn.Module]:
    """The norms of a block, in the order in which they are applied, without those of its shortcut."""
    return [
        module
        for name, module in block.named_modules()
        if isinstance(module, NORMS) and not name.startswith(("downsample", "shortcut"))
    ]


def is_linear(norm: nn.Module) -> bool:
    """Whether no activation is built in: the slope of ReLU at 0 is 0, so such a weight would stay at 0 for ever."""
    return isinstance(getattr(norm, "act", nn.Identity()), nn.Identity)
