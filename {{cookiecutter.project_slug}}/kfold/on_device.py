"""Numbers of an experiment as a tensor, copied to a device once: each copy makes the host wait for the device."""

from functools import cache

import torch


@cache
def on_device(device: torch.device, *rows: tuple[float, ...]) -> torch.Tensor:
    """(R, N) float32 of R rows of N numbers. All who ask share it: it must not be written to."""
    with torch.inference_mode(False):  # a prediction may be the first to ask, and autograd refuses what it would make
        return torch.tensor(rows, dtype=torch.float32, device=device)
