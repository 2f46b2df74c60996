"""Rows of an epoch drawn with replacement, so that rare classes come more often than they are.

Source: Kang and others, Decoupling Representation and Classifier, arxiv.org/abs/1910.09217
"""

from collections.abc import Callable

import numpy as np

from kfold.seeds import seed_of

POWERS = {"balanced": 1.0, "square_root": 0.5}  # chance of a row: (rows of its class)^-power
RowsOf = Callable[[int], np.ndarray]  # epoch -> rows (n,)


def classes_of(targets: np.ndarray, task: str) -> np.ndarray:
    """The class (N,) int of each row of targets (N, C), which may be probabilities.

    Multilabel: the rarest label that the row has; rows without any are a class of their own.
    """
    if task == "multiclass":
        return targets.argmax(axis=1)
    has_label = targets > 0.5
    rareness = np.where(has_label, -has_label.sum(axis=0), -np.inf)
    return np.where(has_label.any(axis=1), rareness.argmax(axis=1), targets.shape[1])


def resampled(rows_of: RowsOf, classes: np.ndarray, sampler: str, seed: int, fold: int) -> RowsOf:
    """As many rows as `rows_of` gives, drawn from these by the classes (N,) of all rows.

    Counts are of the rows of the epoch, pseudo-labelled ones with them.
    """

    def drawn(epoch: int) -> np.ndarray:
        rows = rows_of(epoch)
        _, place, counts = np.unique(classes[rows], return_inverse=True, return_counts=True)
        chances = counts[place] ** -POWERS[sampler]
        noise = np.random.default_rng(seed_of(seed, fold, epoch, "sampler"))
        return noise.choice(rows, size=len(rows), p=chances / chances.sum())

    return drawn
