"""Whether probabilities mean what they say: of rows predicted at 0.8, are 80% so?

The expected calibration error (ECE): probabilities fall into 15 bins of equal width, (0, 1/15] to (14/15, 1]; over the
bins, the mean of |share that is so - mean probability|, weighted by the bin's share of the rows. Naeini and others,
AAAI 2015 (10.1609/aaai.v29i1.9602); 15 bins and the top label as in Guo and others, arxiv.org/abs/1706.04599.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from kfold.report.drawing import COLORS, GREY, finish, make_axes
from kfold.report.parts import Part, Picture, Section, Table, Text

NUM_BINS = 15
NUM_DRAWS = 500  # of labels for a calibrated model, to know its ECE
DEFINITION = (
    f"ECE: probabilities fall into {NUM_BINS} bins of equal width; over the bins, the mean of |share that is so - mean "
    f"probability|, weighted by rows. With few rows no model reaches 0, so each ECE stands beside what calibrated "
    f"probabilities would get on as many rows: only above that is there something to mend."
)
MEANINGS = {
    "multiclass": "Of each row the likeliest class: its probability, and whether it is the true one.",
    "binary": "Of each row the probability of the positive class, and whether it is the true one.",
    "multilabel": "Of each row and label the probability, and whether the row has the label; all labels together.",
}


@dataclass(frozen=True)
class Reliability:
    """Of the bins that hold anything: how many, their mean probability, and the share that is so; all (B,)."""

    counts: np.ndarray
    probabilities: np.ndarray
    shares: np.ndarray
    variances: np.ndarray  # of the share, if the probabilities were right

    @property
    def weights(self) -> np.ndarray:
        return self.counts / self.counts.sum()

    @property
    def error(self) -> float:
        """The expected calibration error, 0 to 1."""
        return float(np.sum(self.weights * np.abs(self.shares - self.probabilities)))

    @property
    def noise(self) -> float:
        """The ECE that calibrated probabilities stay under 95% of the time, with shares drawn from a normal."""
        noise = np.random.default_rng(0).normal(0, np.sqrt(self.variances), (NUM_DRAWS, len(self.counts)))
        return float(np.percentile(np.abs(noise) @ self.weights, 95))

    @property
    def excess(self) -> float:
        """Mean probability minus share: above 0, it claims too much."""
        return float(np.sum(self.weights * (self.probabilities - self.shares)))


def calibration_section(task: str, targets: np.ndarray, predictions: np.ndarray, names: Sequence[str]) -> Section:
    """The section of targets and probabilities, (N, C) both, of multiclass, binary or multilabel."""
    probabilities, outcomes = claims(task, targets, predictions)
    found = reliability(probabilities, outcomes)
    verdict = "more than noise" if found.error > found.noise else "within noise"
    side = "too sure" if found.excess > 0 else "not sure enough"
    side = f"predicted minus found: {found.excess:+.4f}" + (f", {side}" if task == "multiclass" else "")
    summary = f"ECE {found.error:.4f}, {verdict} (calibrated: up to {found.noise:.4f}); {side}."
    parts: list[Part] = [Text(MEANINGS[task]), Text(DEFINITION), Picture(draw(found), summary), Text(summary)]
    if task == "multilabel":
        each = [reliability(predictions[:, column], targets[:, column] >= 0.5) for column in range(len(names))]
        rows = [(name, *cells(one)) for name, one in zip(names, each, strict=True)]
        parts.append(Table(("label", "ECE", "calibrated: up to", "predicted minus found"), rows))
    return Section("Calibration", parts)


def cells(found: Reliability) -> tuple[str, str, str]:
    return f"{found.error:.4f}", f"{found.noise:.4f}", f"{found.excess:+.4f}"


def claims(task: str, targets: np.ndarray, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (M,) and whether each came true (M,) bool, as MEANINGS says."""
    if task == "multiclass":
        return predictions.max(axis=1), predictions.argmax(axis=1) == targets.argmax(axis=1)
    return predictions.ravel(), targets.ravel() >= 0.5


def reliability(probabilities: np.ndarray, outcomes: np.ndarray) -> Reliability:
    """The bins of probabilities (M,) and outcomes (M,) bool."""
    probabilities = probabilities.astype(np.float64)
    edges = np.linspace(0, 1, NUM_BINS + 1)[1:-1]
    bins = np.searchsorted(edges, probabilities)
    counts = np.bincount(bins, minlength=NUM_BINS)
    filled = counts > 0

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(bins, values, NUM_BINS)[filled] / counts[filled]

    variances = mean(probabilities * (1 - probabilities).clip(0)) / counts[filled]
    return Reliability(counts[filled], mean(probabilities), mean(outcomes.astype(np.float64)), variances)


def draw(found: Reliability) -> Figure:
    """The share that is so over the mean probability, and how many rows there are of each."""
    figure, (curve, amounts) = make_axes(2)
    curve.plot([0, 1], [0, 1], "--", color=GREY, label="calibrated")
    margin = 1.96 * np.sqrt(found.variances)
    curve.errorbar(
        found.probabilities,
        found.shares,
        margin,
        marker="o",
        color=COLORS[0],
        ecolor=GREY,
        label="found; 95% of calibrated ones stay within the bars",
    )
    curve.set_xlim(-0.02, 1.02)
    curve.set_ylim(-0.02, 1.02)
    curve.set_xlabel("mean probability of a bin")
    curve.set_ylabel("share that is so")
    amounts.bar(found.probabilities, found.weights, width=0.6 / NUM_BINS, color=COLORS[0])
    amounts.set_xlim(-0.02, 1.02)
    amounts.set_xlabel("mean probability of a bin")
    amounts.set_ylabel("share of all")
    figure.legend(frameon=False, fontsize="small", loc="outside upper left")  # within, it would hide points
    return finish(figure)
