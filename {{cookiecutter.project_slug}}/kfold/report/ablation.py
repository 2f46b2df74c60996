"""The table of an ablation: for the terminal, for spreadsheets, and as Markdown to paste."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kfold.ablation import LEVEL, Effect, holm
from kfold.report.scores import show, show_interval
from kfold.report.tables import aligned

FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """A line of the table."""

    switch: str
    effect: Effect | None = None  # None: a training failed, see `problem`
    scores: tuple[float, ...] = ()  # the metric of each seed
    cost: float = float("nan")  # time of training, as a multiple of the baseline's
    is_same: bool = False  # whether all predictions are the baseline's, but for rounding
    problem: str = ""

    @property
    def verdict(self) -> str:
        return FAILED if self.effect is None else self.effect.verdict


@dataclass(frozen=True)
class Ablation:
    """All that was found out, and what it takes to find it again."""

    title: str
    command: str
    metric: str
    greater_is_better: bool
    rows: str  # which, in words
    seeds: tuple[int, ...]
    baseline: tuple[float, ...]  # the metric of each seed
    outcomes: tuple[Outcome, ...]  # the best gain first, failed ones last
    is_optimistic: bool
    versions: dict[str, str]

    @property
    def measured(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.effect is not None]

    @property
    def baseline_deviation(self) -> float:
        """Standard deviation of the baseline over seeds."""
        return float(np.std(self.baseline, ddof=1))


def best_first(outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """In order of gain; failed switches, and undefined gains, last."""

    def place(outcome: Outcome) -> tuple[bool, float]:
        gain = float("nan") if outcome.effect is None else outcome.effect.gain
        return bool(np.isnan(gain)), -np.nan_to_num(gain)

    return tuple(sorted(outcomes, key=place))


def ablation_csv(found: Ablation) -> pd.DataFrame:
    """One row a switch, the baseline first; numbers in full."""
    adjusted = dict(zip([outcome.switch for outcome in found.measured], adjusted_p(found), strict=True))
    rows = [{"switch": "baseline", **scores_cells(found.baseline), "cost": 1.0}]
    for outcome in found.outcomes:
        row = {"switch": outcome.switch, "verdict": outcome.verdict}
        if outcome.effect is not None:
            effect = outcome.effect
            row |= {"gain": effect.gain, "gain_low": effect.low, "gain_high": effect.high}
            row |= {"p_value": effect.p_value, "p_value_holm": adjusted[outcome.switch]}
            row |= {"gain_of_seeds": numbers(effect.of_seeds), **scores_cells(outcome.scores), "cost": outcome.cost}
        rows.append({**row, "problem": outcome.problem})
    columns = ["switch", "verdict", "gain", "gain_low", "gain_high", "p_value", "p_value_holm", "gain_of_seeds"]
    columns += ["score", "score_of_seeds", "cost", "problem"]
    return pd.DataFrame(rows, columns=columns)


def scores_cells(scores: Sequence[float]) -> dict[str, object]:
    return {"score": float(np.mean(scores)), "score_of_seeds": numbers(scores)}


def numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)


def adjusted_p(found: Ablation) -> np.ndarray:
    return holm([outcome.effect.p_value for outcome in found.measured])


def cells(outcome: Outcome) -> tuple[str, str, str, str, str]:
    """Switch, gain, interval, verdict and time, as people read them."""
    if outcome.effect is None:
        return outcome.switch, "", "", FAILED, ""
    effect = outcome.effect
    interval = show_interval(effect.low, effect.high, "+")
    return outcome.switch, show(effect.gain, "+"), interval, effect.verdict, f"x{outcome.cost:.2f}"


def terminal_table(found: Ablation) -> str:
    """The table and what to know of it, as aligned text."""
    header = ("switch", "gain", "95% interval", "verdict", "time")
    table = aligned([header, *map(cells, found.outcomes)])
    return "\n".join([describe(found), table, *notes(found)])


def markdown(found: Ablation) -> str:
    """The same for a README, with the command and the versions that give it again."""
    lines = [f"## {found.title}", "", describe(found), ""]
    lines += ["| switch | gain | 95% interval | verdict | time |", "|---|---:|---|---|---:|"]
    for outcome in found.outcomes:
        switch, *others = cells(outcome)
        lines.append("| " + " | ".join([f"`{switch.replace('|', chr(92) + '|')}`", *others]) + " |")
    lines += ["", *(f"- {note}" for note in notes(found)), "", "```", found.command, "```", ""]
    lines += [", ".join(f"{name} {version}" for name, version in found.versions.items() if version != "absent"), ""]
    return "\n".join(lines)


def command_of(text: str) -> str:
    """The command in what `markdown` wrote; empty where somebody took it out."""
    parts = text.split("\n```\n")
    return parts[1] if len(parts) == 3 else ""


COST_NOTE = (
    "time: median over seeds and folds of a training's seconds over the baseline's, as measured when each ran; with "
    "other work on the machine, or trainings of different days, it says little"
)


def describe(found: Ablation) -> str:
    direction = "greater" if found.greater_is_better else "smaller"
    return (
        f"{found.metric} ({direction} is better) of {found.rows}, seeds {', '.join(map(str, found.seeds))}; "
        f"baseline {np.mean(found.baseline):.5f}, sd over seeds {found.baseline_deviation:.5f}; "
        "gain: of the switch alone over the baseline, positive is better"
    )


def notes(found: Ablation) -> list[str]:
    """What a reader of the verdicts should know, a line each."""
    lines = [chance_note(found), COST_NOTE] if found.measured else []
    if len(found.seeds) == 2:
        lines.append("2 seeds: the intervals are rough and wide; 3 or more are usual")
    if found.is_optimistic:
        lines.append("optimistic: select=best or early_stopping chose epochs on the rows that are scored here")
    lines += [
        f"{outcome.switch}: its predictions are the baseline's but for rounding: it does nothing here, as a pooling of "
        "one pixel, or needs a second key (ema_decay=0.99 select=ema)"
        for outcome in found.measured
        if outcome.is_same
    ]
    return lines + [f"{outcome.switch}: {FAILED}: {outcome.problem}" for outcome in found.outcomes if outcome.problem]


def chance_note(found: Ablation) -> str:
    count = len(found.measured)
    staying = [
        outcome.switch
        for outcome, p_value in zip(found.measured, adjusted_p(found), strict=True)
        if p_value < LEVEL and outcome.verdict != "within noise"
    ]
    return (
        f"{count} switches that do nothing would give {count * LEVEL:.2f} verdicts of helps or hurts by chance; "
        f"Holm's correction for that leaves {', '.join(staying) or 'none'}"
    )
