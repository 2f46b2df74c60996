"""Which weights, which views: every candidate scored out of fold, and the simplest within noise of the best taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kfold.intervals import bootstrap_interval, paired_difference, simplest_within_noise, verdict
from kfold.metrics import Metric

OPTIMISTIC = ("best",)  # chosen on the very rows it is scored on: shown, never taken by itself


@dataclass(frozen=True)
class Candidate:
    """predictions: (N, C) out of fold; milliseconds: an image, reading included, as measured just now."""

    predictions: np.ndarray
    milliseconds: float


def compare_candidates(
    candidates: Mapping[str, Candidate],
    targets: np.ndarray,
    metric: Metric,
    groups: np.ndarray | None = None,
    wish: str = "",
) -> tuple[str, pd.DataFrame]:
    """The chosen name, and a row for each candidate (in order of simplicity): score, interval, difference from the
    first, cost, verdict.

    wish: a candidate that is taken whatever its score. Otherwise the simplest within noise of the best.
    """
    given = {name: candidate.predictions for name, candidate in candidates.items()}
    honest = {name: predictions for name, predictions in given.items() if name not in OPTIMISTIC}
    chosen = wish or simplest_within_noise(metric, targets, honest or given, groups)
    first = next(iter(candidates))
    plain, rows = candidates[first].predictions, []
    for name, candidate in candidates.items():
        low, high = bootstrap_interval(metric, targets, candidate.predictions, groups)
        row = {"name": name, "score": metric.function(targets, candidate.predictions), "low": low, "high": high}
        if name != first:
            difference = paired_difference(metric, targets, candidate.predictions, plain, groups)
            row |= dict(zip(("difference", "difference_low", "difference_high"), difference, strict=True))
            row["verdict"] = verdict(metric, difference)
        if name in OPTIMISTIC:
            row["verdict"] = f"optimistic: chosen on these rows; {row.get('verdict', '')}".rstrip("; ")
        rows.append(row | {"milliseconds": candidate.milliseconds, "chosen": name == chosen})
    return chosen, pd.DataFrame(rows)


def choice_table(what: str, metric_name: str, rows: pd.DataFrame) -> str:
    """Text lines for a person. what: `weights` or `tta`."""
    first, width = rows["name"][0], max(len(what), *map(len, rows["name"]))
    lines = [f"  {what:<{width}}  {metric_name:>9}  95% interval        minus {first:<20}  ms/image"]
    for row in rows.to_dict("records"):
        gain = "-"
        if row["name"] != first:
            gain = f"{row['difference']:+.5f} ({row['difference_low']:+.5f} to {row['difference_high']:+.5f})"
        mark = " <- taken" if row["chosen"] else ""
        note = row.get("verdict", "")
        note = "" if not isinstance(note, str) else note
        lines.append(
            f"  {row['name']:<{width}}  {row['score']:9.5f}  {row['low']:.5f} to {row['high']:.5f}  {gain:<32}  "
            f"{row['milliseconds']:8.2f}  {note}{mark}"
        )
    return "\n".join(lines)


def read_wishes(text: str, offered: Sequence[str]) -> list[str]:
    """`auto` -> all that is offered; `ema,last` -> those, in the order of the offer. Raises ValueError on others."""
    if text == "auto":
        return list(offered)
    wishes = [word.strip() for word in text.split(",")]
    for word in wishes:
        if word not in offered:
            raise ValueError(word)
    return [name for name in offered if name in wishes]
