"""Few rows of choices in which every pair of choices that go together occurs at least once (pairwise testing)."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

Row = dict[str, str]  # factor -> level
Pair = tuple[tuple[str, str], tuple[str, str]]  # (factor, level) twice, in the factors' order


def valid_pairs(factors: Mapping[str, list[str]], goes: Callable[[Row], bool]) -> set[Pair]:
    """Every pair of levels of two factors that `goes` allows."""
    return {
        ((one, first), (other, second))
        for one, other in combinations(factors, 2)
        for first in factors[one]
        for second in factors[other]
        if goes({one: first, other: second})
    }


def covering_rows(factors: Mapping[str, list[str]], allowed: set[Pair]) -> list[Row]:
    """Rows with a level of each factor whose pairs are all allowed, and that hold every allowed pair; greedy.

    The first level of a factor must go with every level of all the others.
    """
    order, missing, rows = list(factors), set(allowed), []
    while missing:
        row = dict(min(missing))
        for factor in sorted(set(order) - set(row), key=order.index):
            fitting = [level for level in factors[factor] if all_allowed(row, factor, level, order, allowed)]
            row[factor] = max(fitting, key=lambda level: len(new_pairs(row, factor, level, order) & missing))
        missing -= pairs_of(row, order)
        rows.append({factor: row[factor] for factor in order})
    return rows


def all_allowed(row: Row, factor: str, level: str, order: list[str], allowed: set[Pair]) -> bool:
    return new_pairs(row, factor, level, order) <= allowed


def new_pairs(row: Row, factor: str, level: str, order: list[str]) -> set[Pair]:
    """The pairs that a further choice makes with those of the row."""
    return {pair((factor, level), choice, order) for choice in row.items()}


def pairs_of(row: Row, order: list[str]) -> set[Pair]:
    return {pair(one, other, order) for one, other in combinations(row.items(), 2)}


def pair(one: tuple[str, str], other: tuple[str, str], order: list[str]) -> Pair:
    return (one, other) if order.index(one[0]) < order.index(other[0]) else (other, one)


def rows_with_every_level(rows: Sequence[Row]) -> list[int]:
    """Numbers of few rows that hold each level of each factor once at least; greedy."""
    missing, chosen = set().union(*(row.items() for row in rows)), []
    while missing:
        best = max(range(len(rows)), key=lambda number: len(missing & rows[number].items()))
        missing -= rows[best].items()
        chosen.append(best)
    return sorted(chosen)
