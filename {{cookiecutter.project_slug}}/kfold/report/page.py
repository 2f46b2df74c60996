"""Sections as one HTML document that stands alone: no script, nothing from elsewhere, every letter escaped.

Read it from the table of contents down. A content security policy, kept by the browser, allows the one style sheet
below (by its sha256) and images that lie in the page itself; whatever else a label might smuggle in stays text.
"""

import base64
import hashlib
from collections.abc import Sequence
from html import escape

from kfold.errors import one_line
from kfold.numbers import is_number
from kfold.report.parts import Gallery, Part, Picture, Section, Table, Text
from kfold.report.vectors import to_svg

LONG = 25  # rows of a table that is folded up at first

STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1b1f24; --quiet: #57606a; --line: #d0d7de; --band: #f6f8fa;
  --link: #0550ae; --warn: #8a4600 }
@media (prefers-color-scheme: dark) { :root { --page: #111418; --text: #dfe3e8; --quiet: #9aa4af; --line: #333b44;
  --band: #1a1f25; --link: #79b8ff; --warn: #f0b060 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 84rem; padding: 1rem 1.2rem 4rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; margin: 0.5rem 0 } h2 { font-size: 1.25rem; margin: 0 0 0.6rem }
a { color: var(--link) } :focus-visible { outline: 3px solid var(--link); outline-offset: 2px }
.skip { position: absolute; left: -99rem } .skip:focus { position: static }
header p, figcaption, .caption, summary { color: var(--quiet) } p { margin: 0.4rem 0; max-width: 60rem }
p.warning { color: var(--warn); font-weight: 600 }
nav ol { columns: 17rem; column-gap: 2rem; padding-left: 1.6rem; margin: 0.5rem 0 1rem }
section { border-top: 1px solid var(--line); padding: 1.2rem 0; scroll-margin-top: 0.5rem }
.scroll { overflow-x: auto; max-width: 100%; margin: 0.6rem 0 }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums }
th, td { padding: 0.25rem 0.7rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap }
.wrap { white-space: normal; min-width: 16rem; max-width: 40rem } .number { text-align: right }
thead th { background: var(--band) } tbody th { font-weight: 600 } summary { cursor: pointer; padding: 0.3rem 0 }
.pictures, .cards { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start }
.pictures figure { margin: 0; max-width: min(100%, 35rem); overflow-x: auto }
.pictures .full { max-width: 100% }
svg { max-width: 100%; height: auto; display: block }
.wide svg { min-width: 34rem } svg text { font-family: system-ui, sans-serif }
svg * { stroke-linejoin: round; stroke-linecap: butt }
.cards figure { margin: 0; width: clamp(6.4rem, 28%, 9.5rem); font-size: 0.8rem }
.cards figcaption span { display: block }
.cards img, .missing { width: 100%; height: 8rem; object-fit: contain; background: var(--band);
  image-rendering: auto; display: flex; align-items: center; justify-content: center; color: var(--quiet) }
""".strip()

# In points: a drawing that is wider scrolls sideways on a phone, its letters would be too small; has a row for itself.
WIDE, FULL = 460, 560


def policy() -> str:
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The document of sections under a title, with a table of contents; equal parts give equal text."""
    writer = Writer()
    contents = [
        f'<li><a href="#section-{place}">{text(one.title)}</a></li>' for place, one in enumerate(sections, start=1)
    ]
    bodies = [writer.section(one, place) for place, one in enumerate(sections, start=1)]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy()}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">',
            f'<link rel="icon" href="data:,"><title>{text(title)}</title>',
            f"<style>{STYLE}</style></head><body>",
            '<a class="skip" href="#content">To the content</a>',
            f"<header><h1>{text(title)}</h1><p>{text(lead)}</p></header>",
            f'<nav aria-label="Contents"><ol>{"".join(contents)}</ol></nav>',
            '<main id="content">',
            *bodies,
            "</main></body></html>\n",
        ]
    )


def text(value: str) -> str:
    """Letters that mean themselves, in an element or in a quoted attribute; what cannot be printed is written out."""
    return escape(one_line(value))


class Writer:
    """Turns parts into HTML; counts drawings, so that their ids differ."""

    def __init__(self) -> None:
        self.num_drawings = 0

    def section(self, section: Section, place: int) -> str:
        parts, pictures = [], []
        for part in section.parts:
            if isinstance(part, Picture):
                pictures.append(self.picture(part))
                continue
            parts += [group_of(pictures), describe(part)]
            pictures = []
        body = "\n".join(filter(None, [*parts, group_of(pictures)]))
        return (
            f'<section id="section-{place}" aria-labelledby="title-{place}">'
            f'<h2 id="title-{place}">{text(section.title)}</h2>\n{body}\n</section>'
        )

    def picture(self, picture: Picture) -> str:
        self.num_drawings += 1
        points = picture.figure.get_size_inches()[0] * 72
        kind = "wide full" if points > FULL else "wide"
        attributes = f' class="{kind}" tabindex="0" aria-label="{text(picture.alternative)}"' if points > WIDE else ""
        return f"<figure{attributes}>{to_svg(picture.figure, picture.alternative, self.num_drawings)}</figure>"


def group_of(pictures: Sequence[str]) -> str:
    return f'<div class="pictures">{"".join(pictures)}</div>' if pictures else ""


def describe(part: Part) -> str:
    if isinstance(part, Text):
        kind = ' class="warning"' if part.text.startswith("warning: ") else ""
        return f"<p{kind}>{text(part.text)}</p>"
    return table(part) if isinstance(part, Table) else gallery(part)


def table(part: Table) -> str:
    """Scrolls sideways where it is too wide, also by keyboard; a long one is folded up."""
    if not part.rows:
        return f"<p>{text(part.caption)}</p>" if part.caption else ""
    kinds = [kind_of([row[place] for row in part.rows]) for place in range(len(part.header))]
    heads = "".join(f'<th scope="col"{kind}>{text(name)}</th>' for name, kind in zip(part.header, kinds, strict=True))
    rows = "".join(f"<tr>{cells(row, kinds)}</tr>" for row in part.rows)
    label = text(part.caption or f"Table of {part.header[0]}")
    body = (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
    if len(part.rows) > LONG:
        return f"<details><summary>{label} ({len(part.rows)} rows)</summary>{body}</details>"
    return (f'<p class="caption">{text(part.caption)}</p>' if part.caption else "") + body


def kind_of(column: Sequence[str]) -> str:
    """The class of a column's cells: numbers stand right, long texts are broken."""
    if all(value == "-" or is_number(value.strip("%+ ")) for value in column):
        return ' class="number"'
    return ' class="wrap"' if max(map(len, column)) > 40 else ""


def cells(row: Sequence[str], kinds: Sequence[str]) -> str:
    """The first one is the row's head."""
    heads = ['th scope="row"', *["td"] * (len(row) - 1)]
    return "".join(
        f"<{head}{kind}>{text(value)}</{head[:2]}>" for head, kind, value in zip(heads, kinds, row, strict=True)
    )


def gallery(part: Gallery) -> str:
    if not part.cards:
        return f"<p>{text(part.caption)}</p>" if part.caption else ""
    cards = []
    for card in part.cards:
        lines = "".join(f"<span>{text(line)}</span>" for line in card.lines)
        image = '<div class="missing">cannot be read</div>'
        if card.thumbnail:
            data = base64.b64encode(card.thumbnail).decode()
            image = f'<img alt="{text(", ".join(card.lines))}" src="data:image/jpeg;base64,{data}">'
        cards.append(f"<figure>{image}<figcaption>{lines}</figcaption></figure>")
    caption = f'<p class="caption">{text(part.caption)}</p>' if part.caption else ""
    return f'{caption}<div class="cards">{"".join(cards)}</div>'
