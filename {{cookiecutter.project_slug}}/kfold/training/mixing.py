"""Batches whose images are mixed with each other, and their labels with them. Torchvision's, and RICAP.

Everything is drawn from torch's global generator, on the CPU, which each step seeds anew.
"""

from collections.abc import Callable, Sequence

import torch
from torchvision.transforms import v2

from kfold.data.loader import rows_of_share
from kfold.distributed import gather_rows, share
from kfold.training.objective import Mixed, Mixer
from kfold.training.ricap import ricap

Mixing = Callable[[torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]

MIXINGS: dict[str, Mixing] = {  # (images (B, 3, H, W), labels (B, L), parameter of the Beta distribution) -> both mixed
    # Zhang and others, arxiv.org/abs/1710.09412; shares of grey levels need float32
    "mixup": lambda images, labels, alpha: v2.MixUp(alpha=alpha)(images.float(), labels),
    # Yun and others, arxiv.org/abs/1905.04899
    "cutmix": lambda images, labels, alpha: v2.CutMix(alpha=alpha)(images, labels),
    "ricap": ricap,
}


def mixer(betas: Sequence[tuple[str, float]], probability: float, first_plain_epoch: float) -> Mixer:
    """Mixes a batch with that probability, by one of the ways, until `first_plain_epoch` (from 0).

    betas: names of MIXINGS, with the parameter of their Beta distribution. Of several processes each mixes the whole
    batch, alike, and keeps its own images.
    """

    def mix(epoch: int, pixels: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> Mixed:
        if epoch >= first_plain_epoch or float(torch.rand(())) >= probability:
            return pixels, targets, weights
        name, beta = betas[int(torch.randint(len(betas), ()))]
        num_rows = len(targets)
        pixels, *mixed = mix_batch(MIXINGS[name], beta, gather_rows(pixels, num_rows), targets, weights)
        return pixels[rows_of_share(num_rows, *share())], *mixed

    return mix


def mix_batch(mixing: Mixing, beta: float, pixels: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> Mixed:
    """Pixels (B, S, S, 3), targets (B, C) and weights (B, C), all mixed by the same shares.

    A target counts by its share times its weight, and the weights mix, so a loss that is linear in the targets is the
    mean of the losses that were mixed, and the mass of a row's targets stays what it was.
    """
    labels = torch.cat([weights * targets, weights, targets], dim=1)
    images, labels = mixing(pixels.permute(0, 3, 1, 2), labels, beta)
    weighted, mixed_weights, plain = labels.chunk(3, dim=1)
    mixed = torch.where(mixed_weights > 0, weighted / mixed_weights, plain)  # of weight 0, all count alike
    return images.permute(0, 2, 3, 1), mixed, mixed_weights
