"""The network: backbone -> pooled features -> dropout -> head."""

import torch
from torch import nn


class Network(nn.Module):
    """Images (B, 3, H, W) float -> logits (B, C).

    backbone: images -> features (B, D). head: features -> logits.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, drop_rate: float = 0.0):
        super().__init__()
        self.backbone, self.dropout, self.head = backbone, nn.Dropout(drop_rate), head

    def forward(
        self, images: torch.Tensor, with_features: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, C); with_features: and the features (B, D) that the head sees, before dropout."""
        features = self.backbone(images)
        logits = self.head(self.dropout(features))
        return (logits, features) if with_features else logits
