"""What every blend and stacker takes and gives: rows with the predictions of several runs, and a fitted function."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kfold.config import Task
from kfold.metrics import Metric


@dataclass(frozen=True)
class Rows:
    """Some rows as the second level sees them.

    predictions: (M, N, C) float32, one (N, C) a run: probabilities, or values for regression. fold: (N,) int, the fold
    whose models made the predictions. features: (N, F) numbers, or categories, for LightGBM alone; None: no features.
    """

    predictions: np.ndarray
    fold: np.ndarray
    features: pd.DataFrame | None = None

    def take(self, chosen: np.ndarray) -> "Rows":
        """The rows of a mask (N,) or of row numbers."""
        features = (
            None
            if self.features is None
            else self.features.iloc[np.arange(len(self.fold))[chosen]].reset_index(drop=True)
        )
        return Rows(self.predictions[:, chosen], self.fold[chosen], features)


@dataclass(frozen=True)
class Fitted:
    """predict: rows of one or more folds -> (N, C) float32. note: the fit in a few words, such as its weights."""

    predict: Callable[[Rows], np.ndarray]
    note: str = ""
    model: object = None  # for methods that leave files behind


# (rows, targets (N, C), task, metric) -> Fitted
Fit = Callable[[Rows, np.ndarray, Task, Metric], Fitted]
