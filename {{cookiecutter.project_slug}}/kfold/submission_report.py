"""What a person should see before a submission is sent: the class mix, and what changed since the last one."""

import numpy as np
import pandas as pd

from kfold.config import Task
from kfold.metrics import decide
from kfold.submission import Form

NUM_LINES = 10  # classes that are listed; those whose share differs most


def prediction_mix(
    task: Task, names: tuple[str, ...], test: np.ndarray, oof: np.ndarray, targets: np.ndarray
) -> list[str]:
    """Lines of a table: share of each predicted class (regression: mean and deviation), test and OOF beside train.

    Arrays are (rows, C); names: of the C columns, the positive class for binary. A test mix unlike the out-of-fold mix
    means other data, or images that are read otherwise.
    """
    tables = (test, oof, targets)
    if task == "regression":
        lines = [f"{'values':<20} {'test':>17} {'out of fold':>17} {'train':>17}"]
        for column, name in enumerate(names):
            cells = [f"{table[:, column].mean():.4g} +- {table[:, column].std():.3g}" for table in tables]
            lines.append(f"{name[:20]:<20} " + " ".join(f"{cell:>17}" for cell in cells))
        return lines
    shares = np.array([class_shares(task, table) for table in tables])  # (3, C)
    most_different = np.argsort(-np.abs(shares[0] - shares[1]), kind="stable")[:NUM_LINES]
    lines = [f"{'predicted class':<20} {'test':>11} {'out of fold':>11} {'train':>11}"]
    lines += [f"{names[c][:20]:<20} " + " ".join(f"{s:>11.1%}" for s in shares[:, c]) for c in sorted(most_different)]
    if len(names) > NUM_LINES:
        lines.append(f"... and {len(names) - NUM_LINES} more whose shares in test and out of fold differ less")
    return lines


def class_shares(task: Task, values: np.ndarray) -> np.ndarray:
    """Share of the rows that get each class or label, (C,); binary: of the positive one."""
    labels = decide(task, values)
    if task == "multiclass":
        return np.bincount(labels, minlength=values.shape[1]) / len(labels)
    return labels.reshape(len(labels), -1).mean(axis=0)


def changes_since(before: pd.DataFrame, now: pd.DataFrame, form: Form) -> str:
    """How a submission differs from an earlier valid one: rows changed, and the correlation of numbers."""
    columns = list(form.value_columns)
    earlier, later = (table.set_index(form.id_column)[columns] for table in (before, now))
    common = later.index.intersection(earlier.index)
    earlier, later = earlier.loc[common], later.loc[common]
    changed = (earlier != later).any(axis=1).sum()
    text = f"{changed} of {len(common)} rows changed ({changed / max(len(common), 1):.1%})"
    if len(common) < len(now):
        text += f", {len(now) - len(common)} rows are new"
    if form.content in ("probabilities", "class probabilities", "values"):
        pairs = [(earlier[column].astype(float), later[column].astype(float)) for column in columns]
        correlations = [a.corr(b) for a, b in pairs if a.nunique() > 1 and b.nunique() > 1]
        if correlations:
            text += f", correlation {np.mean(correlations):.4f}"
    return text
