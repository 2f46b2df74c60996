"""A training that is tried out and then put back, bit for bit, as if nothing had happened."""

import io
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from kfold.training.state import Training, load_state, to_state


@contextmanager
def rewound(training: Training) -> Iterator[None]:
    """Whatever is done inside, weights, buffers, optimizer, scaler, averages, counters, gradients, modes and the
    generators of torch, numpy and Python are afterwards what they were."""
    file = io.BytesIO()
    torch.save(to_state(training, {}), file)  # on the CPU: a second copy on the GPU would leave less for the batches
    modes = [(module, module.training) for module in training.model.modules()]
    weights = [(weight, weight.requires_grad, weight.grad) for weight in training.model.parameters()]
    for weight, _, _ in weights:
        weight.grad = None  # else a backward pass adds to the gradient that is kept
    with generators_kept():
        try:
            yield
        finally:
            file.seek(0)
            load_state(training, torch.load(file, map_location="cpu", weights_only=True))
            for module, mode in modes:
                module.training = mode
            for weight, is_trained, gradient in weights:
                weight.requires_grad_(is_trained).grad = gradient


@contextmanager
def generators_kept() -> Iterator[None]:
    """Whatever is drawn inside, the generators of torch, numpy and Python stand afterwards where they stood."""
    of_python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    of_devices = device_generators()
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
        set_device_generators(of_devices)


def device_generators() -> list[torch.Tensor]:
    """The state of each GPU's generator."""
    if torch.cuda.is_available():
        return torch.cuda.get_rng_state_all()
    return [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else []


def set_device_generators(states: list[torch.Tensor]) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states)
    elif states:
        torch.mps.set_rng_state(states[0])
