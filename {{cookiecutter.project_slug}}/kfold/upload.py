"""Hands a checked submission to Kaggle's own command."""

from pathlib import Path

from kfold.errors import UserError
from kfold.kaggle.command import call_kaggle, refuse_odd_slug

SECONDS = 600  # an upload that takes longer is given up


def upload(slug: str, path: Path, message: str) -> str:
    """Submit a file with `kaggle competitions submit`; what the command said last.

    Raises UserError, one line with what to do, when the command is missing or refuses.
    """
    refuse_odd_slug(slug)
    # One word each with "=": a message that starts with a dash is not taken for an option.
    words = ["competitions", "submit", slug, f"--file={path}", f"--message={message}"]
    look = f"kaggle competitions submissions {slug}"
    answer = call_kaggle(words, SECONDS, f"upload {path} by hand", look)
    # Some versions say "Could not submit" and still exit with 0.
    if answer.code != 0 or "could not submit" in " ".join(answer.lines).lower():
        joined = "join the competition at kaggle.com/competitions/{slug}, or today's limit is used up"
        remedy = answer.remedy(slug, f"try `{look}`", e400=joined)
        raise UserError(f"kaggle: not submitted ({answer.last[:200]}): {remedy}; {path} is valid and kept")
    return answer.last
