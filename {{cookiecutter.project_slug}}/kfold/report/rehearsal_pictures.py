"""What --find-lr and --profile found, as PNG bytes."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from kfold.report.pictures import to_png
from kfold.training.lr_finder import Curve, Suggestion

SHOWN = 3  # times the loss of the start: what explodes above would flatten the rest


def lr_picture(curve: Curve, suggestion: Suggestion | None, title: str) -> bytes:
    """The loss over the learning rate, with the suggested rates as lines."""
    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(curve.rates, curve.losses, ".", color="tab:gray", markersize=4, label="batch")
    axes.plot(curve.rates, curve.smoothed, color="tab:blue", label="smoothed")
    if suggestion is not None:
        axes.axvline(suggestion.largest, color="tab:red", label=f"largest that still falls: {suggestion.largest:.1e}")
        axes.axvline(suggestion.careful, color="tab:green", label=f"careful: {suggestion.careful:.1e}")
    axes.set_xscale("log")
    if curve.losses:
        top = SHOWN * max(curve.losses[0], min(curve.losses))
        axes.set_ylim(min(0, *curve.losses), 1.05 * min(top, max(curve.losses)) or None)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.set_title(title).set_parse_math(False)
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)
    return to_png(figure)


def profile_picture(seconds: Mapping[str, float], title: str) -> bytes:
    """One bar: the parts of a training step (seconds) beside each other."""
    figure = Figure(figsize=(9, 2.2), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    left, total = 0.0, sum(seconds.values())
    for part, value in seconds.items():
        axes.barh(0, 1000 * value, left=1000 * left, label=f"{part} {value / total:.0%}")
        left += value
    axes.set_yticks([])
    axes.set_xlabel("milliseconds of a training step")
    axes.set_title(title).set_parse_math(False)
    figure.legend(ncols=len(seconds), loc="outside lower center", frameon=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return to_png(figure)
