"""Numbers that people write, in tables and behind options: `1_0` and `nan`, which Python takes, are none."""

import argparse
import math
import re

NUMBER = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"  # what every CSV reader takes for a number
WITH_COMMA = r"[-+]?[0-9]+,[0-9]+"


def is_number(cell: str) -> bool:
    return re.fullmatch(NUMBER, cell) is not None


def finite_number(cell: str) -> float:
    """The number that a cell holds, with or without spaces around it; NaN where it holds none, or one without end."""
    number = float(cell) if is_number(cell.strip()) else math.nan
    return number if math.isfinite(number) else math.nan


def number_remedy(cell: str, otherwise: str = "mend the cell") -> str:
    """What to do about a cell that should hold a number; a comma inside one is said to be meant as a point."""
    if re.fullmatch(WITH_COMMA, cell.strip()):
        return f"write {cell.strip().replace(',', '.')}, with a point for the comma"
    return otherwise


def decimal(word: str) -> float:
    """The number behind an option of argparse, which prints what is refused."""
    number = finite_number(word)
    if math.isnan(number):
        remedy = number_remedy(word, "write digits with a point, such as 0.5")
        raise argparse.ArgumentTypeError(f"'{word}' is not a number: {remedy}")
    return number


def whole(word: str) -> int:
    """The whole number behind an option of argparse."""
    if not re.fullmatch(r"[-+]?[0-9]{1,18}", word):
        raise argparse.ArgumentTypeError(f"'{word}' is not a whole number: write digits alone, such as 10")
    return int(word)
