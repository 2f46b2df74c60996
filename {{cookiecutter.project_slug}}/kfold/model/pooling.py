"""Pooling: a feature map (B, D, H, W), or tokens (B, N, D), -> one feature vector an image.

Sources: GeM: Radenovic, Tolias and Chum, Fine-tuning CNN Image Retrieval with No Human Annotation,
arxiv.org/abs/1711.02512. SPP: He and others, Spatial Pyramid Pooling in Deep Convolutional Networks,
arxiv.org/abs/1406.4729.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

PYRAMID = (1, 2, 4)  # cells along each side, level by level


class Pooling(nn.Module):
    """What a backbone gives before its own pooling -> features (B, width x D), float32 inside.

    Tokens are laid out as the map that they come from, without the `num_prefix_tokens` (class tokens) in front.
    channels_last: the backbone's map is (B, H, W, D).
    """

    def __init__(self, name: str, num_prefix_tokens: int = 0, channels_last: bool = False):
        super().__init__()
        make, self.width = POOLINGS[name]
        self.pool = make()
        self.num_prefix_tokens, self.channels_last = num_prefix_tokens, channels_last

    def forward(self, found: torch.Tensor) -> torch.Tensor:
        with torch.autocast(found.device.type, enabled=False):
            return self.pool(to_map(found, self.num_prefix_tokens, self.channels_last).float())


def to_map(found: torch.Tensor, num_prefix_tokens: int = 0, channels_last: bool = False) -> torch.Tensor:
    """A map (B, D, H, W) of what a backbone gives. Raises ValueError where that is no map."""
    if found.ndim == 4:
        return found.permute(0, 3, 1, 2) if channels_last else found
    if found.ndim == 3:
        tokens = found[:, num_prefix_tokens:]  # (B, N, D)
        side = math.isqrt(tokens.shape[1])
        if side > 1 and side**2 == tokens.shape[1]:
            return tokens.transpose(1, 2).unflatten(2, (side, side))
    raise ValueError(f"features of shape {tuple(found.shape[1:])} are no map")


# Means and maxima over dimensions, because the gradients of torch's adaptive pooling are not deterministic on a GPU.


def average(maps: torch.Tensor) -> torch.Tensor:
    return maps.mean(dim=(2, 3))


def maximum(maps: torch.Tensor) -> torch.Tensor:
    return maps.amax(dim=(2, 3))


def average_and_maximum(maps: torch.Tensor) -> torch.Tensor:
    return (average(maps) + maximum(maps)) / 2


def side_by_side(maps: torch.Tensor) -> torch.Tensor:
    return torch.cat([average(maps), maximum(maps)], dim=1)  # (B, 2 D)


class GeM(nn.Module):
    """(mean of x^p)^(1/p) of each channel, x at least eps: 1 is the average, infinity the maximum; p is learned."""

    def __init__(self, power: float = 3.0, eps: float = 1e-6):
        super().__init__()
        self.power, self.eps = nn.Parameter(torch.tensor([power])), eps

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        logs = maps.clamp(min=self.eps).log().flatten(2)  # powers themselves leave float32's range at p = 7
        return ((torch.logsumexp(self.power * logs, dim=2) - math.log(logs.shape[2])) / self.power).exp()


def pyramid(maps: torch.Tensor) -> torch.Tensor:
    """Averages over the whole map, its quarters and its sixteenths, (B, 21 D)."""
    return torch.cat([cell_averages(maps, cells).flatten(1) for cells in PYRAMID], dim=1)


def cell_averages(maps: torch.Tensor, cells: int) -> torch.Tensor:
    """Averages (B, D, cells, cells), as adaptive_avg_pool2d gives them; in matrices, whose gradients are exact."""
    down, across = (F.adaptive_avg_pool1d(torch.eye(side, device=maps.device), cells) for side in maps.shape[2:])
    return torch.einsum("bdhw,hi,wj->bdij", maps, down, across)


POOLINGS: dict[str, tuple[Callable[[], Callable[[torch.Tensor], torch.Tensor]], int]] = {  # and how many times D
    "avg": (lambda: average, 1),
    "max": (lambda: maximum, 1),
    "avg_max": (lambda: average_and_maximum, 1),
    "concat": (lambda: side_by_side, 2),
    "gem": (GeM, 1),
    "spp": (lambda: pyramid, sum(cells**2 for cells in PYRAMID)),
}
