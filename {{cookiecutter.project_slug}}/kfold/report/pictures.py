"""Pictures as PNG bytes, drawn without a display and without matplotlib's global state."""

import io
import warnings

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MAX_BARS = 30
MAX_LABEL = 50  # characters
VERDICT_COLORS = {"helps": "tab:green", "hurts": "tab:red", "within noise": "0.45"}


def importance_picture(table: pd.DataFrame, title: str) -> bytes:
    """`importance_figure` as PNG. Equal tables give equal bytes (with one version of matplotlib)."""
    return to_png(importance_figure(table, title, 9))


def importance_figure(table: pd.DataFrame, title: str, width: float) -> Figure:
    """Horizontal bars of the features with the most gain; of a table with columns name and gain. width: inches."""
    top = table.nlargest(MAX_BARS, "gain")[::-1]  # barh draws upwards
    labels = [shorten_label(name) for name in top["name"]]
    figure = Figure(figsize=(width, 1.2 + 0.25 * len(top)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(top)), top["gain"], color="tab:blue")
    axes.set_yticks(range(len(top)), labels)
    axes.set_xlabel("gain (loss saved by the feature's splits), mean over folds")
    axes.set_title(title)
    axes.margins(y=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    for text in (axes.title, *axes.get_yticklabels()):
        text.set_parse_math(False)  # a $ in a column's name is no formula
    return figure


def effects_picture(table: pd.DataFrame, deviation: float, title: str, unit: str) -> bytes:
    """Gain of each switch with its 95% interval, the best on top, and a line at 0, as PNG.

    table: columns switch, verdict, gain, gain_low, gain_high; failed ones are left out. deviation: of the baseline over
    seeds, drawn as a band on both sides of 0. unit: of the gain.
    """
    shown = table[table["gain"].notna()].sort_values("gain", kind="stable")
    figure = Figure(figsize=(9, 1.6 + 0.3 * len(shown)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.axvspan(-deviation, deviation, color="0.9", label="baseline, standard deviation over seeds")
    axes.axvline(0, color="0.4", linewidth=1)
    for position, row in enumerate(shown.itertuples()):
        color = VERDICT_COLORS[row.verdict]
        axes.plot([row.gain_low, row.gain_high], [position, position], color=color, linewidth=2)
        axes.plot(row.gain, position, "o", color=color)
    axes.set_yticks(range(len(shown)), [shorten_label(name) for name in shown["switch"]])
    axes.set_xlabel(f"gain in {unit} over the baseline, 95% interval; right of 0 is better")
    axes.set_title(title)
    figure.legend(loc="outside lower right", fontsize="small")
    axes.margins(y=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    for text in (axes.title, axes.xaxis.label, *axes.get_yticklabels()):
        text.set_parse_math(False)
    return to_png(figure)


def shorten_label(name: str, longest: int = MAX_LABEL) -> str:
    return name if len(name) <= longest else name[: longest - 3] + "..."


def to_png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a script that the font lacks is drawn as boxes
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
