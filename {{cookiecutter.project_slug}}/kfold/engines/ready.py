"""A trained model made ready to predict, in one of the ways of inference.py."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from kfold.engines.converted import Forward, in_whole_batches, make_converted
from kfold.engines.fold_batch_norm import fold_batch_norm
from kfold.engines.inference import Inference
from kfold.model.weights import ModelCard
from kfold.training.depthwise import set_depthwise
from kfold.training.losses import to_probabilities
from kfold.training.precision import Precision, autocast

EXACT = 1e-4  # largest difference of a probability, or of a standardised value, that counts as the same prediction


@dataclass(frozen=True)
class Ready:
    """forward: (B, 3, H, W) float32, normalised, on the model's device -> logits (B, C) float32."""

    forward: Forward
    card: ModelCard

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.card.mean, self.card.std


def make_ready(
    model: nn.Module, card: ModelCard, inference: Inference, device: torch.device, batch_size: int, probe: torch.Tensor
) -> Ready:
    """batch_size: of most batches, the largest. probe: (B, 3, S, S) float32, normalised images to try the model with.

    Raises UserError where the engine's package is not there.
    """
    if inference.engine != "torch":
        return Ready(make_converted(model, inference.engine, inference.dtype, batch_size), card)
    set_depthwise(model, inference.depthwise_float32)
    if inference.fold_batchnorm:
        model = folded_or_same(model, card.task, probe[:4])
    model = model.to(device, memory_format=torch.channels_last if inference.channels_last else torch.preserve_format)
    precision = Precision(getattr(torch, inference.dtype), "chosen for predictions")
    run = torch.compile(model, dynamic=False) if inference.compiled else model

    def forward(images: torch.Tensor) -> torch.Tensor:
        if inference.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)  # a turned view is not
        with autocast(device, precision):
            return run(images).float()

    return Ready(in_whole_batches(forward, batch_size) if inference.compiled else forward, card)


def folded_or_same(model: nn.Module, task: str, probe: torch.Tensor) -> nn.Module:
    """The model with BatchNorm folded, or as it is where that would change its predictions of the probe."""
    folded = copy.deepcopy(model)
    fold_batch_norm(folded, probe[:2])
    with torch.inference_mode():
        return folded if difference(folded(probe), model(probe), task) <= EXACT else model


def difference(logits: torch.Tensor, others: torch.Tensor, task: str) -> float:
    """The largest difference of a probability; for regression of a value, in standard deviations of the targets."""
    if task != "regression":
        logits, others = to_probabilities(logits, task), to_probabilities(others, task)
    # No number is further away than any: NaN must not pass for near.
    return float((logits.float().cpu() - others.float().cpu()).abs().nan_to_num(float("inf")).max())
