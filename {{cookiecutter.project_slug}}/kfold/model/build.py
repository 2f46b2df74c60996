"""A timm backbone with a fresh head, from ImageNet weights, a local file, or scratch."""

import urllib.error
import urllib.request
from pathlib import Path

import huggingface_hub
import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.data import resolve_model_data_config
from torch import nn

from kfold.errors import UserError
from kfold.model.network import Network

DERIVED = ("num_batches_tracked", "relative_position_index", "attn_mask")  # buffers that a model makes by itself


def build_model(
    backbone: str,
    num_outputs: int,
    image_size: int,
    drop_rate: float = 0.0,
    pretrained: bool = False,
    pretrained_path: str = "",
) -> Network:
    """A model (B, 3, image_size, image_size) float -> logits (B, num_outputs).

    `pretrained` downloads timm's weights unless `pretrained_path` names a local file in timm's names. Raises UserError
    for an unknown backbone, for weights that cannot be had, and for a file that does not fill the whole backbone.
    """
    refuse_unknown_backbone(backbone)
    features = build_backbone(backbone, image_size, pretrained, pretrained_path)
    head = nn.Linear(features.head_hidden_size, num_outputs)
    quiet_head(head)
    return Network(features, head, drop_rate)


def refuse_unknown_backbone(backbone: str) -> None:
    if not timm.is_model(backbone):
        near = timm.list_models(f"*{backbone.split('_')[0]}*")[:5]
        hint = f"near: {', '.join(near)}" if near else "see timm.list_models()"
        raise UserError(f"backbone '{backbone}': timm {timm.__version__} has none of that name; {hint}")


def quiet_head(head: nn.Linear) -> None:
    """Small weights and zero biases, so that the first steps do not shake pretrained features."""
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)


def build_backbone(backbone: str, image_size: int, pretrained: bool, pretrained_path: str) -> nn.Module:
    """timm's model without its classifier: images (B, 3, S, S) -> features (B, head_hidden_size)."""
    options: dict = {"num_classes": 0}
    if has_fixed_input(backbone):
        options["img_size"] = image_size  # transformers: position embeddings are resampled to it
    if pretrained_path:
        refuse_unfit_weights(backbone, pretrained_path)
        overlay = {"file": pretrained_path, "hf_hub_id": None}
        try:
            return timm.create_model(backbone, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"pretrained_path '{pretrained_path}': does not fit {backbone} ({reason})") from None
    if not pretrained:
        return timm.create_model(backbone, **options)
    if not hub_answers():
        huggingface_hub.constants.HF_HUB_OFFLINE = True  # its cache at once, without a minute of retries
    try:
        return timm.create_model(backbone, pretrained=True, **options)
    except (OSError, RuntimeError, ValueError) as error:  # hubs raise all of these without a network
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(
            f"pretrained weights of {backbone} cannot be downloaded ({reason}): use pretrained_path=FILE with local "
            f"weights, pretrained=false to train from scratch, or a machine with internet once"
        ) from None


def has_fixed_input(backbone: str) -> bool:
    """Whether the backbone takes images of one size only (transformers)."""
    return bool(timm.get_pretrained_cfg(backbone, allow_unregistered=True).fixed_input_size)


def hub_answers(seconds: float = 5) -> bool:
    """Whether the weights' hub can be reached; any answer of its counts."""
    try:
        urllib.request.urlopen(huggingface_hub.constants.ENDPOINT, timeout=seconds).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def trained_here(path: str) -> bool:
    """Whether a weights file is one of this repository's (model/weights.py), of whatever fold."""
    try:
        with safe_open(path, "pt") as file:
            return "kfold" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False  # no safetensors: none of ours


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
    odd = [str(name) for name, value in found.items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise UserError(f"pretrained_path '{pretrained_path}': {odd[0][:100]!r} in it is no tensor: is it weights?")
    with torch.device("meta"):
        wanted = timm.create_model(backbone, num_classes=0).state_dict()
        known = timm.create_model(backbone).state_dict()
    if trained_here(pretrained_path):
        raise UserError(
            f"pretrained_path '{pretrained_path}': trained by this repository, on labels of the folds that it would be "
            f"scored on: learn from it by distill_from; trained on other data, save it again without its metadata"
        )
    missing = [name for name in wanted if name not in found and not name.endswith(DERIVED)]
    foreign = [name for name in found if name not in known and not name.endswith(DERIVED)]
    for names, what in ((missing, "are not in it"), (foreign, "of it are none of the model's")):
        if names:
            raise UserError(
                f"pretrained_path '{pretrained_path}': {len(names)} of {len(wanted)} tensors of {backbone} {what}, "
                f"the first is {names[0]}: is it another model's file, or not in timm's names?"
            )


def input_statistics(backbone: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation (0..1, per RGB channel) that the backbone was made for."""
    data_config = resolve_model_data_config(backbone)
    return data_config["mean"], data_config["std"]
