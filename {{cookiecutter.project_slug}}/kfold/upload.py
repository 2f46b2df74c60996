"""Hands a checked submission to Kaggle's own command, which keeps the account's key."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from kfold.errors import UserError

SECONDS = 600  # an upload that takes longer is given up
REMEDIES = {
    "401": "Kaggle does not know the key: make a new one at kaggle.com/settings and put it where `kaggle` looks for it",
    "403": "accept the rules at kaggle.com/competitions/{slug}/rules, or mend kaggle_competition in competition.yaml",
    "404": "there is no such competition: mend kaggle_competition in competition.yaml",
    "400": "join the competition at kaggle.com/competitions/{slug}, or today's limit is used up",
    "429": "too many requests: wait some minutes",
}


def upload(slug: str, path: Path, message: str) -> str:
    """Submit a file with `kaggle competitions submit`; what the command said last.

    Raises UserError, one line with what to do, when the command is missing or refuses.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", slug):
        found = f"'{slug}' is not one" if slug else "it is empty"
        raise UserError(f"competition.yaml: kaggle_competition must be the last part of its address, but {found}")
    command = shutil.which("kaggle")
    if command is None:
        raise UserError(f"the `kaggle` command is not installed: run pip install kaggle, or upload {path} by hand")
    # One word each with "=": a message that starts with a dash is not taken for an option.
    words = [command, "competitions", "submit", slug, f"--file={path}", f"--message={message}"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(f"kaggle: no answer in {SECONDS} s: look at `kaggle competitions submissions {slug}`") from None
    except OSError as error:
        raise UserError(f"kaggle: cannot be started ({error.strerror}): install it again") from None
    said = [line.strip() for line in hide_keys(done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    last = said[-1] if said else "nothing"
    # Some versions say "Could not submit" and still exit with 0.
    if done.returncode != 0 or "could not submit" in " ".join(said).lower():
        codes = [code for code in REMEDIES if re.search(rf"\b{code}\b", " ".join(said))]
        remedy = REMEDIES[codes[0]].format(slug=slug) if codes else f"try `kaggle competitions submissions {slug}`"
        raise UserError(f"kaggle: not submitted ({last[:200]}): {remedy}; {path} is valid and kept")
    return last


def hide_keys(text: str) -> str:
    """The text without the keys that the environment holds: a library's error may quote its request."""
    for name, value in os.environ.items():
        if re.search("KEY|TOKEN|SECRET|PASSWORD", name, re.IGNORECASE) and len(value) >= 8:
            text = text.replace(value, "***")
    return text
