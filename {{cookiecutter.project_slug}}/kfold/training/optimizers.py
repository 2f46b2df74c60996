"""Optimizers by name: torch's own where it has them, else timm's, else pytorch_optimizer's.

The rate that counts is the schedule's, which each step writes into the groups: what an optimizer has of its own to
choose or bound a rate is switched off, or scales with the schedule's.
"""

from collections.abc import Callable, Iterable

import timm.optim
import torch
from torch import nn

from kfold.errors import UserError
from kfold.training.parameter_groups import parameter_groups


def layer_wise(groups: Iterable[dict]) -> list[dict]:
    """Groups of matrices, which have a trust ratio even without weight decay, and of vectors, which have none without.

    timm ties the ratio to weight decay (timm/optim/lamb.py and lars.py, `weight_decay != 0 or always_adapt`): without
    it LAMB would be Adam, and LARS would be SGD. So vectors have a ratio where decay_all lets them decay.
    """
    found = []
    for group in groups:
        for is_matrix in (True, False):  # position embeddings, which do not decay, come in one group with the vectors
            weights = [weight for weight in group["params"] if (weight.ndim > 1) == is_matrix]
            found += [{**group, "params": weights, "always_adapt": is_matrix}] if weights else []
    return found


def lamb(groups: Iterable[dict], **options) -> torch.optim.Optimizer:
    """You and others, arxiv.org/abs/1904.00962; clip_grad alone clips, not LAMB's own default of 1."""
    return timm.optim.Lamb(layer_wise(groups), max_grad_norm=None, **options)


def lars(groups: Iterable[dict], **options) -> torch.optim.Optimizer:
    """You, Gitman and Ginsburg, arxiv.org/abs/1708.03888."""
    return timm.optim.Lars(layer_wise(groups), momentum=0.9, **options)


def adabound(groups: Iterable[dict], **options) -> torch.optim.Optimizer:
    """Luo and others, arxiv.org/abs/1902.09843; its final rate of 0.1 falls with the schedule, too."""
    try:
        from pytorch_optimizer import AdaBound
    except ImportError:
        raise UserError(
            "optimizer=adabound needs a package that is not installed: pip install pytorch_optimizer"
        ) from None
    return AdaBound(groups, **options)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,  # weight decay joins the gradient; arxiv.org/abs/1412.6980
    "adamw": torch.optim.AdamW,  # weight decay shrinks the weights themselves; arxiv.org/abs/1711.05101
    "sgd": lambda groups, **options: torch.optim.SGD(groups, momentum=0.9, **options),
    "sgd_nesterov": lambda groups, **options: torch.optim.SGD(groups, momentum=0.9, nesterov=True, **options),
    "nadam": torch.optim.NAdam,  # Dozat, openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ
    "radam": torch.optim.RAdam,  # arxiv.org/abs/1908.03265
    "rmsprop": torch.optim.RMSprop,
    "lamb": lamb,
    "lars": lars,
    "novograd": timm.optim.NvNovoGrad,  # arxiv.org/abs/1905.11286
    # arxiv.org/abs/1804.04235. torch's own scales the rate by the size of the weights and caps it at 1 / sqrt(step).
    "adafactor": timm.optim.Adafactor,
    "adabelief": timm.optim.AdaBelief,  # arxiv.org/abs/2010.07468
    "adabound": adabound,
    "adan": timm.optim.Adan,  # arxiv.org/abs/2208.06677
    "lion": timm.optim.Lion,  # arxiv.org/abs/2302.06675
    "madgrad": timm.optim.MADGRAD,  # arxiv.org/abs/2101.11075
}

FUSED = ("adam", "adamw", "sgd", "sgd_nesterov")  # their fused kernels differ in the last digit only

# Numbers that an optimizer keeps for each number of the model; Adafactor's share is that of narrow layers, at most.
NUM_MOMENTS = {
    "adam": 2, "adamw": 2, "sgd": 1, "sgd_nesterov": 1, "nadam": 2, "radam": 2, "rmsprop": 1, "lamb": 2, "lars": 1,
    "novograd": 1, "adafactor": 0.3, "adabelief": 2, "adabound": 2, "adan": 4, "lion": 1, "madgrad": 3,
}  # fmt: skip


def make_optimizer(
    name: str,
    model: nn.Module,
    lr: float,
    weight_decay: float,
    decay_all: bool = False,
    backbone_lr: float = 1.0,
    layer_decay: float = 1.0,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """lr: at the schedule's peak. fused: for those of FUSED, one kernel for the whole step; others ignore it.

    The rest: see parameter_groups. Raises UserError where something is missing.
    """
    groups = parameter_groups(model, weight_decay, decay_all, backbone_lr, layer_decay)
    options = {"fused": True} if fused and name in FUSED else {}
    return OPTIMIZERS[name](groups, lr=lr, weight_decay=weight_decay, **options)
