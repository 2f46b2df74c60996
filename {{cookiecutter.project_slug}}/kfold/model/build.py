"""A backbone of timm or torchvision with a fresh head, from ImageNet weights, a local file, or scratch."""

import difflib
import urllib.error
import urllib.request
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.data import resolve_model_data_config
from torch import nn

from kfold.errors import UserError
from kfold.model.heads import make_head
from kfold.model.neck import make_neck
from kfold.model.network import Architecture, Network
from kfold.model.norms import replace_norms
from kfold.model.pooling import Pooling
from kfold.model.torchvision_backbone import (
    TorchvisionBackbone,
    fetch_weights,
    fill,
    is_torchvision,
    known_names,
    refuse_unknown_network,
    takes_one_size,
)

DEFAULT = Architecture()
DERIVED = ("num_batches_tracked", "relative_position_index", "attn_mask")  # buffers that a model makes by itself


def build_model(
    backbone: str,
    num_outputs: int,
    image_size: int,
    drop_rate: float = 0.0,
    pretrained: bool = False,
    pretrained_path: str = "",
    architecture: Architecture = DEFAULT,
    drop_path_rate: float = 0.0,
    multi_sample_dropout: int = 1,
) -> Network:
    """A model (B, 3, image_size, image_size) float -> logits (B, num_outputs).

    `pretrained` downloads the library's weights unless `pretrained_path` names a local file in its names. Raises
    UserError for an unknown backbone or one that lacks what is asked for, for weights that cannot be had, and for a
    file that does not fill the whole backbone.
    """
    refuse_unknown_backbone(backbone)
    features = build_backbone(backbone, image_size, pretrained, pretrained_path, drop_path_rate)
    replace_norms(features, backbone, architecture.norm)
    pooling = None if architecture.pooling == "default" else replace_pooling(features, backbone, architecture.pooling)
    # timm 1.0.26, which Kaggle has: MetaFormers have only the second
    width = features.head_hidden_size if hasattr(features, "head_hidden_size") else features.num_features
    num_features = width * (pooling.width if pooling else 1)
    neck = make_neck(architecture.neck, num_features)
    scale, num_subcenters = architecture.margin_scale, architecture.num_subcenters
    head = make_head(architecture.head, num_features, num_outputs, scale, num_subcenters)
    return Network(features, head, drop_rate, pooling, neck, multi_sample_dropout)


def refuse_unknown_backbone(backbone: str) -> None:
    if is_torchvision(backbone):
        refuse_unknown_network(backbone)
    elif not timm.is_model(backbone):
        names, wish = timm.list_models(), backbone.lower()[:100]
        begun = [name for name in names if wish and name.startswith(wish)]
        near = (begun or difflib.get_close_matches(wish, names, n=5))[:5]
        hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models()"
        raise UserError(f"backbone '{backbone}': timm {timm.__version__} has none of that name; {hint}")


def replace_pooling(features: nn.Module, backbone: str, pooling: str) -> Pooling:
    """Take the backbone's own pooling away, in place; what comes instead."""
    try:
        features.reset_classifier(0, "")
    except (AssertionError, AttributeError, TypeError, ValueError):
        raise UserError(f"pooling={pooling}: {backbone} has no pooling to replace: use pooling=default") from None
    channels_last = str(getattr(features, "output_fmt", "")).upper().endswith("NHWC")
    return Pooling(pooling, getattr(features, "num_prefix_tokens", 0), channels_last)


def build_backbone(
    backbone: str, image_size: int, pretrained: bool, pretrained_path: str, drop_path_rate: float = 0.0
) -> nn.Module:
    """The library's model without its classifier: images (B, 3, S, S) -> features (B, head_hidden_size)."""
    if is_torchvision(backbone):
        features = TorchvisionBackbone(backbone, image_size)
        if pretrained_path:
            fill_from_file(features, backbone, pretrained_path)
        elif pretrained:
            with download_of(backbone):
                fill(features, fetch_weights(backbone))
        return features
    options: dict = {"num_classes": 0}
    if has_fixed_input(backbone):
        options["img_size"] = image_size  # transformers: position embeddings are resampled to it
    if drop_path_rate:
        refuse_without_drop_path(backbone, drop_path_rate)
        options["drop_path_rate"] = drop_path_rate
    if pretrained_path:
        refuse_unfit_weights(backbone, pretrained_path)
        overlay = {"file": pretrained_path, "hf_hub_id": None}
        with shapes_of(backbone, pretrained_path):
            return timm.create_model(backbone, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    if not pretrained:
        return timm.create_model(backbone, **options)
    if not hub_answers():
        huggingface_hub.constants.HF_HUB_OFFLINE = True  # its cache at once, without a minute of retries
    with download_of(backbone):
        return timm.create_model(backbone, pretrained=True, **options)


@contextmanager
def download_of(backbone: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:  # hubs raise all of these without a network
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(
            f"pretrained weights of {backbone} cannot be downloaded ({reason}): use pretrained_path=FILE with local "
            f"weights, pretrained=false to train from scratch, or a machine with internet once"
        ) from None


@contextmanager
def shapes_of(backbone: str, pretrained_path: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"pretrained_path '{pretrained_path}': does not fit {backbone} ({reason})") from None


def fill_from_file(features: TorchvisionBackbone, backbone: str, pretrained_path: str) -> None:
    found = known_names(read_pretrained(pretrained_path))
    wanted = list(features.network.state_dict())
    known = [*wanted, *(f"{features.classifier}.{name}" for name in ("weight", "bias"))]
    refuse_other_names(backbone, pretrained_path, found, wanted, known)
    with shapes_of(backbone, pretrained_path):
        fill(features, found)


def refuse_without_drop_path(backbone: str, drop_path_rate: float) -> None:
    """Raise UserError where timm's model does not leave out residual blocks: some refuse the word, some swallow it."""
    try:
        with torch.device("meta"):
            model = timm.create_model(backbone, num_classes=0, drop_path_rate=drop_path_rate)
    except TypeError:
        model = nn.Identity()
    if not any(getattr(module, "drop_prob", 0) for module in model.modules()):
        raise UserError(f"drop_path_rate={drop_path_rate}: {backbone} cannot leave out blocks: leave it out")


def has_fixed_input(backbone: str) -> bool:
    """Whether the backbone takes images of one size only (transformers)."""
    if is_torchvision(backbone):
        return takes_one_size(backbone)
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
    found = read_pretrained(pretrained_path)
    with torch.device("meta"):
        wanted = timm.create_model(backbone, num_classes=0).state_dict()
        known = timm.create_model(backbone).state_dict()
    refuse_other_names(backbone, pretrained_path, found, wanted, known)


def read_pretrained(pretrained_path: str) -> Mapping[str, torch.Tensor]:
    """The tensors of a local weights file; code in it is never run. Raises UserError."""
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
    if trained_here(pretrained_path):
        raise UserError(
            f"pretrained_path '{pretrained_path}': trained by this repository, on labels of the folds that it would be "
            f"scored on: learn from it by distill_from; trained on other data, save it again without its metadata"
        )
    return found


def refuse_other_names(
    backbone: str, pretrained_path: str, found: Iterable[str], wanted: Collection[str], known: Collection[str]
) -> None:
    """Raise UserError where a wanted tensor is not found, or a found one is not known."""
    library = "torchvision" if is_torchvision(backbone) else "timm"
    missing = [name for name in wanted if name not in found and not name.endswith(DERIVED)]
    foreign = [name for name in found if name not in known and not name.endswith(DERIVED)]
    for names, what in ((missing, "are not in it"), (foreign, "of it are none of the model's")):
        if names:
            raise UserError(
                f"pretrained_path '{pretrained_path}': {len(names)} of {len(wanted)} tensors of {backbone} {what}, "
                f"the first is {names[0]}: is it another model's file, or not in {library}'s names?"
            )


def input_statistics(backbone: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation (0..1, per RGB channel) that the backbone was made for."""
    data_config = resolve_model_data_config(backbone)
    return data_config["mean"], data_config["std"]
