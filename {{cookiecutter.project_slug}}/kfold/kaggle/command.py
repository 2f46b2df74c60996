"""Kaggle's own command, as a process of its own: it keeps the account's key, which nothing here reads."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kfold.errors import UserError

POLL_SECONDS = 0.5
REMEDIES = {  # what Kaggle answers -> what the person must do
    "401": "Kaggle does not know the key: make a new one at kaggle.com/settings and put it where `kaggle` looks for it",
    "403": "accept the rules at kaggle.com/competitions/{slug}/rules, or mend kaggle_competition in competition.yaml",
    "404": "there is no such competition: mend kaggle_competition in competition.yaml",
    "400": "join the competition at kaggle.com/competitions/{slug}",
    "429": "too many requests: wait some minutes",
}
NO_KEY = re.compile(r"could not find kaggle\.json|not authenticated|unauthenticated|must authenticate", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    code: int  # exit status
    lines: tuple[str, ...]  # what was said, without blank lines and keys

    @property
    def last(self) -> str:
        return self.lines[-1] if self.lines else "nothing"

    def remedy(self, slug: str, otherwise: str, **others: str) -> str:
        """What to do about it. others: remedies that differ, by code such as e400."""
        text = " ".join(self.lines)
        for code, remedy in REMEDIES.items():
            if re.search(rf"\b{code}\b", text) or (code == "401" and NO_KEY.search(text)):
                return others.get(f"e{code}", remedy).format(slug=slug)
        return otherwise


def refuse_odd_slug(slug: str, origin: str = "competition.yaml: kaggle_competition") -> None:
    """Raise UserError for what cannot be the last part of a competition's address."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", slug):
        found = f"'{slug}' is not one" if slug else "it is empty"
        raise UserError(f"{origin} must be the last part of its address, but {found}")


def call_kaggle(
    words: Sequence[str], seconds: float, instead: str, look: str, waiting: Callable[[], object] = lambda: None
) -> Answer:
    """Run `kaggle` with these words; `waiting` is called now and then.

    instead: what to do by hand where the command is not installed; look: where to see what became of it. Raises
    UserError where there is no command, or no answer in so many seconds.
    """
    command = shutil.which("kaggle")
    if command is None:
        raise UserError(f"the `kaggle` command is not installed: run pip install kaggle, or {instead}")
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        try:
            process = subprocess.Popen(
                [command, *words], stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
            )
        except OSError as error:
            raise UserError(f"kaggle: cannot be started ({error.strerror}): install it again") from None
        try:
            wait_for(process, seconds, waiting)
        except subprocess.TimeoutExpired:
            raise UserError(f"kaggle: no answer in {seconds:.0f} s: look at `{look}`") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        said.seek(0)
        lines = [line.strip() for line in re.split(r"[\r\n]+", hide_keys(said.read()))]
    return Answer(process.returncode, tuple(line for line in lines if line))


def wait_for(process: subprocess.Popen, seconds: float, waiting: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        waiting()
        try:
            process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                raise


def hide_keys(text: str) -> str:
    """The text without the keys that the environment holds: a library's error may quote its request."""
    for name, value in os.environ.items():
        if re.search("KEY|TOKEN|SECRET|PASSWORD", name, re.IGNORECASE) and len(value) >= 8:
            text = text.replace(value, "***")
    return text
