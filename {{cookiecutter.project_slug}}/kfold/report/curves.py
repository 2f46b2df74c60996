"""Learning curves: all folds of a run on the same axes, with the learning rate."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kfold.report.drawing import GREY, finish, make_axes
from kfold.report.parts import Part, Picture, Section, Text
from kfold.report.reading import RunFound

WIDTH, HEIGHT = 5.2, 3.4  # inches


def curves_section(runs: Sequence[RunFound], metric: str) -> Section:
    """A drawing of the losses and one of the metric for each run that has logs."""
    parts: list[Part] = []
    for run in runs:
        logs = {number: log for number, log in run.logs.items() if len(log)}
        if not logs:
            continue
        end = ", ".join(f"fold {number} {log['score'].iloc[-1]:.4f}" for number, log in logs.items())
        last = max(int(log["epoch"].iloc[-1]) for log in logs.values())
        parts += [
            Text(f"{run.name}: {len(logs)} folds, up to epoch {last}. {metric} after the last epoch: {end}."),
            Picture(losses_figure(run.name, logs), f"Training and validation loss of {run.name}, {last} epochs."),
            Picture(scores_figure(run.name, logs, metric), f"{metric} of {run.name} by epoch; after the last: {end}."),
        ]
    return Section("Learning curves", parts or [Text("No run that is shown here was trained: stacks have no epochs.")])


def losses_figure(run: str, logs: Mapping[int, pd.DataFrame]) -> Figure:
    """Training losses broken, validation losses whole, each fold in its colour; the learning rate as a grey line."""
    figure, (axes,) = make_axes(1, WIDTH, HEIGHT)
    for number, log in logs.items():
        axes.plot(log["epoch"], log["train_loss"], "--", color=color_of(number), linewidth=1)
        axes.plot(log["epoch"], log["valid_loss"], color=color_of(number), label=f"fold {number}")
    rates = axes.twinx()
    log = max(logs.values(), key=len)
    rates.plot(log["epoch"], log["lr"], ":", color=GREY, linewidth=1.5)
    rates.set_ylabel("learning rate (dotted)", color=GREY)
    rates.tick_params(axis="y", colors=GREY)
    rates.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}")
    rates.set_ylim(bottom=0)
    rates.spines[["top"]].set_visible(False)
    rates.patch.set_visible(False)
    axes.set_ylabel("loss (broken: training)")
    return complete(figure, axes, run, logs)


def scores_figure(run: str, logs: Mapping[int, pd.DataFrame], metric: str) -> Figure:
    """The metric on the held-out rows."""
    figure, (axes,) = make_axes(1, WIDTH, HEIGHT)
    for number, log in logs.items():
        axes.plot(log["epoch"], log["score"], color=color_of(number), label=f"fold {number}")
    axes.set_ylabel(f"{metric}, held out")
    return complete(figure, axes, run, logs)


def complete(figure: Figure, axes: Axes, run: str, logs: Mapping[int, pd.DataFrame]) -> Figure:
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(run)
    if all(len(log) == 1 for log in logs.values()):
        for line in axes.lines:
            line.set_marker("o")
    if len(logs) <= 10:
        axes.legend(frameon=False, fontsize="small")
    return finish(figure)


def color_of(number: int) -> str:
    return f"C{number % 10}"
