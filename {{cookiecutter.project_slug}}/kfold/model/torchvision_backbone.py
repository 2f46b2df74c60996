"""Classification networks of torchvision, under the prefix torchvision/: what timm lacks, such as ShuffleNet."""

import difflib
import re
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from kfold.errors import UserError

PREFIX = "torchvision/"
INCEPTIONS = {"aux_logits": False, "transform_input": True, "init_weights": True}  # as their weights were trained
OPTIONS: dict[str, dict] = {"googlenet": INCEPTIONS, "inception_v3": INCEPTIONS}
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # their second heads, of training alone
SIZE_OPTIONS = {"vit_": lambda size: {"image_size": size}, "maxvit_": lambda size: {"input_size": (size, size)}}
CONTAINERS = r"(?:(?:features|layers|blocks|trunk_output|encoder)\.)*"  # of stages
STEM = r"(?i)conv|bn|norm|class_token|pos_embedding"


def is_torchvision(backbone: str) -> bool:
    return backbone.startswith(PREFIX)


def refuse_unknown_network(backbone: str) -> None:
    # MNASNet's weights load only with a version number, which safetensors does not keep; timm has it, too.
    names = [name for name in models.list_models(module=models) if not name.startswith("mnasnet")]
    name = backbone.removeprefix(PREFIX)
    if name not in names:
        near = difflib.get_close_matches(name, names, 5, 0.3)
        hint = (
            f"did you mean {', '.join(PREFIX + name for name in near)}?"
            if near
            else "see torchvision.models.list_models()"
        )
        raise UserError(f"backbone '{backbone}': torchvision has no classification network of that name; {hint}")


def takes_one_size(backbone: str) -> bool:
    return backbone.removeprefix(PREFIX).startswith(tuple(SIZE_OPTIONS))


class TorchvisionBackbone(nn.Module):
    """Images (B, 3, S, S) -> features (B, head_hidden_size): a network without its last linear layer.

    head_hidden_size, pretrained_cfg and group_matcher are what timm's models have under these names. Raises UserError
    for a network without a linear classifier, and for an image size that it cannot take.
    """

    def __init__(self, backbone: str, image_size: int):
        super().__init__()
        name = backbone.removeprefix(PREFIX)
        options = dict(OPTIONS.get(name, {}))
        for prefix, of_size in SIZE_OPTIONS.items():
            options |= of_size(image_size) if name.startswith(prefix) else {}
        try:
            self.network = models.get_model(name, weights=None, **options)
        except (ValueError, AssertionError) as error:
            raise UserError(f"backbone '{backbone}' cannot take image_size={image_size}: {error}") from None
        linear = [place for place, layer in self.network.named_modules() if isinstance(layer, nn.Linear)]
        if not linear:
            raise UserError(f"backbone '{backbone}': its classifier is not linear: take another one")
        self.classifier = linear[-1]  # its place in the network
        self.head_hidden_size = self.network.get_submodule(self.classifier).in_features
        self.network.set_submodule(self.classifier, nn.Identity())
        for layer in self.network.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0  # as in timm's models: drop_rate decides
        preset = models.get_model_weights(name).DEFAULT.transforms()
        self.pretrained_cfg = {
            "mean": tuple(preset.mean),
            "std": tuple(preset.std),
            "input_size": (3, image_size, image_size),
            "fixed_input_size": takes_one_size(name),
        }

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """A parameter's name -> its stage, from 0: the stem, then each container of layers that the network names."""
        keys = list(dict.fromkeys(stage_key(name) for name, _ in self.named_parameters()))
        num_stem = next((place for place, key in enumerate(keys) if not re.match(STEM, key)), 0)
        return lambda name: max(0, keys.index(stage_key(name)) - max(num_stem - 1, 0))


def stage_key(name: str) -> str:
    """network.features.3.conv.0.weight -> 3; network.layer1.0.bn1.bias -> layer1"""
    return re.match(rf"network\.{CONTAINERS}([^.]+)", name)[1]


def fetch_weights(backbone: str) -> Mapping[str, torch.Tensor]:
    """Torchvision's ImageNet weights, downloaded once. Raises OSError or RuntimeError without a network."""
    weights = models.get_model_weights(backbone.removeprefix(PREFIX)).DEFAULT
    return weights.get_state_dict(progress=True, check_hash=True)


def fill(backbone: TorchvisionBackbone, state: Mapping[str, torch.Tensor]) -> None:
    """Load weights in torchvision's names, all but the classifier's; position embeddings are resampled to the size.

    Raises RuntimeError where shapes differ.
    """
    network = backbone.network
    kept = {name: value for name, value in known_names(state).items() if name in network.state_dict()}
    if isinstance(network, models.VisionTransformer):
        kept = interpolate_embeddings(network.image_size, network.patch_size, kept)
    network.load_state_dict(kept)


def known_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state in today's names: DenseNet's files say norm.1 for norm1. Second heads are left out."""
    renamed = {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", name): state[name] for name in state}
    return {name: value for name, value in renamed.items() if not name.startswith(AUXILIARY)}
