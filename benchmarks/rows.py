"""A measured row: the figures of every side, round by round, and what follows from them: medians, ratios, the table.

A row is a dict of plain values, as it lies in a results file:

    row    its number and subject, such as "2 training"
    what   what is done, and on what
    unit   of all figures: images/s, of which more is better; or s, MB, s/1000 images, of which less is
    sides  {side: [a figure for each round]}: "ours" and the peers; a peer that is not there has none
    limit  [a figure for each round]: what no loader, or no code at all, can beat; empty where none is known
    facts  whatever else is worth keeping: scores, versions, peers that were left out and why
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

PEERS = ("plain code", "timm", "fastai", "lightning", "autogluon", "scikit-learn")  # columns of the table
MORE_IS_BETTER = ("images/s",)

Row = Mapping[str, object]


def make_row(
    row: str, what: str, unit: str, sides: Mapping[str, Sequence[float]], limit: Sequence[float] = (), **facts: object
) -> dict:
    """A row; sides without figures are left out. Raises ValueError for a side that the table has no column for."""
    found = {side: list(figures) for side, figures in sides.items() if len(figures)}
    if unknown := found.keys() - {"ours", *PEERS}:
        raise ValueError(f"{row}: no column for {', '.join(sorted(unknown))}: name it in PEERS")
    return {"row": row, "what": what, "unit": unit, "sides": found, "limit": list(limit), "facts": facts}


def gain(row: Row, figures: Sequence[float]) -> float:
    """How many times better ours is than these figures: 2 is twice as many images a second, or half the seconds.

    The median over rounds of the ratio in a round, so that a slow moment of the machine falls on both; of the medians
    where there are not equally many rounds.
    """
    ours = row["sides"]["ours"]
    pairs = list(zip(ours, figures, strict=True)) if len(ours) == len(figures) else [(median(ours), median(figures))]
    return median([mine / other if row["unit"] in MORE_IS_BETTER else other / mine for mine, other in pairs])


def best_peer(row: Row) -> str:
    """The peer with the best median; empty where there is none."""
    medians = {side: median(figures) for side, figures in row["sides"].items() if side != "ours"}
    best = max if row["unit"] in MORE_IS_BETTER else min
    return best(medians, key=medians.get) if medians else ""


def median(figures: Sequence[float]) -> float:
    return float(statistics.median(figures))


def table(rows: Sequence[Row]) -> str:
    """Markdown: medians of every side, ours against the best peer and the limit. Without peers that no row has."""
    peers = [peer for peer in PEERS if any(peer in row["sides"] for row in rows)]
    header = ["row", "what", "unit", "ours", *peers, "ours / best peer", "limit", "ours / limit", "load"]
    lines = [header, ["---"] * len(header), *(cells(row, peers) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cells(row: Row, peers: Sequence[str]) -> list[str]:
    sides, limit, best = row["sides"], row["limit"], best_peer(row)
    figures = [figure(median(sides[side])) if side in sides else "" for side in ("ours", *peers)]
    against_peer = f"{gain(row, sides[best]):.2f}" if best else ""
    against_limit = [figure(median(limit)), f"{gain(row, limit):.2f}"] if limit else ["", ""]
    load = " to ".join(f"{value:.1f}" for value in row.get("load", []))
    return [row["row"], row["what"], row["unit"], *figures, against_peer, *against_limit, load]


def figure(value: float) -> str:
    """Three digits that count, without powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{float(f'{value:.3g}'):g}"


def hand_over(rows: Sequence[Row], path: str) -> None:
    """Print the rows' table, and write them to a file where one is named: run.py reads it."""
    print("\n" + table(rows), flush=True)
    if path:
        Path(path).write_text(json.dumps(rows))
