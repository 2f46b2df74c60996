"""The forward pass through torch.compile, for training only: weights, their names and the model itself stay."""

from collections.abc import Callable

import torch
from torch import nn

from kfold.errors import UserError

OPTIONS = {"fallback_random": True}  # dropout draws what it draws uncompiled
BASE_SECONDS, SECONDS_A_LAYER = 15.0, 0.5  # measured: resnet18 (41 layers) 32-35 s, efficientnet_b0 (131) 74-91 s


def compiled_forward(model: nn.Module) -> Callable:
    """Compiles at its first call. Raises UserError where that cannot be done.

    Every shape is compiled for itself: kernels for any shape round otherwise, and which shape comes first may differ
    after an interruption.
    """
    compiled = torch.compile(model, dynamic=False, options=OPTIONS)

    def forward(*inputs: torch.Tensor, **options: bool) -> torch.Tensor | tuple[torch.Tensor, ...]:
        try:
            return compiled(*inputs, **options)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise UserError(
                f"torch.compile failed ({first_line(error)}): install a C++ compiler, or start anew with speed=plain"
            ) from None

    return forward


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:160]


def estimated_seconds(model: nn.Module) -> float:
    """To compile the forward and the backward pass."""
    num_layers = sum(bool(list(module.parameters(recurse=False))) for module in model.modules())
    return BASE_SECONDS + SECONDS_A_LAYER * num_layers
