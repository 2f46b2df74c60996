"""L1 penalty (the lasso): Tibshirani, doi.org/10.1111/j.2517-6161.1996.tb02080.x

Together with weight decay that joins the gradient (Adam's, not AdamW's) it is the elastic net: Zou and Hastie,
doi.org/10.1111/j.1467-9868.2005.00503.x
"""

from collections.abc import Iterable

import torch
from torch import nn


def absolute_sum(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """The sum of |w| over trained weights; biases and norms, which are vectors, are left out, also with decay_all."""
    weights = [parameter for parameter in parameters if parameter.ndim > 1 and parameter.requires_grad]
    return torch.stack([weight.abs().sum() for weight in weights]).sum()
