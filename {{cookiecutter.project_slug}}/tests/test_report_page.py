"""The page: every letter escaped, nothing from elsewhere, the same bytes for the same runs, right in the dark."""

import base64
import hashlib
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import root, written  # noqa: F401  fixtures
from written_runs import UNSAFE

import report
from kfold.report.drawing import make_axes
from kfold.report.page import STYLE, page
from kfold.report.parts import Card, Gallery, Picture, Section, Table, Text
from kfold.report.vectors import to_svg

NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='alert(1)",
    "$x_{",
    "\x07\x00",
    "</svg>",
    "漢é",
]


class Reader(HTMLParser):
    """Elements with their attributes, and the visible letters."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.letters = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.letters += data

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}


def figure(label: str = "line"):
    drawn, (axes,) = make_axes(1, 4, 3)
    axes.plot([0, 1], [0, 1], "k--", label=label)
    axes.fill_between([0, 1], [0, 1], color="white")
    axes.set_xticks([0, 1], [label, label])
    axes.set_title(label)
    axes.legend()
    return drawn


def full_page(text: str) -> str:
    parts = [
        Text(text),
        Table((text, text), [(text, text)], text),
        Table((text, "b"), [(text, "1")] * 30, text),
        Gallery([Card(b"", (text,)), Card(b"\xff\xd8", (text,))], text),
        Picture(figure(text), text),
    ]
    return page(text, text, [Section(text, parts)])


PLAIN = [(tag, sorted(attributes)) for tag, attributes in Reader(full_page("plain")).elements]


@pytest.mark.parametrize("text", [*NASTY, *UNSAFE])
def test_no_label_adds_an_element_or_an_attribute(text):
    read = Reader(full_page(text))
    assert [
        (tag, sorted(attributes)) for tag, attributes in read.elements if tag not in ("path", "use", "g", "defs")
    ] == [(tag, attributes) for tag, attributes in PLAIN if tag not in ("path", "use", "g", "defs")]
    assert not {"script", "iframe", "object", "form", "base"} & read.tags()
    assert not any(name.startswith("on") for _, attributes in read.elements for name in attributes)


@given(st.text(max_size=30))
def test_texts_are_read_back_as_they_are(text):
    body = page("t", "l", [Section("s", [Text(text)])])
    found = re.search(r"</h2>\s*<p(?: class=\"warning\")?>(.*?)</p>", body, re.S)[1]
    assert not re.search(r"<|&(?!amp;|lt;|gt;|quot;|#x27;)", found)
    printable = "".join(char for char in text if char.isprintable())
    if printable == text:
        assert Reader(found).letters == text
    body.encode("utf-8")


def test_the_policy_allows_the_one_style_sheet_and_images_in_the_page_alone():
    read = Reader(full_page("x"))
    policy = next(a["content"] for tag, a in read.elements if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert f"<style>{STYLE}</style>" in full_page("x")
    assert not any("style" in attributes for _, attributes in read.elements)  # the policy would drop them


def test_nothing_is_asked_from_elsewhere(root, capsys):  # noqa: F811
    report.main(root=root)
    text = (root / "report.html").read_text(encoding="utf-8")
    read = Reader(text)
    for tag, attributes in read.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, name)
    assert "url(http" not in text
    assert "@import" not in text


def test_equal_runs_give_equal_bytes(root, tmp_path, capsys):  # noqa: F811
    report.main(root=root)
    other = Path(shutil.copytree(root, tmp_path / "elsewhere" / "deeper"))
    report.main(root=other)
    assert (other / "report.html").read_bytes() == (root / "report.html").read_bytes()


def test_ids_occur_once_and_every_link_has_its_target(root, capsys):  # noqa: F811
    report.main(root=root)
    read = Reader((root / "report.html").read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    values = [value or "" for _, attributes in read.elements for value in attributes.values()]
    links = {value[1:] for value in values if value.startswith("#") and not re.fullmatch("#[0-9a-f]{6}", value)}
    links |= set(re.findall(r"url\(#([^)]*)\)", " ".join(values)))
    links |= {attributes["aria-labelledby"] for _, attributes in read.elements if "aria-labelledby" in attributes}
    assert len(links) > 10
    assert links <= set(ids)


# Drawings


def test_black_is_the_pages_text_colour_and_white_surfaces_are_the_pages():
    svg = to_svg(figure(), "what", 1)
    assert "#000000" not in svg
    assert 'stroke="currentColor"' in svg
    assert svg.startswith("<svg ")
    assert 'fill="currentColor"' in svg.partition(">")[0]
    assert "#ffffff" not in svg
    assert 'fill="var(--page)"' in svg


def test_white_letters_on_a_colour_stay_white_and_colours_stay():
    drawn, (axes,) = make_axes(1, 3, 3)
    axes.text(0.5, 0.5, "dark cell", color="white")
    axes.plot([0, 1], [0, 1], color="#0072B2")
    svg = to_svg(drawn, "", 1)
    assert re.search(r'<text[^>]*fill="#ffffff"[^>]*>dark cell', svg)
    assert 'stroke="#0072b2"' in svg


def test_a_dollar_in_a_label_is_no_formula_and_texts_stay_texts():
    svg = to_svg(figure("$x_1$ a_b"), "", 1)
    assert svg.count("$x_1$ a_b") == 4  # title, legend, two ticks


def test_drawings_of_a_page_share_no_id():
    first, second = (re.findall(r'id="([^"]+)"', to_svg(figure(), "", number)) for number in (1, 2))
    assert first
    assert not set(first) & set(second)


# For people


def test_tables_can_be_scrolled_by_keyboard_and_long_ones_are_folded_up():
    short, long = (page("t", "l", [Section("s", [Table(("a",), [("x",)] * count, "name")])]) for count in (3, 200))
    assert '<div class="scroll" role="region" tabindex="0" aria-label="name">' in short
    assert "<details>" not in short
    assert "<details><summary>name (200 rows)</summary>" in long
    nameless = page("t", "l", [Section("s", [Table(("a",), [("x",)] * 200)])])
    assert "<details><summary>Table of a (200 rows)</summary>" in nameless


def test_every_drawing_and_image_says_in_words_what_it_shows():
    read = Reader(full_page("said"))
    assert [a["aria-label"] for tag, a in read.elements if tag == "svg"] == ["said"]
    assert all(attributes["alt"] for tag, attributes in read.elements if tag == "img")
