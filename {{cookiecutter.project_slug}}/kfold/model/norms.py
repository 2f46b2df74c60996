"""Other norms in place of a backbone's BatchNorm; weights of a pretrained one are kept.

Sources: GroupNorm: Wu and He, arxiv.org/abs/1803.08494. IBN-Net-a: Pan and others, Two at Once: Enhancing Learning and
Generalization Capacities via IBN-Net, arxiv.org/abs/1807.09441, figure 3a.
"""

import torch
from timm.layers import BatchNormAct2d, GroupNormAct
from torch import nn

from kfold.errors import UserError

MOST_GROUPS = 32  # the paper's
IBN_STAGES = ("layer1", "layer2", "layer3")  # the last one needs what InstanceNorm takes away: the paper's figure 2


def replace_norms(backbone: nn.Module, name: str, norm: str) -> None:
    """Swap the norms in place. Raises UserError where the backbone, called `name`, has none of the kind."""
    if norm == "group" and not use_group_norm(backbone):
        raise UserError(f"norm=group: {name} has no BatchNorm to replace: leave norm out, or take another backbone")
    if norm == "ibn" and not use_instance_norm(backbone):
        raise UserError(
            f"norm=ibn: {name} is not built as a ResNet (layer1 to layer4, blocks that begin with conv1 and bn1): "
            f"leave norm out, or take a resnet"
        )


def use_group_norm(module: nn.Module) -> int:
    """Replace every BatchNorm2d by a GroupNorm; how many there were."""
    count = 0
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, to_group_norm(child))
            count += 1
        else:
            count += use_group_norm(child)
    return count


def to_group_norm(norm: nn.BatchNorm2d) -> nn.GroupNorm:
    """A GroupNorm with the affine weights, and the activation, of a BatchNorm."""
    num_groups = next(count for count in range(MOST_GROUPS, 0, -1) if norm.num_features % count == 0)
    if isinstance(norm, BatchNormAct2d):
        group_norm = GroupNormAct(norm.num_features, num_groups, norm.eps, norm.affine, apply_act=False)
        group_norm.drop, group_norm.act = norm.drop, norm.act
    else:
        group_norm = nn.GroupNorm(num_groups, norm.num_features, norm.eps, norm.affine)
    copy_affine(norm, group_norm)
    return group_norm


def copy_affine(source: nn.Module, target: nn.Module, rows: slice = slice(None)) -> None:
    if source.affine:
        with torch.no_grad():
            target.weight.copy_(source.weight[rows])
            target.bias.copy_(source.bias[rows])


class InstanceBatchNorm(nn.Module):
    """The first half of the channels by InstanceNorm, the others by BatchNorm: (B, C, H, W) -> the same shape."""

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        self.half = half = norm.num_features // 2
        self.instance_norm = nn.InstanceNorm2d(half, eps=norm.eps, affine=True)
        self.batch_norm = nn.BatchNorm2d(norm.num_features - half, norm.eps, norm.momentum)
        self.activation = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        copy_affine(norm, self.instance_norm, slice(half))
        copy_affine(norm, self.batch_norm, slice(half, None))
        self.batch_norm.running_mean.copy_(norm.running_mean[half:])
        self.batch_norm.running_var.copy_(norm.running_var[half:])

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        instance, batch = self.instance_norm(maps[:, : self.half]), self.batch_norm(maps[:, self.half :])
        return self.activation(torch.cat([instance, batch], dim=1))


def use_instance_norm(backbone: nn.Module) -> int:
    """Replace the first BatchNorm of each block of the first three stages of a ResNet; how many there were."""
    stages = [child for name, child in backbone.named_modules() if name.rpartition(".")[2] in IBN_STAGES]
    blocks = [block for stage in stages for block in stage if hasattr(block, "conv1")]
    blocks = [block for block in blocks if isinstance(getattr(block, "bn1", None), nn.BatchNorm2d)]
    for block in blocks:
        block.bn1 = InstanceBatchNorm(block.bn1)
    return len(blocks)
