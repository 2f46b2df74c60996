"""Class names and labels as they are written in a table: what they are, and which of them are slips."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import pandas as pd

from kfold.errors import UserError, list_problems

MAX_ONE_HOT = 10**9  # rows x classes; 4 GB


def read_classes(column: pd.Series, ids: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """The distinct texts of a column, sorted, and their positions (N,). Refuses blanks and near twins."""
    codes, found = pd.factorize(column)
    if len(found) * len(column) > MAX_ONE_HOT:
        raise UserError(
            f"{column.name}: {len(found)} classes in {len(column)} rows are too many to hold: "
            f"is it the right column? (task and target_columns in competition.yaml)"
        )
    first_row = {str(name): int(row) for name, row in zip(found, np.unique(codes, return_index=True)[1], strict=True)}
    blank = np.flatnonzero(column.str.strip() == "")
    problems = list_problems(
        blank, lambda row: f"{column.name}: id '{ids[row]}' has no label: fill it in or delete the row"
    )
    problems += near_twins(str(column.name), first_row, np.bincount(codes).tolist(), ids)
    if problems:
        raise UserError(problems)
    classes = sort_classes(list(first_row))
    position = {name: place for place, name in enumerate(classes)}
    return classes, np.array([position[str(name)] for name in found], dtype=np.int64)[codes]


def near_twins(column: str, first_row: dict[str, int], counts: Sequence[int], ids: np.ndarray) -> list[str]:
    """Labels that only look alike are typing slips; `counts` of their rows, in the order of `first_row`."""
    twins: dict[str, list[str]] = {}
    listed = {}
    for (name, row), count in zip(first_row.items(), counts, strict=True):
        twins.setdefault(plain_label(name), []).append(name)
        listed[name] = f"'{name}' (id '{ids[row]}', {count} row{'s' if count > 1 else ''})"
    return list_problems(
        [names for key, names in twins.items() if key and len(names) > 1],
        lambda names: (
            f"{column}: labels {' and '.join(listed[name] for name in names)} differ only by case or spaces, "
            f"or by how a character or number is written: write them alike"
        ),
    )


def plain_label(name: str) -> str:
    """What two labels share that a person takes for one: no case, no spaces around, `１` is 1 and 1.0 is 1.

    Source: Unicode Standard Annex 15 (NFKC), and 3.13 for case.
    """
    shown = name if name.isascii() else "".join(char for char in name if unicodedata.category(char) != "Cf")
    name = " ".join(unicodedata.normalize("NFKC", shown).casefold().split())
    return re.sub(r"^([+-]?[0-9]+)\.0*$", r"\1", name)


def sort_classes(names: Sequence[str]) -> tuple[str, ...]:
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", name) for name in names):  # int() refuses thousands of digits
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def refuse_separators(cells: pd.Series, ids: np.ndarray, labels: set[str]) -> None:
    """Raise UserError where a label list is written in another way: `cat,dog`, `cat;dog` or `['cat', 'dog']`."""

    def is_foreign(label: str) -> bool:
        parts = [part.strip(" '\"") for part in re.split("[,;]", label)]
        return label[0] == "[" or label[-1] in "],;" or (len(parts) > 1 and bool(labels.intersection(parts)))

    foreign = [label for label in labels if is_foreign(label)]
    wrong = np.flatnonzero([any(label in cell for label in foreign) for cell in cells]) if foreign else []
    if len(wrong):
        raise UserError(
            list_problems(
                wrong,
                lambda row: (
                    f"{cells.name}: id '{ids[row]}': '{cells.iloc[row]}': separate labels by | or spaces, "
                    f"without brackets, commas or semicolons, for example in competition.py's decode_targets"
                ),
            )
        )
