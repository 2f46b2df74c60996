"""Lovász losses: Berman, Triki and Blaschko, The Lovász-Softmax loss, arxiv.org/abs/1705.08790.

The paper's pixels are the rows of a batch here. The Jaccard loss of a class, 1 - intersection / union of its true and
its predicted rows, is a function of the set of wrong rows; its Lovász extension takes errors between 0 and 1, too.
"""

import torch


def lovasz_softmax(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(B, 1), alike in all rows: the mean over the classes in the batch. Targets of 0 and 1."""
    truth = targets > 0.5
    values = jaccard_extension((truth.float() - logits.softmax(dim=1)).abs(), truth)
    present = truth.any(dim=0)
    return (values * present).sum().div(present.sum().clamp(min=1)).expand(len(logits), 1)


def lovasz_hinge(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(B, C), alike in all rows: for each column, of the hinge errors 1 - s logit, s = 1 or -1. Targets of 0 and 1."""
    truth = targets > 0.5
    errors = (1 - logits * (2 * truth.float() - 1)).relu()
    return jaccard_extension(errors, truth).expand(logits.shape)


def jaccard_extension(errors: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """(C,): for each column, the Lovász extension of the Jaccard loss at errors (B, C); truth (B, C) bool."""
    ordered, order = errors.sort(dim=0, descending=True, stable=True)
    truth = truth.gather(0, order).long()  # whole numbers: sums are exact, and in one order on every device
    missed = truth.sum(dim=0) - truth.cumsum(dim=0)  # true rows that are still right, after the first i are wrong
    union = truth.sum(dim=0) + (1 - truth).cumsum(dim=0)
    losses = 1 - missed / union.clamp(min=1)
    steps = torch.cat([losses[:1], losses[1:] - losses[:-1]])
    return (ordered * steps).sum(dim=0)
