"""What a benchmark says of the machine that it runs on."""

import os

import torch


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"


def load() -> str:
    return f"load of the machine {os.getloadavg()[0]:.1f} (mean of the last minute, this process included)"
