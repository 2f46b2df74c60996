"""What the generated repository says of itself is there."""

import re
from pathlib import Path

import pytest

from kfold.config import Config

ROOT = Path(__file__).resolve().parents[1]
RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
OF_OTHER_PAGES = {  # explained in README.md: trial runs, the machine, pseudo-labels
    "seed", "limit", "epochs", "deterministic", "workers", "cache", "cache_folder", "save_minutes", "save_batches",
    "distill_weight", "distill_temperature", "consistency_rampup_epochs",
} | {key for key in Config.model_fields if key.startswith("pseudo_")} | {"cooldown_epochs"}  # fmt: skip
NOT_KEYS = {"classes", "https", "A"}


@pytest.mark.parametrize("key", [key for key in Config.model_fields if key not in OF_OTHER_PAGES])
def test_every_switch_has_its_place_in_the_recipes(key):
    assert re.search(rf"\b{key}\b", RECIPES)


def test_every_key_that_the_recipes_name_exists():
    code = " ".join(re.findall(r"`([^`\n]+)`", RECIPES))
    named = set(re.findall(r"(?:^|[\s,(])([a-z_]\w*)(?:: |=)", code))
    assert len(named) > 60
    assert named <= set(Config.model_fields) | {"pooling", "configs"}


def test_every_choice_of_a_switch_is_named_in_the_recipes():
    for key in ("pooling", "head", "augment", "optimizer", "schedule", "sampler", "class_weights"):
        for choice in Config.model_fields[key].annotation.__args__:
            assert re.search(rf"\b{choice}\b", RECIPES), f"{key}={choice}"


def test_every_paper_has_an_address():
    assert len(re.findall(r"https://arxiv\.org/abs/\d{4}\.\d{4,5}", RECIPES)) > 40
    assert re.findall(r"\[(\d{4}\.\d{4,5})\]", RECIPES) == re.findall(r"arxiv\.org/abs/(\d{4}\.\d{4,5})", RECIPES)
