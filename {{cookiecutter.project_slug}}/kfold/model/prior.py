"""The head starts at the classes' shares of the training rows, so that the first steps need not learn them.

Source: Lin and others, Focal Loss for Dense Object Detection, arxiv.org/abs/1708.02002, section 3.3 (of a rare class).
"""

import numpy as np
import torch
from torch import nn


def set_prior_bias(head: nn.Linear, targets: np.ndarray, task: str) -> None:
    """Set the bias to the log (multiclass) or the logit (binary, multilabel) of the shares of targets (N, C).

    A class that no row has counts as half a row. The weights stay as they are.
    """
    half_a_row = 0.5 / len(targets)
    shares = np.clip(targets.mean(axis=0, dtype=np.float64), half_a_row, 1 - half_a_row)
    logs = np.log(shares) if task == "multiclass" else np.log(shares / (1 - shares))
    with torch.no_grad():
        head.bias.copy_(torch.tensor(logs))
