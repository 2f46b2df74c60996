"""Depthwise convolutions in float32 in the middle of autocast.

oneDNN's depthwise kernels for bfloat16 are slow on CPUs: efficientnet_b0 at 64 pixels trained 95 images/s in bfloat16,
212 with these convolutions in float32 (2 cores with AMX, batch of 32).
"""

from functools import cache

import torch
from torch import nn


def is_depthwise(module: nn.Module) -> bool:
    """Whether each channel is convolved on its own."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def set_depthwise(model: nn.Module, wish: bool) -> None:
    """Whether the depthwise convolutions of a model compute in float32 whatever autocast says; in place."""
    for module in model.modules():
        if is_depthwise(module):
            in_float32(module, wish)


def in_float32(convolution: nn.Conv2d, wish: bool) -> None:
    """Its class is changed, not its forward method: copies of the model (EMA) must not call the original's."""
    kind = type(convolution)
    if wish != issubclass(kind, Float32):
        convolution.__class__ = float32_kind(kind) if wish else kind.__bases__[1]


class Float32:
    """What comes before a kind of convolution."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return super().forward(images.float())


@cache
def float32_kind(kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    """timm has convolutions of its own (Conv2dSame), which keep what they do."""
    return type(f"Float32{kind.__name__}", (Float32, kind), {})
