"""From averaged test predictions to the table that the competition wants; submission_check.py judges it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd

from kfold.config import Task
from kfold.data.targets import Targets
from kfold.errors import UserError
from kfold.metrics import Metric, decide
from kfold.predictions import PREFIX

Content = Literal["label", "ranking", "label list", "flags", "class probabilities", "probabilities", "grades", "values"]


@dataclass(frozen=True)
class Form:
    """What a submission must look like, decided once from the sample, the targets and the metric.

    columns: the header, id_column among them. content: what a value cell holds. names: of the predictions, in the order
    of the value columns where each has its own. labels: the texts a cell can hold, `longest` of them at most.
    ranges: lowest and highest grade of each value column.
    """

    id_column: str
    columns: tuple[str, ...]
    task: Task
    content: Content
    names: tuple[str, ...]
    labels: tuple[str, ...] = ()
    longest: int = 1
    separator: str = " "
    ranges: tuple[tuple[float, float], ...] = ()

    @property
    def value_columns(self) -> tuple[str, ...]:
        return tuple(column for column in self.columns if column != self.id_column)


def make_form(sample: pd.DataFrame, targets: Targets, task: Task, metric: Metric, id_column: str) -> Form:
    """The form that fits the sample submission. `sample`: its cells as text. `targets`: of the training rows.

    The metric decides between labels and probabilities, not the sample's cells (they are often placeholders).
    Multiclass: one column takes the best class (map_at_5: the best five), C columns a probability each. Binary: label
    or probability of the positive class. Multilabel: C columns take 0/1 or probabilities, one column the labels, joined
    by `|` where the sample has it, else by spaces. Regression: values; whole grades for a metric of labels.
    Raises UserError when the columns do not fit.
    """
    columns = tuple(sample.columns)
    values = [column for column in columns if column != id_column]
    form = partial(Form, id_column, columns, task)
    of_labels, names, labels = metric.takes == "labels", targets.names, targets.labels
    if not values:
        raise UserError(f"sample submission: has no column beside {id_column}: download it again")

    if task == "multiclass" and len(values) == 1:
        if metric.name != "map_at_5":
            return form("label", names, labels)
        refuse_separator(names, " ")
        return form("ranking", names, labels, longest=5)
    if task == "multiclass" or (task == "binary" and len(values) == 2):
        return form("class probabilities", match_columns(values, labels), labels)
    if task == "multilabel" and len(values) == 1 and len(names) > 1:
        separator = "|" if sample[values[0]].str.contains("|", regex=False).any() else " "
        refuse_separator(names, separator)
        return form("label list", names, names, longest=len(names), separator=separator)

    if len(values) > 1 or len(names) > 1:  # one column for one target needs no equal name
        names = match_columns(values, names)
    if task == "binary":
        return form("label", names, labels) if of_labels else form("probabilities", names)
    if task == "multilabel":
        return form("flags" if of_labels else "probabilities", names)
    if not of_labels:
        return form("values", names)
    grades = np.rint(targets.values[:, [targets.names.index(name) for name in names]])
    return form("grades", names, ranges=tuple(zip(grades.min(axis=0), grades.max(axis=0), strict=True)))


def match_columns(columns: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The name that each column stands for: equal to it, or with one prefix before all of them (`c0`, `c1`)."""
    prefixes = [columns[0].removesuffix(name) for name in names if columns[0].endswith(name)]
    for prefix in ["", *prefixes]:
        if sorted(columns) == sorted(prefix + name for name in names):
            return tuple(column[len(prefix) :] for column in columns)
    unknown = [column for column in columns if column not in names]
    missing = [name for name in names if name not in columns]
    raise UserError(
        f"sample submission: its columns do not fit the targets (only in the sample: {listed(unknown)}; "
        f"only in the targets: {listed(missing)}): name them alike in competition.py's decode_targets"
    )


def refuse_separator(names: Sequence[str], separator: str) -> None:
    for name in names:
        if separator in name:
            raise UserError(
                f"label '{name}' holds '{separator}', which separates labels in the submission: "
                f"rename it in competition.py's decode_targets"
            )


def listed(names: Sequence[str], limit: int = 5) -> str:
    """The first few, quoted: 'a', 'b', 'c' and 7 more."""
    shown = ", ".join(f"'{name}'" for name in names[:limit]) or "none"
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def submission_ids(sample_ids: Sequence[str], test_ids: Sequence[str]) -> list[str]:
    """The test ids in the sample's order where it has exactly these, else in their own."""
    return list(sample_ids if set(sample_ids) == set(test_ids) else test_ids)


def prediction_table(ids: Sequence[str], values: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Predictions (N, C) as columns id and p_<name>, what competition.py's postprocess works on."""
    return pd.DataFrame({"id": list(ids), **{PREFIX + name: values[:, c] for c, name in enumerate(names)}})


def prior_submission(targets: Targets, form: Form, ids: Sequence[str]) -> pd.DataFrame:
    """A valid submission that knows nothing of the images: class shares, or the mean value, of the training rows."""
    prior = np.tile(targets.values.mean(axis=0, dtype=np.float64), (len(ids), 1))
    return format_submission(prediction_table(ids, prior, targets.names), form, ids)


def format_submission(predictions: pd.DataFrame, form: Form, ids: Sequence[str]) -> pd.DataFrame:
    """The submission as text cells, exactly as they will stand in the file: form.columns, one row an id, in this order.

    `predictions`: columns id and p_<name>, joined by id and by name. Class probabilities are scaled to sum 1. In a
    label list, a row none of whose labels reaches 0.5 gets its likeliest one, because a blank cell is refused.
    """
    rows = predictions.set_index("id").loc[list(ids)]
    if form.task == "binary" and form.content == "class probabilities":
        positive = rows.iloc[:, 0].to_numpy()
        negative_first = np.column_stack([1 - positive, positive])
        values = negative_first[:, [form.labels.index(name) for name in form.names]]
    else:
        values = rows[[PREFIX + name for name in form.names]].to_numpy()
    cells = to_cells(values, form)
    table = pd.DataFrame({column: cells[:, c] for c, column in enumerate(form.value_columns)}, dtype=str)
    table[form.id_column] = list(ids)
    return table[list(form.columns)]


def to_cells(values: np.ndarray, form: Form) -> np.ndarray:
    """Predictions (N, C) as text, (N, number of value columns)."""
    labels = np.array(form.labels, dtype=object)
    if form.content == "label":
        return labels[decide(form.task, values)][:, None]
    if form.content == "ranking":
        best_first = np.argsort(-values, axis=1, kind="stable")[:, : form.longest]
        return np.array([form.separator.join(row) for row in labels[best_first]], dtype=object)[:, None]
    if form.content == "label list":
        chosen = decide(form.task, values).astype(bool)
        none = ~chosen.any(axis=1)
        chosen[none, values[none].argmax(axis=1)] = True
        return np.array([form.separator.join(labels[row]) for row in chosen], dtype=object)[:, None]
    if form.content == "flags":
        return decide(form.task, values).astype(str)
    if form.content == "grades":
        low, high = np.array(form.ranges).T
        return np.clip(np.rint(values), low, high).astype(int).astype(str)
    if form.content == "class probabilities":
        with np.errstate(invalid="ignore"):  # a row of zeros becomes NaN, which the check names
            values = values / values.sum(axis=1, keepdims=True)
    return values.astype(str)  # the shortest text that reads back as the same number
