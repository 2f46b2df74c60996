"""What is wrong with a submission, one line each, before it costs one of the day's attempts."""

import codecs
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kfold.data.tables import read_table, shorten
from kfold.errors import UserError, one_line
from kfold.numbers import NUMBER
from kfold.predictions import PREFIX
from kfold.submission import Form, listed

SUM_TOLERANCE = 1e-3  # of class probabilities, from 1


def check_submission(
    submission: Path | pd.DataFrame, form: Form, test_ids: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Errors (the competition would refuse or misread it) and warnings (it is valid, but look at it), one line each.

    A table holds text cells, as `format_submission` returns them. Lines name the row (the header is row 1) and the id.
    """
    table = submission
    if isinstance(submission, Path):
        try:
            table = read_table(submission, [])
        except UserError as error:
            return error.problems, []
        if submission.read_bytes().startswith(codecs.BOM_UTF8):
            return [f"{submission}: row 1: starts with a byte order mark: save it as plain UTF-8"], []
    errors = check_header(list(table.columns), form)
    if errors:
        return [one_line(line) for line in errors], []
    checks = check_labels if form.labels and form.content != "class probabilities" else check_numbers
    errors = check_ids(table[form.id_column], test_ids) + shorten(checks(table, form))
    return [one_line(line) for line in errors], [] if errors else alarms(table, form)


def check_header(found: list[str], form: Form) -> list[str]:
    wanted = list(form.columns)
    if found == wanted:
        return []
    if sorted(found) == sorted(wanted):
        return [f"row 1: columns are in another order than the sample's: write {','.join(wanted)}"]
    missing, extra = [c for c in wanted if c not in found], [c for c in found if c not in wanted]
    return [f"row 1: header differs from the sample's: missing {listed(missing)}; extra {listed(extra)}"]


def check_ids(ids: pd.Series, test_ids: Sequence[str]) -> list[str]:
    wanted, found = set(test_ids), set(ids)
    problems = []
    missing = [name for name in test_ids if name not in found]
    if missing:
        problems.append(f"{len(missing)} ids have no row: {listed(missing)}")
    blank = ids.str.strip() == ""
    problems += describe(ids, blank, ids, "blank id")
    problems += describe(ids, ~blank & ~ids.isin(wanted), ids, "not an id of the test set")
    return problems + describe(ids, ids.duplicated() & ~blank, ids, "id occurs again")


def describe(ids: pd.Series, wrong: pd.Series, cells: pd.Series, what: str) -> list[str]:
    """One line for all wrong rows of a column: what, the first five with row, id and cell, and how many more."""
    rows = np.flatnonzero(wrong)
    if not len(rows):
        return []
    shown = ", ".join(f"row {row + 2} (id '{ids.iloc[row]}'): '{cells.iloc[row]}'" for row in rows[:5])
    more = f" and {len(rows) - 5} more rows" if len(rows) > 5 else ""
    return [f"column '{cells.name}': {what}: {shown}{more}"]


def check_numbers(table: pd.DataFrame, form: Form) -> list[str]:
    ids, problems, sums = table[form.id_column], [], np.zeros(len(table))
    for place, column in enumerate(form.value_columns):
        cells = table[column]
        blank = cells.str.strip() == ""
        is_number = cells.str.fullmatch(NUMBER)
        numbers = pd.to_numeric(cells.where(is_number, "nan"), errors="coerce").astype(float)
        endless = is_number & ~np.isfinite(numbers)
        sums += numbers
        problems += describe(ids, blank, cells, "blank cell")
        problems += describe(ids, ~blank & ~is_number, cells, "not a finite number")
        problems += describe(ids, endless, cells, "too large a number")
        good = is_number & ~endless
        if form.content in ("probabilities", "class probabilities"):
            problems += describe(ids, good & ~numbers.between(0, 1), cells, "not a probability from 0 to 1")
        if form.content == "flags":
            problems += describe(ids, good & ~numbers.isin([0, 1]), cells, "neither 0 nor 1")
        if form.content == "grades":
            low, high = form.ranges[place]
            odd = (numbers != numbers.round()) | ~numbers.between(low, high)
            problems += describe(ids, good & odd, cells, f"not a whole grade from {low:.0f} to {high:.0f}")
    if form.content == "class probabilities" and not problems:
        wrong = pd.Series(np.abs(sums - 1) > SUM_TOLERANCE)
        problems += describe(
            ids, wrong, pd.Series(np.round(sums, 6), name="all classes"), "probabilities do not sum to 1"
        )
    return problems


def check_labels(table: pd.DataFrame, form: Form) -> list[str]:
    ids, cells = table[form.id_column], table[form.value_columns[0]]
    known = set(form.labels)
    many = form.content != "label"
    parts = {cell: cell.split(form.separator) if many else [cell] for cell in cells.unique()}

    def wrong(test: Callable[[list[str]], bool]) -> pd.Series:
        return cells.map({cell: bool(cell.strip()) and test(labels) for cell, labels in parts.items()})

    problems = describe(ids, cells.str.strip() == "", cells, "blank cell")
    unknown = wrong(lambda labels: not known.issuperset(labels))
    if unknown.any():
        first = next(label for label in parts[cells[unknown].iloc[0]] if label not in known)
        near = difflib.get_close_matches(first, form.labels, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"they are {listed(form.labels)}"
        problems += describe(ids, unknown, cells, f"'{first}' is not a label of train.csv, {hint}")
    problems += describe(ids, wrong(lambda labels: len(set(labels)) < len(labels)), cells, "a label twice in a cell")
    too_many = wrong(lambda labels: len(labels) > form.longest)
    return problems + describe(ids, too_many, cells, f"more than {form.longest} labels in a cell")


def alarms(table: pd.DataFrame, form: Form) -> list[str]:
    values = table[list(form.value_columns)]
    if len(table) < 2:
        return []
    constant = [column for column in values if values[column].nunique() == 1]
    if len(constant) == len(values.columns):
        first = ", ".join(values.iloc[0].head(5))
        return [f"every row has the same prediction ({first}): was the model trained, are the images read?"]
    return [f"the same value in every row of column {listed(constant)}"] if constant else []


def compare_with_sample(sample: pd.DataFrame, form: Form, test_ids: Sequence[str]) -> list[str]:
    """How the sample submission differs from what is written: its ids, or what its cells hold; one line each."""
    lines = []
    sample_ids = sample[form.id_column]
    foreign = sample_ids[~sample_ids.isin(set(test_ids))].tolist()
    absent = pd.Index(test_ids).difference(pd.Index(sample_ids), sort=False).tolist()
    if foreign or absent:
        lines.append(
            f"the sample submission has {len(sample)} rows, {len(test_ids)} ids are to be predicted: rows follow those "
            f"(only in the sample: {listed(foreign)}; not in the sample: {listed(absent)})"
        )
    cells = sample[form.value_columns[0]]
    is_number = cells.str.fullmatch(NUMBER)
    fractions = cells[is_number & cells.str.contains(".", regex=False)]
    fractions = fractions[fractions.astype(float) % 1 != 0]
    if form.content in ("label", "flags", "grades") and len(fractions) and not fractions.isin(form.labels).any():
        lines.append(
            f"the sample holds fractions ('{fractions.iloc[0]}'), but the metric takes labels, so these are written: "
            f"see metric in competition.yaml"
        )
    elif form.content == "label" and not cells.isin(form.labels).any():
        lines.append(f"the sample holds '{cells.iloc[0]}', which is none of the labels {listed(form.labels)}")
    elif not form.labels and not is_number.all():
        lines.append(f"the sample holds text ('{cells[~is_number].iloc[0]}'), but numbers are written")
    return lines


def refuse_changed(predictions: object, names: Sequence[str], ids: Sequence[str]) -> None:
    """Raise UserError unless postprocess gave back the columns and ids that it got, with finite numbers."""
    where = "competition.py: postprocess"
    if not isinstance(predictions, pd.DataFrame):
        raise UserError(f"{where} gave back {type(predictions).__name__}: end it with `return predictions`")
    wanted, found = ["id", *(PREFIX + name for name in names)], list(predictions.columns)
    if sorted(found) != sorted(wanted):
        missing, extra = [c for c in wanted if c not in found], [c for c in found if c not in wanted]
        raise UserError(f"{where} must keep the columns: missing {listed(missing)}; added {listed(extra)}")
    kept, known = pd.Index(predictions["id"]), set(ids)
    lost = [name for name in ids if name not in kept]
    added = [name for name in kept if name not in known]
    doubled = kept[kept.duplicated()].tolist()
    if lost or added or doubled:
        raise UserError(
            f"{where} must keep one row an id: missing {listed(lost)}; added {listed(added)}; doubled {listed(doubled)}"
        )
    for column in wanted[1:]:
        numbers = pd.to_numeric(predictions[column], errors="coerce").to_numpy(np.float64)
        broken = np.flatnonzero(~np.isfinite(numbers))
        if len(broken):
            raise UserError(f"{where}: {column} of id '{kept[broken[0]]}' is not a finite number ({len(broken)} rows)")
