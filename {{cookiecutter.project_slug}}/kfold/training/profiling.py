"""Where the time of training goes, and how many images fit into memory."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

PARTS = ("data", "forward", "backward", "optimizer")


# Time


class Stopwatch:
    """Seconds of each of PARTS. `lap` ends one part and starts another, after waiting for the device."""

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter):
        self.device, self.now = device, now
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.part, self.since = "data", now()

    def lap(self, part: str) -> None:
        synchronize(self.device)
        moment = self.now()
        self.seconds[self.part] += moment - self.since
        self.part, self.since = part, moment


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given: it works while Python goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def watched(stopwatch: Stopwatch, model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Laps at the borders of a training step, by hooks, so that the step that is timed is the one that trains.

    forward ends where the gradient of the logits is known: the loss belongs to it. backward ends where the optimizer
    begins. In a batch of several parts both come once a part.
    """

    def start_backward(_: nn.Module, inputs: tuple, outputs: torch.Tensor | tuple) -> None:
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        if logits.requires_grad:
            logits.register_hook(lambda _: stopwatch.lap("backward"))

    hooks = [
        model.register_forward_pre_hook(lambda *_: stopwatch.lap("forward")),
        model.register_forward_hook(start_backward),
        optimizer.register_step_pre_hook(lambda *_: stopwatch.lap("optimizer")),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def time_steps(
    batches: Iterator, step: Callable, num_steps: int, max_seconds: float, device: torch.device
) -> tuple[float, int]:
    """Seconds and images of up to `num_steps` steps, at least two; no waiting in between, as in training."""
    synchronize(device)
    started, num_images = time.perf_counter(), 0
    for number in range(num_steps):
        batch = next(batches)
        step(batch)
        num_images += len(batch.images)
        if number and time.perf_counter() - started > max_seconds:
            break
    synchronize(device)
    return time.perf_counter() - started, num_images


def time_parts(batches: Iterator, step: Callable, num_steps: int, max_seconds: float, stopwatch: Stopwatch) -> int:
    """Add the seconds of up to `num_steps` steps, at least two, to the stopwatch; how many it were."""
    stopwatch.lap("data")
    before = sum(stopwatch.seconds.values())
    for number in range(num_steps):
        batch = next(batches)
        stopwatch.lap("forward")
        step(batch)
        stopwatch.lap("data")
        if number and sum(stopwatch.seconds.values()) - before > max_seconds:
            return number + 1
    return num_steps


# Memory


def largest_fitting(fits: Callable[[int], bool], most: int) -> int:
    """The largest size of 2 to `most` that fits, to within a sixteenth; 0 where 2 do not.

    It doubles until one does not fit, then halves the gap. fits: false for every size above one that does not fit.
    """
    fitting, size = 0, min(2, most)
    while fits(size):
        fitting = size
        if size == most:
            return most
        size = min(2 * size, most)
    while size - fitting > max(1, fitting // 16) and fitting:
        middle = (fitting + size) // 2
        fitting, size = (middle, size) if fits(middle) else (fitting, middle)
    return fitting


def bytes_kept_for_backward(step: Callable[[], object], model: nn.Module) -> int:
    """Bytes of everything that a step's forward pass keeps for its backward pass, but for the model's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return sum(kept.values())
