"""How runs go together: how alike they err, what blends and stackers came to, and what a stacker looked at."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from kfold.ensemble.stack_files import error_correlation
from kfold.report.drawing import COLORS, finish, make_axes
from kfold.report.parts import Part, Picture, Section, Table, Text
from kfold.report.pictures import importance_figure, shorten_label
from kfold.report.reading import RunFound
from kfold.report.scores import show, show_interval
from kfold.report.spreadsheet import to_number

IMPORTANCE_WIDTH = 6.2  # inches


def blending_section(runs: Sequence[RunFound], targets: np.ndarray) -> Section:
    """Correlation of the errors of the runs that predict all rows, then the stacks one by one."""
    whole = {run.name: run.oof for run in runs if run.has_oof.all() and not run.stack_of}
    parts: list[Part] = []
    if len(whole) > 1:
        table = error_correlation(whole, targets)
        caption = "Correlation of the runs' errors, out of fold: runs that err alike gain little from a blend."
        parts += [Text(caption), Picture(correlation_figure(table), f"{caption} {in_words(table)}")]
    for run in runs:
        if run.stack_of:
            parts += describe_stack(run)
    return Section("Blends and stacks", parts or [Text("One run alone: train a second one, then run python stack.py.")])


def in_words(table: pd.DataFrame) -> str:
    names = list(table.columns)
    pairs = [(one, other) for place, one in enumerate(names) for other in names[place + 1 :]]
    return "; ".join(f"{one} and {other} {table.loc[one, other]:.2f}" for one, other in pairs[:20])


def correlation_figure(table: pd.DataFrame) -> Figure:
    """A heat map with the numbers in it; strength is opacity, so that it serves on a bright and on a dark page."""
    values, names = table.to_numpy(), [shorten_label(name) for name in table.columns]
    side = max(3.2, 1.8 + 0.5 * len(names))
    figure, (axes,) = make_axes(1, side + 0.6, side)
    edges, strengths = np.arange(len(names) + 1) - 0.5, np.nan_to_num(np.abs(values)).clip(0, 1)[..., None]
    positive, negative = (np.broadcast_to(to_rgb(color), (*values.shape, 3)) for color in COLORS[:2])
    axes.pcolormesh(edges, edges, np.concatenate([np.where(strengths * 0 + values[..., None] < 0, negative, positive),
                                                  0.85 * strengths], axis=2))  # fmt: skip
    for row, column in np.ndindex(*values.shape):
        color = "white" if strengths[row, column, 0] > 0.5 else "black"
        axes.text(column, row, f"{values[row, column]:.2f}", color=color, ha="center", va="center", fontsize="small")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.set_title("correlation of errors")
    return finish(figure)


def describe_stack(run: RunFound) -> list[Part]:
    """What was compared, the weights that each fold's fit gave, and the features that its trees gained by."""
    method = run.settings.get("method", "?")
    parts: list[Part] = [Text(f"{run.name}: {method} of {', '.join(run.stack_of)}.")]
    if "blend" in run.tables:
        rows = [blend_cells(row, method) for row in run.tables["blend"].to_dict("records")]
        caption = "Nested: fitted without the fold that is scored. Optimistic: fitted and scored on the same rows."
        parts.append(
            Table(["name", "kind", "nested", "95% interval", "minus the best run", "95% interval", "optimistic", ""],
                  rows, caption)
        )  # fmt: skip
    notes = [(str(number), str(manifest.get("fitted", ""))) for number, manifest in sorted(run.manifests.items())]
    if any(note for _, note in notes):
        parts.append(
            Table(["fold", "fit"], notes, f"Fits without each fold; weights stand for {', '.join(run.stack_of)}.")
        )
    if "importance" in run.tables and len(run.tables["importance"]):
        table = run.tables["importance"].assign(gain=lambda table: table["gain"].map(to_number))
        top = ", ".join(table.nlargest(5, "gain")["name"])
        title = f"{run.name}: what LightGBM looked at"
        parts.append(Picture(importance_figure(table, title, IMPORTANCE_WIDTH), f"{title}; the most gain: {top}."))
    return parts


def blend_cells(row: Mapping[str, str], method: str) -> list[str]:
    number = {key: to_number(row.get(key, "")) for key in row}
    gain, low, high = (number.get(key, np.nan) for key in ("difference", "difference_low", "difference_high"))
    return [
        row["name"],
        row["kind"],
        show(number["nested"]),
        show_interval(number["low"], number["high"]),
        show(gain, "+"),
        show_interval(low, high, "+"),
        show(number.get("optimistic", np.nan)),
        "taken" if row["name"] == method else "",
    ]
