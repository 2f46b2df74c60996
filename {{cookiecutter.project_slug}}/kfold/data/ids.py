"""The ids of a table: what is refused, and what only some systems can tell from each other."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kfold.errors import list_problems

LONGEST_ID = 200  # characters; the names of files end at 255 bytes


def refuse_ids(path: Path, table: pd.DataFrame, id_column: str, lines: Sequence[int]) -> list[str]:
    """Problems of ids that are blank, have spaces around them, or occur twice."""
    ids = table[id_column]
    stripped = ids.str.strip()
    blank, spaced = stripped == "", (stripped != ids) & (stripped != "")
    problems = list_problems(
        blank.to_numpy().nonzero()[0], lambda row: f"{path}: row {lines[row]}: no {id_column}: fill it in"
    )
    problems += list_problems(
        spaced.to_numpy().nonzero()[0],
        lambda row: f"{path}: row {lines[row]}: {id_column} '{ids[row]}' has spaces around it: remove them",
    )
    doubled = ids[ids.duplicated(keep=False) & ~blank]
    return problems + list_problems(
        doubled.unique(),
        lambda name: describe_doubled(path, table, id_column, (ids == name).to_numpy().nonzero()[0], lines),
    )


def describe_doubled(path: Path, table: pd.DataFrame, id_column: str, rows: Sequence[int], lines: Sequence[int]) -> str:
    where = ", ".join(str(lines[row]) for row in rows[:5]) + (" ..." if len(rows) > 5 else "")
    alike = len(table.loc[rows].drop_duplicates()) == 1
    verdict = "equal rows: keep one" if alike else "rows that contradict each other: find out which is right"
    return f"{path}: {id_column} '{table[id_column][rows[0]]}' is on rows {where}, {verdict}"


def odd_ids(path: Path, ids: Sequence[str]) -> list[str]:
    """Warnings of ids that are unlike file names, or that only some systems can tell from each other."""
    long = [name for name in ids if len(name) > LONGEST_ID]
    hidden = [name for name in ids if not name.isprintable()]
    dotted = [name for name in ids if name.endswith(".")]
    warnings = list_problems(
        long, lambda name: f"{path}: id '{name[:40]}...' has {len(name)} characters: is a quote not closed before it?"
    )
    warnings += list_problems(
        hidden, lambda name: f"{path}: id '{name}' holds a character that does not show: retype it"
    )
    warnings += list_problems(
        dotted, lambda name: f"{path}: id '{name}' ends with a dot, which Windows drops from file names: a slip?"
    )
    keys = pd.Series([unicodedata.normalize("NFC", name).casefold() for name in ids], dtype=object)
    alike = keys[keys.duplicated(keep=False)]
    twins = [[f"'{ids[row]}'" for row in rows[:5]] for rows in alike.groupby(alike).groups.values()]
    return warnings + list_problems(
        twins,
        lambda names: (
            f"{path}: ids {' and '.join(names)} differ only by case, or by how an accent is stored: "
            f"on Windows and macOS they are one image file, unpack the images on Linux"
        ),
    )
