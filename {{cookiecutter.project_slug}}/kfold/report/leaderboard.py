"""All runs in order of their out-of-fold score, each beside the baseline on the same rows."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kfold.intervals import FoldScores, paired_difference, score_folds, verdict
from kfold.ledger import leaderboard_score
from kfold.metrics import Metric
from kfold.report.parts import Part, Section, Table, Text
from kfold.report.reading import RunFound, optimism_note
from kfold.report.scores import show, show_interval


@dataclass(frozen=True)
class Entry:
    """A run's line. scores: None where it has no prediction; difference: of its score from the baseline's on the rows
    that both predict, with its interval; ledger: its cells, where it has a row there."""

    run: RunFound
    scores: FoldScores | None = None
    num_rows: int = 0
    difference: tuple[float, float, float] | None = None
    ledger: Mapping[str, str] = field(default_factory=dict)

    @property
    def public_score(self) -> float:
        """On the competition's leaderboard; NaN where it is not known."""
        return leaderboard_score(self.ledger)

    @property
    def public_cell(self) -> str:
        """The same, digit by digit as it was entered."""
        return "-" if np.isnan(self.public_score) else self.ledger["leaderboard"].strip()


def remembering(metric: Metric) -> Metric:
    """The same metric, which computes no score twice: intervals and differences of all runs use the same resamples."""
    known: dict[bytes, float] = {}

    def function(targets: np.ndarray, predictions: np.ndarray) -> float:
        key = hashlib.sha256(targets.tobytes() + predictions.tobytes()).digest()
        if key not in known:
            known[key] = metric.function(targets, predictions)
        return known[key]

    return replace(metric, function=function)


def make_entries(
    runs: Sequence[RunFound],
    baseline: str,
    targets: np.ndarray,
    fold: np.ndarray,
    groups: np.ndarray | None,
    metric: Metric,
    ledger: Mapping[str, Mapping[str, str]],
) -> list[Entry]:
    """An Entry of each run: the best first, those of fewer rows last. targets: (N, C); fold, groups: (N,)."""
    by_name, entries = {run.name: run for run in runs}, []
    for run in runs:
        rows, difference, scores = run.has_oof, None, None
        if rows.any():
            scores = score_folds(metric, targets[rows], run.oof[rows], fold[rows], groups_of(groups, rows))
        if baseline in by_name and run.name != baseline:
            difference = compare_runs(run, by_name[baseline], targets, groups, metric)
        entries.append(Entry(run, scores, int(rows.sum()), difference, ledger.get(run.name, {})))
    sign = -1 if metric.greater_is_better else 1

    def place(entry: Entry) -> tuple[bool, float, str]:
        score = np.nan if entry.scores is None else entry.scores.pooled
        return entry.num_rows < len(targets), np.inf if np.isnan(score) else sign * score, entry.run.name

    return sorted(entries, key=place)


def compare_runs(
    run: RunFound, other: RunFound, targets: np.ndarray, groups: np.ndarray | None, metric: Metric
) -> tuple[float, float, float] | None:
    """The paired difference of two runs on the rows that both predict; None where there are none."""
    rows = run.has_oof & other.has_oof
    if not rows.any():
        return None
    return paired_difference(metric, targets[rows], run.oof[rows], other.oof[rows], groups_of(groups, rows))


def groups_of(groups: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if groups is None else groups[rows]


def leaderboard_section(
    entries: Sequence[Entry], baseline: str, metric: Metric, num_rows: int, lines: Sequence[str] = ()
) -> Section:
    """The table, and what to know of it. lines: on the choice of the run that is shown in detail."""
    direction = "greater" if metric.greater_is_better else "smaller"
    caption = f"{metric.name}, {direction} is better; pooled over all out-of-fold rows, with its 95% interval"
    if baseline:
        caption += f"; the difference from {baseline} is paired, on the rows that both predict"
    folds = sorted({number for entry in entries if entry.scores for number in entry.scores.by_fold})
    header = ["run", "pooled", "95% interval", f"minus {baseline or 'baseline'}", "95% interval", "verdict"]
    header += ["LB", "minutes", "images/s", "notes", *(f"fold {number}" for number in folds)]
    rows = [cells(entry, folds, metric, num_rows) for entry in entries]
    texts = [*lines, optimism_note([entry.run for entry in entries])]
    problems = [f"warning: {problem}" for entry in entries for problem in entry.run.problems]
    parts: list[Part] = [Table(header, rows, caption), *(Text(line) for line in [*texts, *problems] if line)]
    return Section("Leaderboard", parts)


def cells(entry: Entry, folds: Sequence[int], metric: Metric, num_rows: int) -> list[str]:
    scores, difference, notes = entry.scores, entry.difference, list(entry.run.notes)
    if scores is not None and entry.num_rows < num_rows:
        notes.append(f"{entry.num_rows} of {num_rows} rows")
    pooled, between = (show(scores.pooled), show_interval(scores.low, scores.high)) if scores else ("-", "-")
    gain = ("-", "-", "-")
    if difference is not None:
        value, low, high = difference
        gain = (show(value, "+"), show_interval(low, high, "+"), verdict(metric, difference))
    of_folds = [show(scores.by_fold[number]) if scores and number in scores.by_fold else "-" for number in folds]
    cost = [entry.ledger.get("minutes") or minutes(entry.run), entry.ledger.get("images_per_second") or "-"]
    return [entry.run.name, pooled, between, *gain, entry.public_cell, *cost, "; ".join(notes), *of_folds]


def minutes(run: RunFound) -> str:
    """Of the folds that are done, for a run that has no row in the ledger yet."""
    return f"{sum(manifest.get('minutes', 0) for manifest in run.manifests.values()):.2f}" if run.manifests else "-"
