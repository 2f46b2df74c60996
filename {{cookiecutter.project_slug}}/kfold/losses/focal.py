"""Focal loss: Lin and others, Focal Loss for Dense Object Detection, arxiv.org/abs/1708.02002.

torchvision's sigmoid_focal_loss is for 0 and 1 alone, and its gradient is NaN where a sure logit meets gamma below 1.
"""

import torch
from torch.nn import functional as F


def softmax_focal(logits: torch.Tensor, targets: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """(B, 1): the sum over classes of -t (1 - p)^gamma log p; gamma 0: cross entropy."""
    logs = logits.log_softmax(dim=1)
    # A floor of a rounding error: the slope of x^gamma at 0 is infinite for gamma below 1.
    doubt = (1 - logs.exp()).clamp(min=torch.finfo(logs.dtype).eps) ** gamma
    return -(targets * doubt * logs).sum(dim=1, keepdim=True)


def sigmoid_focal(logits: torch.Tensor, targets: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """(B, C): -t (1 - p)^gamma log p - (1 - t) p^gamma log(1 - p); gamma 0: binary cross entropy."""
    log_yes, log_no = F.logsigmoid(logits), F.logsigmoid(-logits)
    return -targets * (gamma * log_no).exp() * log_yes - (1 - targets) * (gamma * log_yes).exp() * log_no
