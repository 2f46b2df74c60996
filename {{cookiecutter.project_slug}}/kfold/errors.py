"""A person's mistake becomes one line per problem and exit code 2, never a traceback; an interruption exit code 75."""

import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on where this one stopped


class UserError(Exception):
    """Something the person can mend; each problem is one line: where (file, row or id), what, and the remedy."""

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class Interrupted(BaseException):
    """A signal or a time limit ends the work; what is finished is kept. No Exception, so that none swallows it."""


def run_stage(stage: Callable[[], object]) -> None:
    """Call a stage script's main; print a UserError as plain lines on stderr and exit with 2.

    SIGTERM, Ctrl-C and a time limit exit with 75: run the same command again.
    """

    def interrupt(number: int, _: FrameType | None) -> None:
        raise Interrupted(f"{signal.Signals(number).name} received")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupt)
    try:
        stage()
    except UserError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as reason:
        print(f"interrupted: {reason}: run the same command again, finished parts are kept", file=sys.stderr)
        sys.exit(TRY_AGAIN)
