"""Averages of weights along training: EMA, SWA, and the BatchNorm statistics that an average needs anew.

torch.optim.swa_utils keeps the copies; what is written here is the warm-up of the EMA and the pass over training data
(torch's own, update_bn, would not leave frozen statistics alone).
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from kfold.training.sharing import average_statistics


def make_ema(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of parameters and buffers: call `update_parameters(model)` after each step.

    Source: Morales-Brotons, Vogels and Hendrikx, Exponential Moving Average of Weights in Deep Learning,
    arxiv.org/abs/2411.18704
    """

    @torch.no_grad()
    def update(averages: Sequence[torch.Tensor], currents: Sequence[torch.Tensor], _: torch.Tensor) -> None:
        kept = ema_decay(int(ema.n_averaged), decay)  # lies on the CPU: the argument would be copied from the GPU
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, 1 - kept)
            else:
                average.copy_(current)  # a counter has no mean

    ema = AveragedModel(model, multi_avg_fn=update, use_buffers=True).requires_grad_(False)
    return ema


def ema_decay(num_averaged: int, decay: float) -> float:
    """What is kept of an average of `num_averaged` steps: it grows to `decay`.

    Without this warm-up a decay of 0.999 leaves a third of the random first weights after 1,000 steps. Source of the
    ramp: www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage
    """
    return min(decay, (1 + num_averaged) / (10 + num_averaged))


def make_swa(model: nn.Module) -> AveragedModel:
    """The equal mean of the parameters at each `update_parameters(model)`; call `refresh_batch_norm` before use.

    Source: Izmailov and others, Averaging Weights Leads to Wider Optima and Better Generalization,
    arxiv.org/abs/1803.05407
    """
    return AveragedModel(model).requires_grad_(False)


@torch.no_grad()
def refresh_batch_norm(
    model: nn.Module, images: Iterable[torch.Tensor], keep_frozen: Callable[[nn.Module], None] = lambda model: None
) -> None:
    """Replace BatchNorm's running statistics by the mean over `images`, batches (B, 3, S, S); no-op without BatchNorm.

    The mean of weights has other activations than any of the networks that it was made of. keep_frozen: puts into eval
    mode what has trained with the statistics that it came with, and should keep them.
    """
    was_training = model.training
    model.train()
    keep_frozen(model)
    norms = {part: part.momentum for part in model.modules() if isinstance(part, _BatchNorm) and part.training}
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
    if norms:
        for batch in images:
            model(batch)
    average_statistics(model)
    for norm, momentum in norms.items():
        norm.momentum = momentum
    model.train(was_training)
