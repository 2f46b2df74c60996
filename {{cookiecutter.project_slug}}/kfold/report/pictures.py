"""Pictures as PNG bytes, drawn without a display and without matplotlib's global state."""

import io
import warnings

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MAX_BARS = 30
MAX_LABEL = 50  # characters


def importance_picture(table: pd.DataFrame, title: str) -> bytes:
    """Horizontal bars of the features with the most gain, as PNG; of a table with columns name and gain.

    Equal tables give equal bytes (with one version of matplotlib).
    """
    top = table.nlargest(MAX_BARS, "gain")[::-1]  # barh draws upwards
    labels = [name if len(name) <= MAX_LABEL else name[: MAX_LABEL - 3] + "..." for name in top["name"]]
    figure = Figure(figsize=(9, 1.2 + 0.25 * len(top)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(top)), top["gain"], color="tab:blue")
    axes.set_yticks(range(len(top)), labels)
    axes.set_xlabel("gain (loss saved by the feature's splits), mean over folds")
    axes.set_title(title)
    axes.margins(y=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    for text in (axes.title, *axes.get_yticklabels()):
        text.set_parse_math(False)  # a $ in a column's name is no formula
    return to_png(figure)


def to_png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a script that the font lacks is drawn as boxes
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
