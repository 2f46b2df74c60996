"""The network: backbone -> pooling -> neck -> dropout -> head."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Architecture:
    """What a network is made of besides its backbone, as kfold/config.py names it; predictions need no more."""

    pooling: str = "default"
    neck: str = "none"
    head: str = "linear"
    margin_scale: float = 30.0  # of margin heads
    num_subcenters: int = 3  # of subcenter_arcface
    norm: str = "default"


class Network(nn.Module):
    """Images (B, 3, H, W) float -> logits (B, C).

    backbone: images -> features (B, D), or what `pooling` makes (B, D) of. neck: features -> features. head: features
    -> logits. num_masks: of dropout in training, whose logits are averaged; 1: plain dropout. Source: Inoue,
    Multi-Sample Dropout for Accelerated Training and Better Generalization, arxiv.org/abs/1905.09788
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        drop_rate: float = 0.0,
        pooling: nn.Module | None = None,
        neck: nn.Module | None = None,
        num_masks: int = 1,
    ):
        super().__init__()
        self.backbone, self.pooling, self.neck = backbone, pooling or nn.Identity(), neck or nn.Identity()
        self.dropout, self.head, self.num_masks = nn.Dropout(drop_rate), head, num_masks
        # Such as fixed position embeddings: unfreezing must not make them learn.
        self.untrained = frozenset(name for name, weight in backbone.named_parameters() if not weight.requires_grad)

    def forward(
        self, images: torch.Tensor, with_features: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, C); with_features: and the pooled features (B, D), before neck and dropout."""
        features = self.pooling(self.backbone(images))
        seen = self.neck(features)
        if self.training and self.num_masks > 1:
            logits = torch.stack([self.head(self.dropout(seen)) for _ in range(self.num_masks)]).mean(dim=0)
        else:
            logits = self.head(self.dropout(seen))
        return (logits, features) if with_features else logits
