"""What a section of the report is made of: plain values, which page.py alone turns into HTML."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Text:
    """A paragraph; letters mean themselves, there is no markup."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells as people read them, under a header; caption: what to know of it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A drawing (as vectors, on a bright or dark page), and its content in words for who cannot see it."""

    figure: Figure
    alternative: str


@dataclass(frozen=True)
class Card:
    """One image of a gallery with lines about it; thumbnail: JPEG bytes, empty where the file cannot be read."""

    thumbnail: bytes
    lines: Sequence[str]


@dataclass(frozen=True)
class Gallery:
    """Images side by side."""

    cards: Sequence[Card]
    caption: str = ""


Part = Text | Table | Picture | Gallery


@dataclass(frozen=True)
class Section:
    """A heading of the report and what stands under it."""

    title: str
    parts: Sequence[Part]
