"""Parts of a network that do not learn: first stages, BatchNorm, or the whole backbone.

What is frozen computes what it did before training: BatchNorm there uses its stored statistics and keeps them.
"""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kfold.model.network import Network
from kfold.model.stages import stages_of


def freeze(model: Network, stages: int, batch_norm: bool, whole_backbone: bool) -> None:
    """Set what learns in the coming epoch, whatever an earlier call set; to be called after `model.train()`.

    stages: first ones of the backbone that are frozen, the stem counted. batch_norm: freeze every BatchNorm of the
    backbone, statistics and affine weights. Neck, pooling and head always learn.
    """
    backbone = model.backbone
    frozen = {name for stage in stages_of(backbone)[:stages] for name in stage} if stages else set()
    of_stages = set(frozen)
    norms = batch_norms(backbone)
    weights_of = {place: {f"{place}.{name}" for name, _ in norm.named_parameters()} for place, norm in norms.items()}
    if batch_norm:
        frozen |= set().union(*weights_of.values())
    for name, weight in backbone.named_parameters():
        is_fixed = whole_backbone or name in frozen
        weight.requires_grad_(not is_fixed and name not in model.untrained)
    backbone.train(model.training and not whole_backbone)
    for name, module in backbone.named_modules():
        weights = {f"{name}.{weight}" if name else weight for weight, _ in module.named_parameters()}
        if weights and weights <= of_stages:
            module.eval()  # dropout and drop path, too
    for place, norm in norms.items():
        if batch_norm or (weights_of[place] and weights_of[place] <= frozen):
            norm.eval()


def batch_norms(backbone: nn.Module) -> dict[str, nn.Module]:
    return {place: module for place, module in backbone.named_modules() if isinstance(module, _BatchNorm)}
