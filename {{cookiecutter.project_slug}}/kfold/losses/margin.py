"""Margins: the true class has to win by an angle (ArcFace), or by a difference of cosines (CosFace), in training.

The head gives logits = scale x cos(angle between features and the class's weights). What is here makes them harder to
satisfy; cross entropy or focal loss is taken of the result. Predictions are made without a margin.
"""

import math

import numpy as np
import torch


def arcface(logits: torch.Tensor, targets: torch.Tensor, scale: float, margins: torch.Tensor) -> torch.Tensor:
    """Logits (B, C) with scale x cos(angle + margin) for the true class; a margin of 0 changes nothing.

    margins: (C,), radians below pi/2. Beyond pi - margin, where that cosine would rise again, the logit loses
    scale x margin x sin(margin), as in the authors' code.
    Deng and others, ArcFace, arxiv.org/abs/1801.07698
    """
    floor = torch.finfo(logits.dtype).eps  # the slope of a root at 0 is infinite
    sines = (1 - (logits / scale) ** 2).clamp(min=floor).sqrt()
    turned = logits * margins.cos() - scale * margins.sin() * sines
    harder = torch.where(logits > -scale * margins.cos(), turned, logits - scale * margins * margins.sin())
    return torch.where(targets > 0.5, harder, logits)


def cosface(logits: torch.Tensor, targets: torch.Tensor, scale: float, margins: torch.Tensor) -> torch.Tensor:
    """Logits (B, C) with scale x (cos(angle) - margin) for the true class; a margin of 0 changes nothing.

    margins: (C,), of the cosine. Wang and others, CosFace, arxiv.org/abs/1801.09414
    """
    return torch.where(targets > 0.5, logits - scale * margins, logits)


def class_margins(margin: float, counts: np.ndarray, power: float, highest: float) -> torch.Tensor:
    """(C,): margin x (rows of the class / mean)^-power, at most `highest`; rare classes get more, power 0: all alike.

    Ha and others, Google Landmark Recognition 2020 third place, arxiv.org/abs/2010.05350, section 2.3
    """
    counts = np.maximum(counts, 1.0)  # a class without rows is never the true one
    return torch.from_numpy(np.minimum(margin * (counts / counts.mean()) ** -power, highest)).float()


def margin_scale(wish: float, num_classes: int) -> float:
    """The scale of the cosines: `wish`, or for 0 sqrt(2) x log(C - 1), at least 1, which two classes would not reach.

    Zhang and others, AdaCos, arxiv.org/abs/1905.00292, equation 7 (the fixed scale)
    """
    return wish or max(1.0, math.sqrt(2) * math.log(max(num_classes - 1, 1)))
