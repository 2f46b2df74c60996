"""Weights files: safetensors, with everything needed to rebuild the model in their metadata. Never a pickle."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from kfold.errors import UserError
from kfold.model.build import build_model
from kfold.model.network import Architecture
from kfold.on_device import on_device

TRAINING_ONLY = ("centers",)  # tensors of kfold/losses/center.py


@dataclass(frozen=True)
class ModelCard:
    """What a weights file says of its model."""

    backbone: str
    image_size: int  # pixels
    task: str
    names: tuple[str, ...]  # C: one per output
    mean: tuple[float, ...]  # input statistics, 0..1 per channel
    std: tuple[float, ...]
    offset: tuple[float, ...]  # C: regression outputs are scale * logits + offset; 0 and 1 for the other tasks
    scale: tuple[float, ...]
    architecture: Architecture = Architecture()
    center_crop: float = 1.0  # share of the side of an image that is kept


def copy_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's weights as they are now, on the CPU, without what only training needs."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if name not in TRAINING_ONLY}
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}


def weights_to_bytes(weights: Mapping[str, torch.Tensor], card: ModelCard) -> bytes:
    """The safetensors file of a model's weights."""
    return save(dict(weights), {"kfold": json.dumps(asdict(card))})


def load_model(path: Path) -> tuple[nn.Module, ModelCard]:
    """Rebuild a model (on the CPU, eval mode) from its weights file; no hub is touched. Raises UserError."""
    try:
        with safe_open(path, "pt") as file:
            values = json.loads((file.metadata() or {})["kfold"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        card = read_card(values)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged or not a weights file of this repository ({error}): train again") from None
    model = build_model(card.backbone, len(card.names), card.image_size, architecture=card.architecture)
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise UserError(f"{path}: does not fit {card.backbone} of this timm version: train again") from None
    return model.eval(), card


def read_card(values: Mapping) -> ModelCard:
    """A card of what JSON made of it; TypeError where it has other fields."""
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return ModelCard(**{**plain, "architecture": Architecture(**plain.get("architecture", {}))})


def normalize(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """(B, H, W, 3), uint8 or float32 -> (B, 3, H, W) float32 with the given statistics (0..1), on the same device."""
    statistics = on_device(images.device, mean, std) * 255
    factor = 1 / statistics[1]
    scale, shift = torch.stack([factor, -statistics[0] * factor]).repeat(1, images.shape[2])
    # Whole rows of pixels, in one pass: on a CPU faster than by channel, or than to subtract and then divide.
    rows = images.flatten(2).to(torch.float32, copy=True)
    return torch.addcmul(shift, rows, scale, out=rows).view(images.shape).permute(0, 3, 1, 2)
