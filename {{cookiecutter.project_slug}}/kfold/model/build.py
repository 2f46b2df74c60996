"""A timm backbone with a fresh head, from ImageNet weights, a local file, or scratch."""

from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from timm.data import resolve_model_data_config
from torch import nn

from kfold.errors import UserError


def build_model(
    backbone: str,
    num_outputs: int,
    image_size: int,
    drop_rate: float = 0.0,
    pretrained: bool = False,
    pretrained_path: str = "",
) -> nn.Module:
    """A model (B, 3, image_size, image_size) float -> logits (B, num_outputs).

    `pretrained` downloads timm's weights unless `pretrained_path` names a local file in timm's names. Raises UserError
    for an unknown backbone, for weights that cannot be had, and for a file that does not fill the whole backbone.
    """
    if not timm.is_model(backbone):
        near = timm.list_models(f"*{backbone.split('_')[0]}*")[:5]
        raise UserError(
            f"backbone '{backbone}': timm {timm.__version__} has none of that name; near: {', '.join(near)}"
        )
    model = build_backbone(backbone, num_outputs, image_size, drop_rate, pretrained, pretrained_path)
    quiet_head(model)
    return model


def quiet_head(model: nn.Module) -> None:
    """Small weights and zero biases, so that the first steps do not shake pretrained features.

    timm draws EfficientNet's heads from +-1/sqrt(num_outputs): with 6 classes the first epoch's loss was 3.5, not 1.7.
    """
    for module in model.get_classifier().modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


def build_backbone(
    backbone: str, num_outputs: int, image_size: int, drop_rate: float, pretrained: bool, pretrained_path: str
) -> nn.Module:
    options: dict = {"num_classes": num_outputs, "drop_rate": drop_rate}
    if timm.get_pretrained_cfg(backbone, allow_unregistered=True).fixed_input_size:
        options["img_size"] = image_size  # transformers: position embeddings are resampled to it
    if pretrained_path:
        refuse_unfit_weights(backbone, pretrained_path)
        return timm.create_model(
            backbone, pretrained=True, pretrained_cfg_overlay={"file": pretrained_path, "hf_hub_id": None}, **options
        )
    if not pretrained:
        return timm.create_model(backbone, **options)
    try:
        return timm.create_model(backbone, pretrained=True, **options)
    except (OSError, RuntimeError, ValueError) as error:  # hubs raise all of these without a network
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(
            f"pretrained weights of {backbone} cannot be downloaded ({reason}): use pretrained_path=FILE with local "
            f"weights, pretrained=false to train from scratch, or a machine with internet once"
        ) from None


def refuse_unfit_weights(backbone: str, pretrained_path: str) -> None:
    """Raise UserError unless the file holds every backbone parameter; timm itself would start the rest at random."""
    if not Path(pretrained_path).is_file():
        raise UserError(f"pretrained_path '{pretrained_path}': no such file")
    try:
        found = timm.models.load_state_dict(pretrained_path, weights_only=True)
    except (OSError, RuntimeError, ValueError, SafetensorError, EOFError) as error:
        raise UserError(
            f"pretrained_path '{pretrained_path}': not readable as weights ({type(error).__name__})"
        ) from None
    except Exception as error:  # pickle.UnpicklingError and kin: code in the file, or no weights at all
        raise UserError(
            f"pretrained_path '{pretrained_path}': refused, not plain weights ({type(error).__name__}): "
            f"save them as .safetensors"
        ) from None
    with torch.device("meta"):
        headless = timm.create_model(backbone, num_classes=0)
    missing = [name for name, _ in headless.named_parameters() if name not in found]
    if missing:
        total = sum(1 for _ in headless.named_parameters())
        raise UserError(
            f"pretrained_path '{pretrained_path}': {len(missing)} of {total} parameters of {backbone} are not in it, "
            f"the first is {missing[0]}: is it another model's file, or not in timm's names?"
        )


def input_statistics(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation (0..1, per RGB channel) that the backbone was made for."""
    data_config = resolve_model_data_config(model)
    return data_config["mean"], data_config["std"]
