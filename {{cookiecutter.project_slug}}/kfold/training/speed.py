"""How a training step is computed, which decides its last digits: number format, memory layout, kernels.

`speed: auto` measures which is fastest (speed_trial.py), `speed: plain` switches all of it off.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import nn

from kfold.training.compiling import compiled_forward
from kfold.training.depthwise import set_depthwise
from kfold.training.freed_memory import keep_freed_memory
from kfold.training.precision import Precision, choose_precision, has_format

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Speed:
    """One way to compute a step. Its text is the number format and the switches that are on, such as
    `bfloat16 channels_last`."""

    dtype: str = "float32"  # of autocast; float16 with loss scaling
    channels_last: bool = False  # the weights, too; images come from the loader in that layout anyway
    depthwise_float32: bool = False  # depthwise convolutions left out of autocast
    compiled: bool = False  # by torch.compile; training only
    fused: bool = False  # one kernel for all of the optimizer's step
    keep_memory: bool = False  # freed memory stays with the process (freed_memory.py); changes no digit

    def __str__(self) -> str:
        return " ".join([self.dtype, *(name for name in SWITCHES if getattr(self, name))])

    @property
    def num_switches(self) -> int:
        return sum(getattr(self, name) for name in SWITCHES)

    def precision(self, reason: str) -> Precision:
        return Precision(getattr(torch, self.dtype), reason)


SWITCHES = tuple(field.name for field in fields(Speed) if field.name != "dtype")


def parse_speed(text: str) -> Speed:
    """The inverse of str(speed). Raises ValueError."""
    dtype, *switches = text.split(" ")
    if dtype not in DTYPES or not set(switches) <= set(SWITCHES) or len(set(switches)) < len(switches):
        raise ValueError(f"{text!r} names no way to compute")
    return Speed(dtype, **dict.fromkeys(switches, True))


def plain_speed(wish: str, device: torch.device) -> Speed:
    """Nothing but the number format, of `wish` (auto, float32, bfloat16, float16)."""
    return Speed(str(choose_precision(wish, device).dtype)[6:])


def prediction_speed(manifest: Mapping, wish: str, device: torch.device) -> Speed:
    """How a fold predicts: in the number format and layout that it was trained in, where the device has them.

    manifest: of the fold. wish: the config's `precision`, for another device.
    """
    if manifest.get("device") != device.type or "speed" not in manifest:
        return plain_speed(wish, device)
    speed = replace(parse_speed(manifest["speed"]), compiled=False, fused=False)
    # A run of an A100 that is predicted on a T4, which would emulate bfloat16.
    return speed if wish == speed.dtype or has_format(speed.dtype, device) else plain_speed(wish, device)


def fallback(manifest: Mapping, wish: str, device: torch.device) -> str:
    """What `prediction_speed` does otherwise than the training did, for the person; empty: nothing."""
    if "speed" not in manifest:
        return ""
    trained, here = parse_speed(manifest["speed"]), prediction_speed(manifest, wish, device)
    if is_alike(trained, here):
        return ""
    return f"trained in {trained} on {manifest['device']}, which this {device.type} is no match for: {here} here"


def is_alike(speed: Speed, other: Speed) -> bool:
    """Whether they predict in the same format and layout."""
    switches = ("dtype", "channels_last", "depthwise_float32")
    return all(getattr(speed, name) == getattr(other, name) for name in switches)


def arrange(model: nn.Module, speed: Speed) -> nn.Module:
    """The model itself, laid out for `speed`; names and values of its weights stay."""
    if speed.channels_last:
        model.to(memory_format=torch.channels_last)
    set_depthwise(model, speed.depthwise_float32)
    return model


def start_with(model: nn.Module, speed: Speed) -> Callable | None:
    """Arrange the model and this process for training; the compiled forward pass, where there is to be one."""
    arrange(model, speed)
    if speed.keep_memory:
        keep_freed_memory(True)
    return compiled_forward(model) if speed.compiled else None
