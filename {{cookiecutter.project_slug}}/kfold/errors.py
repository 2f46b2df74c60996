"""A person's mistake becomes one line per problem and exit code 2, never a traceback; an interruption exit code 75."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on where this one stopped

LIMIT = 20  # problems of one kind that are listed; the others are counted
LONGEST = 2000  # characters of a problem


class UserError(Exception):
    """Something the person can mend; each problem is one line: where (file, row or id), what, and the remedy."""

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [one_line(problem) for problem in ([problems] if isinstance(problems, str) else problems)]
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple:
        return UserError, (self.problems,)  # for another process

    def at(self, where: str) -> "UserError":
        """The same problems, each with the file in front."""
        return UserError([line if line.startswith("... and ") else f"{where}: {line}" for line in self.problems])


def one_line(text: str) -> str:
    r"""The text with characters that cannot be printed written out (`\n`, `\u200b`), and its middle left out if long.

    Cells of a table stand in messages: a line end in one must not look like a second message.
    """
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 400]} ... {text[-400:]}"


def list_problems(rows: Sequence, describe: Callable[..., str], limit: int = LIMIT) -> list[str]:
    """A line for each of the first `limit` rows (whatever `describe` takes); a last one counts the others."""
    more = [f"... and {len(rows) - limit} more of this kind"] if len(rows) > limit else []
    return [describe(row) for row in rows[:limit]] + more


class Interrupted(BaseException):
    """A signal or a time limit ends the work; what is finished is kept. No Exception, so that none swallows it."""


def run_stage(
    stage: Callable[[], object], keeps_parts: bool = True, is_news: Callable[[str], bool] | None = None
) -> None:
    """Call a stage script's main; print a UserError as plain lines on stderr and exit with 2.

    SIGTERM, Ctrl-C and a time limit exit with 75: run the same command again. keeps_parts: whether it then goes on.
    is_news: for a stage that several processes work on together, whether none of the others told a line already.
    """

    def interrupt(number: int, _: FrameType | None) -> None:
        raise Interrupted(f"{signal.Signals(number).name} received")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupt)
    try:
        if is_news is None and "TORCHELASTIC_RUN_ID" in os.environ:
            raise UserError(f"torchrun is for train.py: start {os.path.basename(sys.argv[0])} with python")
        stage()
    except UserError as error:
        for problem in error.problems:
            if is_news is None or is_news(problem):
                print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as reason:
        again = "finished parts are kept" if keeps_parts else "it begins anew (no run was changed)"
        if "--overwrite" in sys.argv:
            again = "without --overwrite"
        if is_news is None or is_news("interrupted"):
            print(f"interrupted: {reason}: run the same command again, {again}", file=sys.stderr)
        sys.exit(TRY_AGAIN)
