"""A sheet of training images, drawn pixel by pixel."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.figure import Figure

from kfold.report.pictures import to_png

DPI = 100
GAP, LINE = 10, 18  # pixels, between images and above them
LEAST = 128  # pixels, of an image on the sheet: smaller ones are enlarged, each pixel a square
PER_LETTER = 6  # pixels, of every letter of the font


@dataclass(frozen=True)
class Cell:
    """An image (S, S, 3), of values 0 to 255, or none; and a line about it."""

    pixels: np.ndarray | None
    label: str


@dataclass(frozen=True)
class SheetRow:
    """An image file, and what training makes of it."""

    original: Cell
    cells: Sequence[Cell]


def draw_sheet(title: str, headings: Sequence[str], rows: Sequence[SheetRow], size: int) -> bytes:
    """The sheet as PNG. headings: of the columns of cells; size: pixels of the largest cell.

    The cells' pixels are the PNG's (rounded, where images were mixed); small ones are enlarged by a whole number.
    """
    zoom = -(-LEAST // size)
    side = size * zoom
    width = GAP + (1 + len(headings)) * (side + GAP)
    titles = textwrap.wrap(title, (width - 2 * GAP) // PER_LETTER)
    head = (len(titles) + 1) * LINE
    height = head + GAP + len(rows) * (side + LINE + GAP)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    lefts = [GAP + column * (side + GAP) for column in range(1 + len(headings))]
    for number, line in enumerate(titles):
        write(figure, GAP, number * LINE, line, width - 2 * GAP)
    for left, heading in zip(lefts, ["the file", *headings], strict=True):
        write(figure, left, head - LINE, heading, side)
    for number, row in enumerate(rows):
        top = head + number * (side + LINE + GAP)
        shown = [fitted(row.original.pixels, side), *(enlarged(cell.pixels, zoom) for cell in row.cells)]
        for left, pixels, cell in zip(lefts, shown, [row.original, *row.cells], strict=True):
            write(figure, left, top, cell.label, side)
            if pixels is not None:
                figure.figimage(pixels, left, height - top - LINE - len(pixels), origin="upper")
    return to_png(figure)


def write(figure: Figure, left: int, top: int, text: str, room: int) -> None:
    """A line of text, cut where it would run over `room` pixels."""
    letters = room // PER_LETTER
    short = text if len(text) <= letters else text[: letters - 3] + "..."
    width, height = figure.get_size_inches() * DPI
    place = left / width, 1 - (top + LINE - 5) / height
    figure.text(*place, short, fontsize=7, family="monospace", verticalalignment="baseline", parse_math=False)


def enlarged(pixels: np.ndarray | None, zoom: int) -> np.ndarray | None:
    """uint8, each pixel a square of zoom x zoom."""
    if pixels is None:
        return None
    return np.rint(pixels).astype(np.uint8).repeat(zoom, axis=0).repeat(zoom, axis=1)


def fitted(image: np.ndarray, side: int) -> np.ndarray:
    """The whole image, made to fit into side x side."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
