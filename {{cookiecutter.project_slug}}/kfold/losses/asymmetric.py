"""Asymmetric loss: Ridnik and others, Asymmetric Loss for Multi-Label Classification, arxiv.org/abs/2009.14119.

timm's is a sum over the batch, or has gradients of NaN for gammas below 1, by its version.
"""

import math

import torch
from torch.nn import functional as F


def asymmetric(
    logits: torch.Tensor,
    targets: torch.Tensor,
    gamma_positive: float = 1.0,
    gamma_negative: float = 4.0,
    clip: float = 0.05,
) -> torch.Tensor:
    """(B, C): -t (1 - p)^gamma_positive log p - (1 - t) q^gamma_negative log(1 - q), with q = max(p - clip, 0).

    A negative whose probability is below `clip` costs nothing. With 0, 0 and 0: binary cross entropy.
    """
    log_yes, log_no = F.logsigmoid(logits), F.logsigmoid(-logits)
    positive = (gamma_positive * log_no).exp() * log_yes
    shifted = (logits.sigmoid() - clip).clamp(min=torch.finfo(logits.dtype).eps)  # its floor: see focal.py
    log_shifted_no = log_no if clip == 0 else torch.logaddexp(log_no, log_no.new_full((), math.log(clip))).clamp(max=0)
    negative = shifted**gamma_negative * log_shifted_no
    return -targets * positive - (1 - targets) * negative
