"""Parts of a network that stay as they are."""

from torch import nn

from kfold.model.network import Network

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def freeze(model: Network, stages: int, batch_norm: bool, whole_backbone: bool) -> None:
    """A minimal stand-in."""
    backbone = model.backbone
    backbone.requires_grad_(not whole_backbone)
    if stages and not whole_backbone:
        for part in list(backbone.children())[:stages]:
            part.requires_grad_(False).eval()
    for module in backbone.modules():
        if isinstance(module, NORMS) and (batch_norm or whole_backbone):
            module.eval()
