"""Weights of classes in the loss, by how many training rows they have; their mean over those rows is 1."""

from collections.abc import Callable

import numpy as np
import torch

from kfold.on_device import on_device

Rule = Callable[[np.ndarray], np.ndarray]  # rows of exclusive classes (K,) or (K, C) -> weights of the same shape


def inverse_log(counts: np.ndarray) -> np.ndarray:
    """1 / log(1.02 + share of the class): from 50 for the rarest down to 1.4.

    Paszke and others, ENet, arxiv.org/abs/1606.02147, section 5.2
    """
    return 1 / np.log(1.02 + counts / counts.sum(axis=0))


def effective_number(counts: np.ndarray, beta: float) -> np.ndarray:
    """(1 - beta) / (1 - beta^n): 1 for one row, 1 - beta for very many; beta 0: all alike.

    Cui and others, Class-Balanced Loss Based on Effective Number of Samples, arxiv.org/abs/1901.05555
    """
    return (1 - beta) / (1 - beta ** np.maximum(counts, 1.0))  # a class without rows has no weight to get wrong


def weigh_classes(targets: np.ndarray, task: str, rule: Rule) -> Callable[[torch.Tensor], torch.Tensor]:
    """Targets (B, C) of a batch -> their weights in the loss, by the training rows' targets (N, C).

    multiclass: (B, 1), of each row the sum of t_c w_c. binary and multilabel: (B, C), where in each column yes and no
    have a weight each.
    """
    targets = targets.astype(np.float64)
    counts = targets.sum(axis=0) if task == "multiclass" else np.stack([(1 - targets).sum(axis=0), targets.sum(axis=0)])
    weights = rule(counts)
    weights = np.atleast_2d(weights * counts.sum(axis=0) / (counts * weights).sum(axis=0))
    rows = [tuple(row) for row in weights.tolist()]

    def of_rows(targets: torch.Tensor) -> torch.Tensor:
        return (targets * on_device(targets.device, *rows)).sum(dim=1, keepdim=True)

    def of_cells(targets: torch.Tensor) -> torch.Tensor:
        no, yes = on_device(targets.device, *rows)
        return targets * yes + (1 - targets) * no

    return of_rows if task == "multiclass" else of_cells
