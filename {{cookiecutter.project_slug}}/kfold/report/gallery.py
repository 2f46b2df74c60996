"""The images that a model gets most wrong, and those that it doubts most: often wrong labels, or what is hard."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from kfold.data.images import BadImage, read_image
from kfold.metrics import THRESHOLD
from kfold.report.parts import Card, Gallery, Part, Section, Text

NUM_CARDS = 24  # of a gallery
THUMBNAIL = 128  # pixels, the longer side
JPEG_QUALITY = 80
MOST_LABELS = 6  # of a row, that a card lists
TINY = 1e-7
DOUBTS = {
    "multiclass": "the smallest margins between the two likeliest classes",
    "binary": f"the probabilities nearest to {THRESHOLD}",
    "multilabel": f"a probability nearest to {THRESHOLD}",
}


@dataclass(frozen=True)
class Rows:
    """Out-of-fold rows. targets, predictions: (N, C); names: of the C columns; labels: (negative, positive) of binary;
    ids, duplicate_group ("" = none): (N,) text; fold: (N,) int; paths: of the N images."""

    task: str
    targets: np.ndarray
    predictions: np.ndarray
    names: Sequence[str]
    labels: Sequence[str]
    ids: np.ndarray
    fold: np.ndarray
    duplicate_group: np.ndarray
    paths: Sequence[Path]


def gallery_section(rows: Rows, num_cards: int = NUM_CARDS) -> Section:
    """The section of the worst and, but for regression, the most doubtful predictions."""
    if not len(rows.ids):
        return Section("Images to look at", [Text("There are no rows.")])
    loss, twins = losses(rows.task, rows.targets, rows.predictions), Counter(rows.duplicate_group)
    worst = np.argsort(-loss, kind="stable")[:num_cards]
    what = "largest error" if rows.task == "regression" else "highest loss against the true label"
    parts: list[Part] = [Gallery([make_card(rows, row, twins) for row in worst], f"The worst: the {what}.")]
    if rows.task != "regression":
        doubtful = np.argsort(margins(rows.task, rows.predictions), kind="stable")[:num_cards]
        caption = f"The most doubtful: {DOUBTS[rows.task]}."
        parts.append(Gallery([make_card(rows, row, twins) for row in doubtful], caption))
    return Section("Images to look at", parts)


def losses(task: str, targets: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Of each row, (N,): cross entropy; mean over labels; or the mean error in standard deviations of each target."""
    targets, predictions = targets.astype(np.float64), predictions.astype(np.float64)
    if task == "regression":
        deviations = targets.std(axis=0)
        return (np.abs(predictions - targets) / np.where(deviations > 0, deviations, 1)).mean(axis=1)
    sure = predictions.clip(TINY, 1 - TINY)
    if task == "multiclass":
        return -(targets * np.log(sure)).sum(axis=1)
    return -(targets * np.log(sure) + (1 - targets) * np.log(1 - sure)).mean(axis=1)


def margins(task: str, predictions: np.ndarray) -> np.ndarray:
    """Of each row, (N,): how much the likeliest class leads, or how far the nearest label is from the threshold."""
    if task == "multiclass":
        second, first = np.sort(predictions, axis=1)[:, -2:].T
        return first - second
    return np.abs(predictions - THRESHOLD).min(axis=1)


def make_card(rows: Rows, row: int, twins: Counter) -> Card:
    """Its thumbnail, empty where the file cannot be read, and lines of id, truth, prediction, fold and what is odd."""
    lines = [str(rows.ids[row]), *DESCRIBED[rows.task](rows, row), f"fold {rows.fold[row]}"]
    group = rows.duplicate_group[row]
    if group and twins[group] > 1:
        lines.append(f"duplicate: looks like {twins[group] - 1} other row{'s' * (twins[group] > 2)}")
    try:
        image = thumbnail(rows.paths[row])
    except BadImage as problem:
        return Card(b"", [*lines, f"the image {problem}"])
    return Card(image, lines)


def thumbnail(path: Path) -> bytes:
    """The image as a small JPEG. Raises BadImage."""
    image = read_image(path)
    height, width = image.shape[:2]
    scale = min(1.0, THUMBNAIL / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return encode_jpeg(small)


def encode_jpeg(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB as a JPEG."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return data.tobytes()


def describe_class(rows: Rows, row: int) -> list[str]:
    true, decided = rows.targets[row].argmax(), rows.predictions[row].argmax()
    values = rows.predictions[row]
    lines = [f"true {rows.names[true]}: {values[true]:.3f}"]
    if decided != true:
        return [*lines, f"predicted {rows.names[decided]}: {values[decided]:.3f}"]
    second = np.argsort(values, kind="stable")[-2]
    return [*lines, f"predicted {rows.names[decided]}, before {rows.names[second]}: {values[second]:.3f}"]


def describe_binary(rows: Rows, row: int) -> list[str]:
    value = rows.predictions[row, 0]
    true, decided = int(rows.targets[row, 0] >= THRESHOLD), int(value >= THRESHOLD)
    return [f"true {rows.labels[true]}", f"predicted {rows.labels[decided]} (of {rows.labels[1]}: {value:.3f})"]


def describe_labels(rows: Rows, row: int) -> list[str]:
    truth, values = rows.targets[row] >= THRESHOLD, rows.predictions[row]
    decided = values >= THRESHOLD
    farthest = int(np.abs(values - truth).argmax())
    lines = [f"true {listed(rows.names, truth)}", f"predicted {listed(rows.names, decided)}"]
    return [*lines, f"farthest off: {rows.names[farthest]}: {values[farthest]:.3f}"]


def describe_values(rows: Rows, row: int) -> list[str]:
    several = [f"{name} " if len(rows.names) > 1 else "" for name in rows.names]
    values = list(zip(several, rows.targets[row], rows.predictions[row], strict=True))
    lines = [f"{name}true {true:.5g}, predicted {predicted:.5g}" for name, true, predicted in values[:MOST_LABELS]]
    return [*lines, f"and {len(values) - MOST_LABELS} more"] if len(values) > MOST_LABELS else lines


DESCRIBED = {  # (rows, row number) -> lines of truth, prediction and probability
    "multiclass": describe_class,
    "binary": describe_binary,
    "multilabel": describe_labels,
    "regression": describe_values,
}


def listed(names: Sequence[str], chosen: np.ndarray) -> str:
    found = [name for name, is_chosen in zip(names, chosen, strict=True) if is_chosen]
    more = f" and {len(found) - MOST_LABELS} more" if len(found) > MOST_LABELS else ""
    return (", ".join(found[:MOST_LABELS]) or "none") + more
