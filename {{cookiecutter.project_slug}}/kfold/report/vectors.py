"""A drawing as inline SVG for a page that may be bright or dark, and that allows no style but its own.

Black, the colour that matplotlib gives what no one coloured, becomes the page's text colour; white surfaces become the
page's own; every other colour stays. Styles become attributes, which a content security policy lets pass; texts stay
texts, in the page's letters.
"""

import io
import re
import warnings
from xml.etree import ElementTree

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text

SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False}
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters that XML cannot hold
DROPPED = {"metadata", "style"}


def to_svg(figure: Figure, alternative: str, number: int) -> str:
    """An <svg> element; equal figures give equal text. number: of the drawing in the page, so that ids differ."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a $ in a name is no formula
        text.set_text(NO_XML.sub("\ufffd", text.get_text()))
    FigureCanvasSVG(figure)
    file = io.StringIO()
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # letters that matplotlib's font lacks: the page's has them
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(NO_XML.sub("\ufffd", file.getvalue()))
    clean(root, f"d{number}-")
    root.attrib = {key: root.get(key, "") for key in ("width", "height", "viewBox")}
    root.attrib |= {"fill": "currentColor", "role": "img", "aria-label": NO_XML.sub("\ufffd", alternative)}
    return ElementTree.tostring(root, encoding="unicode")


def clean(root: ElementTree.Element, prefix: str) -> None:
    """Without namespaces, styles, and ids that nothing refers to; the others begin with prefix."""
    texts = [value for element in root.iter() for value in element.attrib.values()]
    used = set(re.findall(r"url\(#([^)]+)\)", " ".join(texts))) | {text[1:] for text in texts if text.startswith("#")}
    for parent in list(root.iter()):
        parent.tag = bare(parent.tag)
        for child in list(parent):
            if bare(child.tag) in DROPPED:
                parent.remove(child)
        parent.attrib = attributes_of(parent, used, prefix)


def attributes_of(element: ElementTree.Element, used: set[str], prefix: str) -> dict[str, str]:
    given = {bare(key): value for key, value in element.attrib.items()}
    for entry in given.pop("style", "").split(";"):
        key, _, value = (part.strip() for part in entry.partition(":"))
        if key and key != "font-family":  # the page's
            given[key] = colour_of(element.tag, key, value)
    if given.get("id") not in used:
        given.pop("id", None)
    for key, value in given.items():
        if key == "id":
            given[key] = prefix + value
        elif key == "href" and value.startswith("#"):
            given[key] = f"#{prefix}{value[1:]}"
        else:
            given[key] = value.replace("url(#", f"url(#{prefix}")
    return given


def colour_of(tag: str, key: str, value: str) -> str:
    if key in ("fill", "stroke") and value == "#000000":
        return "currentColor"
    if key in ("fill", "stroke") and value == "#ffffff" and tag != "text":  # white letters lie on a colour
        return "var(--page)"
    return value


def bare(name: str) -> str:
    """Without its namespace: HTML knows svg, and its links, without."""
    return name.rpartition("}")[2]
