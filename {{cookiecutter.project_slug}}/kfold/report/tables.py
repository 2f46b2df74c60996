"""Tables for the terminal."""

from collections.abc import Mapping

import numpy as np


def cv_table(metric: str, fold_scores: Mapping[int, float], pooled: float, interval: tuple[float, float]) -> str:
    """Scores per fold, their mean and standard deviation, and the pooled out-of-fold score with its 95% interval."""
    scores = np.array(list(fold_scores.values()))
    lines = [f"{'fold':>8}  {metric}"]
    lines += [f"{fold:>8}  {score:.5f}" for fold, score in fold_scores.items()]
    deviation = f" +- {scores.std(ddof=1):.5f} (sd over folds)" if len(scores) > 1 else ""
    lines.append(f"{'mean':>8}  {scores.mean():.5f}{deviation}")
    lines.append(f"{'pooled':>8}  {pooled:.5f}, 95% interval {interval[0]:.5f} to {interval[1]:.5f}")
    return "\n".join(lines)
