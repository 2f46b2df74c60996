"""dataset-metadata.json and kernel-metadata.json, with what Kaggle's command (2.2.5) checks before it sends them."""

import re

from kfold.errors import UserError

LONGEST = 50  # characters of a dataset's slug and title; at least 6
NOTEBOOK = "inference.ipynb"


def make_slug(text: str, ending: str) -> str:
    """`Digits demo` -> `digits-demo-<ending>`, short enough for a slug."""
    start = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "kfold"
    return f"{start[: LONGEST - len(ending) - 1].strip('-')}-{ending}"


def refuse_odd_owner(owner: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9-]+", owner):
        found = f"'{owner}' is none" if owner else "there is none"
        raise UserError(f"--owner: give your name in kaggle.com/<name>, letters, digits and -; {found}")


def dataset_metadata(owner: str, slug: str) -> dict:
    """Private, as `kaggle datasets create` makes it without --public: it holds the competition's labels."""
    return {"title": title_of(slug), "id": f"{owner}/{slug}", "licenses": [{"name": "other"}]}


def kernel_metadata(owner: str, slug: str, dataset: str, competition: str, with_gpu: bool) -> dict:
    return {
        "id": f"{owner}/{slug}",
        "title": title_of(slug),  # must become the slug again
        "code_file": NOTEBOOK,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": with_gpu,
        "enable_tpu": False,
        "enable_internet": False,
        **({"machine_shape": "NvidiaTeslaT4"} if with_gpu else {}),  # two of them; without it old commands gave a P100
        "dataset_sources": [f"{owner}/{dataset}"],
        "competition_sources": [competition] if competition else [],
        "kernel_sources": [],
        "model_sources": [],
    }


def title_of(slug: str) -> str:
    return slug.replace("-", " ")
