"""CSV files that people open in a spreadsheet: no cell of theirs is taken for a formula.

Names of classes, columns and runs come from other people's files, and `=cmd|...` in a cell would be run. Submissions,
folds and predictions are for programs and stay as they are.
"""

import re

import pandas as pd

from kfold.numbers import is_number

FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # the last four: = + - @ in full width, as in Japan


def to_spreadsheet(table: pd.DataFrame, index_label: str | None = None) -> str:
    """The table as CSV text with guarded cells; with the index as first column if it is given a label."""
    guarded = table.map(guard_text).rename(columns=guard_text, index=guard_text)
    # With "\n" alone, Python before 3.13 leaves a cell with "\r" unquoted: what follows it would start a row.
    return guarded.to_csv(index=index_label is not None, index_label=index_label, lineterminator="\r\n")


def guard_text(cell: object) -> object:
    return guard(cell) if isinstance(cell, str) else cell


def guard(cell: str) -> str:
    """A leading apostrophe before text that a spreadsheet would take for a formula; numbers stay."""
    return f"'{cell}" if FORMULA.match(cell) and not is_number(cell) else cell


def unguard(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell[1:]) else cell


def to_number(cell: str) -> float:
    """What a stage wrote as a number, `inf` among them; NaN for an empty cell, or one that holds no number."""
    try:
        return float(cell)
    except ValueError:
        return float("nan")
