"""How much a model doubts the labels that it is shown, and which rows it doubts most.

The loss of a row by a model of the labels: Northcutt, Jiang and Chuang, arxiv.org/abs/1911.00068, compare it to others.
"""

import numpy as np

TINY = 1e-7  # the least probability that a label is given


def label_losses(predictions: np.ndarray, targets: np.ndarray, task: str) -> np.ndarray:
    """The loss (N,) float64 of each row's label; predictions and targets (N, C).

    Cross entropy for multiclass, the mean binary one over the columns for binary and multilabel. Regression: the mean
    over the columns of the squared distance, in standard deviations of the targets.
    """
    predictions, targets = predictions.astype(np.float64), targets.astype(np.float64)
    if task == "regression":
        spread = np.maximum(targets.std(axis=0), 1e-6)
        return (((predictions - targets) / spread) ** 2).mean(axis=1)
    likely = np.clip(predictions, TINY, 1 - TINY)
    if task == "multiclass":
        return -(targets * np.log(likely)).sum(axis=1)
    return -(targets * np.log(likely) + (1 - targets) * np.log1p(-likely)).mean(axis=1)


def most_doubtful(doubts: np.ndarray, classes: np.ndarray, share: float) -> np.ndarray:
    """Mask (N,) of `share` of the rows, rounded down: those with the largest doubts; of equal ones those in front.

    Each class gives its share rounded down, and for what is lacking then one row more, but never more than its half.
    """
    taken, following = np.zeros(len(doubts), bool), []
    for name in np.unique(classes):
        rows = np.flatnonzero(classes == name)
        rows = rows[np.argsort(-doubts[rows], kind="stable")]
        count = rounded_down(share * len(rows))
        taken[rows[:count]] = True
        if 2 * (count + 1) <= len(rows):
            following.append(rows[count])
    following = np.array(following, int)
    lacking = rounded_down(share * len(doubts)) - taken.sum()
    taken[following[np.argsort(-doubts[following], kind="stable")][:lacking]] = True
    return taken


def rounded_down(number: float) -> int:
    return int(number + 1e-9)  # 0.29 * 100 is less than 29
