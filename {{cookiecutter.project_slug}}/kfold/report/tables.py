"""Tables for the terminal."""

from collections.abc import Mapping, Sequence

import numpy as np

from kfold.intervals import FoldScores


def cv_table(metric: str, scores: FoldScores) -> str:
    """Scores per fold, their mean and standard deviation, and the pooled out-of-fold score with its 95% interval."""
    values = np.array(list(scores.by_fold.values()))
    lines = [fold_table(metric, scores.by_fold)]
    deviation = f" +- {values.std(ddof=1):.5f} (sd over folds)" if len(values) > 1 else ""
    lines.append(f"{'mean':>8}  {values.mean():.5f}{deviation}")
    lines.append(f"{'pooled':>8}  {scores.pooled:.5f}, 95% interval {scores.low:.5f} to {scores.high:.5f}")
    return "\n".join(lines)


def fold_table(metric: str, scores: Mapping[int, float]) -> str:
    """A line for each fold."""
    return "\n".join([f"{'fold':>8}  {metric}", *(f"{fold:>8}  {score:.5f}" for fold, score in scores.items())])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the header first, as columns of text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)
