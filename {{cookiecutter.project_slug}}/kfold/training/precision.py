"""Device and number format for the machine at hand.

Source: Micikevicius and others, Mixed Precision Training, arxiv.org/abs/1710.03740
"""

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    dtype: torch.dtype
    reason: str  # why, for the person

    @property
    def needs_scaler(self) -> bool:
        """float16 gradients underflow without loss scaling."""
        return self.dtype == torch.float16


def choose_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def make_deterministic(wish: bool) -> None:
    """On a GPU: choose kernels that give the same bytes each time; operations without one only warn."""
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for; read at its first use
        torch.backends.cudnn.deterministic = wish
        torch.use_deterministic_algorithms(wish, warn_only=True)


def choose_precision(wish: str, device: torch.device) -> Precision:
    """The autocast format for `wish` (auto, float32, bfloat16, float16) on a device."""
    if wish != "auto":
        return Precision(getattr(torch, wish), "as configured")
    if device.type != "cuda":
        return Precision(torch.float32, f"auto: {device.type} gains from less only for some models (try bfloat16)")
    if has_format("bfloat16", device):
        return Precision(torch.bfloat16, f"auto: {torch.cuda.get_device_name()} has bfloat16 in hardware")
    return Precision(torch.float16, f"auto: {torch.cuda.get_device_name()} lacks bfloat16, float16 with loss scaling")


def has_format(dtype: str, device: torch.device) -> bool:
    """Whether the device calculates in it by itself."""
    if dtype != "bfloat16" or device.type != "cuda":
        return True
    # is_bf16_supported() alone says yes on a T4, where bfloat16 is emulated and slow.
    return torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    return torch.autocast(device.type, precision.dtype, enabled=precision.dtype != torch.float32)
