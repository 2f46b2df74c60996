"""What the generated repository says of itself is there, and is so."""

import re
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from kfold.config import Config
from kfold.conflicts import CONFLICTS, NEEDS, TASK_CONFLICTS
from kfold.settings import show

ROOT = Path(__file__).resolve().parents[1]
RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
PARAGRAPHS = [block for block in RECIPES.split("\n\n") if block.startswith("**")]
KEYS = list(Config.model_fields)
OF_MANY = {"backbone", "batch_size", "epochs", "head", "loss", "lr", "pretrained", "schedule"}  # too many refuse one
SIGNS = {"ge": "{}", "gt": "above {}", "le": "to {}", "lt": "to below {}"}


def name_of(paragraph: str) -> str:
    return paragraph.split("**")[1]


def keys_of(paragraph: str) -> str:
    """The last line, where the keys are listed; empty where they are another paragraph's."""
    return paragraph.partition("\n*Keys:* ")[2]


def described(key: str) -> str:
    """A key, its default and what it may be, as the recipes have to write it."""
    default = Config.model_fields[key].default
    shown = show(default).lower() if isinstance(default, bool) else re.sub(r"\.0$", "", show(default)).strip("[]")
    limits = ", ".join(name for name in choices_of(key) if name != shown) or limits_of(key)
    return f"`{key}` {shown or 'none'}" + (f" ({limits})" if limits else "")


def element_of(key: str) -> Any:
    """The type of a key's value, or of each one in a list of them."""
    annotation = Config.model_fields[key].annotation
    return get_args(annotation)[0] if get_origin(annotation) is tuple else annotation


def choices_of(key: str) -> list[str]:
    return [choice for choice in get_args(element_of(key)) if isinstance(choice, str)]


def limits_of(key: str) -> str:
    """`0 to below 1`, `above 0`, `1 or more`; empty where nothing is said, as for texts."""
    of_elements = [limit for field in getattr(element_of(key), "__metadata__", ()) for limit in field.metadata]
    metadata = [*Config.model_fields[key].metadata, *of_elements]
    found = {sign: getattr(limit, sign) for limit in metadata for sign in SIGNS if hasattr(limit, sign)}
    words = [SIGNS[sign].format(int(value) if value == int(value) else value) for sign, value in found.items()]
    return " ".join(words) + (" or more" if list(found) == ["ge"] else "")


def named_in(text: str) -> set[str]:
    """The keys that a message of kfold/conflicts.py is about."""
    return set(re.findall(r"\w+", text)) & set(KEYS)


def owners(key: str) -> list[str]:
    return [paragraph for paragraph in PARAGRAPHS if f"`{key}` " in keys_of(paragraph)]


@pytest.mark.parametrize("key", KEYS)
def test_every_key_has_one_paragraph_with_its_default_and_range(key):
    assert len(owners(key)) == 1, f"{key} needs a paragraph whose keys list {described(key)}"
    entries = re.findall(rf"`{key}` [^`]*", keys_of(owners(key)[0]))
    assert [entry.rstrip(";. \n") for entry in entries] == [described(key)]


@pytest.mark.parametrize("paragraph", PARAGRAPHS, ids=name_of)
def test_every_paragraph_has_a_source_and_says_when_it_helps_and_hurts(paragraph):
    assert "](http" in paragraph
    assert paragraph.count("\n*Helps:* ") == paragraph.count("\n*Hurts:* ") == 1


def test_every_source_that_the_code_names_is_in_the_recipes():
    modules = [ROOT / "kfold" / "config.py", ROOT / "kfold" / "ensemble" / "tta.py"]
    for folder in ("losses", "model", "training", "data", "setup"):
        modules += (ROOT / "kfold" / folder).glob("*.py")
    found = {}
    for module in modules:
        addresses = re.findall(r"\b(?:[a-z0-9-]+\.)+[a-z]{2,4}/[^\s,;)\"']*\w", module.read_text(encoding="utf-8"))
        found |= dict.fromkeys(addresses, module.name)
    assert len(found) > 50
    assert {address: module for address, module in found.items() if address not in RECIPES} == {}


@pytest.mark.parametrize("text", [text for _, text in CONFLICTS])
def test_every_contradiction_is_in_the_paragraphs_of_its_keys(text):
    for key in named_in(text) - OF_MANY:
        for other in named_in(text) - {key}:
            assert re.search(rf"\b{other}\b", owners(key)[0]), f"{key} says nothing of {other}: {text}"


@pytest.mark.parametrize("key", NEEDS)
def test_what_a_key_needs_is_in_its_paragraph(key):
    for other in named_in(NEEDS[key][0]):
        assert re.search(rf"\b{other}\b", owners(key)[0]), other


@pytest.mark.parametrize("text", [text for _, text in TASK_CONFLICTS])
def test_every_key_that_does_not_fit_a_task_says_so(text):
    for key in named_in(text) - OF_MANY:
        assert re.search(r"\*Not with:\*.*(regression|other tasks)", owners(key)[0]), text


def test_every_choice_is_explained():
    prose = "\n".join(paragraph.partition("\n*Keys:*")[0] for paragraph in PARAGRAPHS)
    choices = {choice for key in KEYS for choice in choices_of(key)} - {"default"}
    assert len(choices) > 80
    assert {choice for choice in choices if not re.search(rf"\b{choice}\b", prose)} == set()


def test_every_key_that_the_recipes_name_exists():
    code = " ".join(re.findall(r"`([^`\n]+)`", RECIPES))
    named = set(re.findall(r"(?:^|[\s,(])([a-z_]\w*)(?:: |=)", code))
    assert len(named) > 60
    assert named <= {*KEYS, "configs"}


def test_every_paper_has_an_address():
    assert len(re.findall(r"https://arxiv\.org/abs/\d{4}\.\d{4,5}", RECIPES)) > 40
    assert re.findall(r"\[(\d{4}\.\d{4,5})\]", RECIPES) == re.findall(r"arxiv\.org/abs/(\d{4}\.\d{4,5})", RECIPES)
