"""Cross-validation against the leaderboard, and gains that are too small to be expected there."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from kfold.metrics import METRICS, Metric
from kfold.report.drawing import COLORS, GREY, finish, make_axes, name_points
from kfold.report.leaderboard import Entry
from kfold.report.parts import Part, Picture, Section, Table, Text
from kfold.report.scores import show

LEAST_RUNS = 3  # two points always lie on a line
HOW = "python report.py --log-lb RUN SCORE records a leaderboard score"


def public_section(entries: Sequence[Entry], baseline: str, metric: Metric) -> Section:
    """Warnings of gains within fold noise; scatter and rank correlation of runs with a leaderboard score."""
    known = [entry for entry in entries if entry.scores and not np.isnan(entry.public_score)]
    parts: list[Part] = [Text(warning) for warning in noise_warnings(entries, baseline, metric)]
    if not known:
        return Section("Cross-validation and leaderboard", [*parts, Text(f"No leaderboard score yet: {HOW}.")])
    cv, public = (np.array(values, float) for values in
                  ([entry.scores.pooled for entry in known], [entry.public_score for entry in known]))  # fmt: skip
    said = (
        f"{len(known)} run{'s' * (len(known) > 1)}: too few for a rank correlation, {LEAST_RUNS} are the least. {HOW}."
    )
    if len(known) >= LEAST_RUNS:
        rank = METRICS["spearman"].function("regression", public[:, None], cv[:, None])
        said = f"Spearman's rank correlation over {len(known)} runs: {show(rank)}."
        if not rank > 0:
            said = f"warning: {said} Cross-validation does not order the runs as the leaderboard does."
    rows = [
        (entry.run.name, show(entry.scores.pooled), show(entry.public_score), show(gap, "+"))
        for entry, gap in zip(known, public - cv, strict=True)
    ]
    parts += [
        Text(said),
        Picture(scatter(known, metric), f"Leaderboard against cross-validation. {said}"),
        Table(("run", "out of fold", "leaderboard", "leaderboard minus out of fold"), rows),
    ]
    return Section("Cross-validation and leaderboard", parts)


def scatter(entries: Sequence[Entry], metric: Metric) -> Figure:
    """A point a run, with the 95% interval of its out-of-fold score, and the line where both scores are the same."""
    figure, (axes,) = make_axes(1, 5.2, 4)
    for entry in entries:
        scores, public = entry.scores, entry.public_score
        axes.plot([scores.low, scores.high], [public, public], color=COLORS[0], alpha=0.6)
        axes.plot(scores.pooled, public, "o", color=COLORS[0])
    points = [(entry.scores.pooled, entry.public_score) for entry in entries]
    ends = [value for point in points for value in point]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], ":", color=GREY)
    spans = [(entry.scores.low, entry.scores.high) for entry in entries]
    name_points(axes, points, [entry.run.name for entry in entries], spans)
    axes.set_xlabel(f"{metric.name}, out of fold, with 95% interval")
    axes.set_ylabel("leaderboard")
    return finish(figure)


def noise_warnings(entries: Sequence[Entry], baseline: str, metric: Metric) -> list[str]:
    """A line on each run whose gain over the baseline is smaller than its gains differ from fold to fold."""
    by_name = {entry.run.name: entry.scores for entry in entries}
    base, lines = by_name.get(baseline), []
    for name, scores in by_name.items():
        if name == baseline or base is None or scores is None or not metric.better(scores.pooled, base.pooled):
            continue
        shared = [number for number in scores.by_fold if number in base.by_fold]
        gains = np.array([scores.by_fold[number] - base.by_fold[number] for number in shared])
        if len(gains) > 1 and abs(gains.mean()) < (noise := gains.std(ddof=1)):
            lines.append(
                f"warning: {name} over {baseline}: the gain in CV, {gains.mean():+.5f} a fold, is smaller than "
                f"the fold noise, {noise:.5f} (its standard deviation over folds): it may not hold on the leaderboard"
            )
    return lines
