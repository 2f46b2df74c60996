"""A person's mistake becomes one line per problem and exit code 2, never a traceback."""

import sys
from collections.abc import Callable, Sequence


class UserError(Exception):
    """Something the person can mend; each problem is one line: where (file, row or id), what, and the remedy."""

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def run_stage(stage: Callable[[], object]) -> None:
    """Call a stage script's main; print a UserError as plain lines on stderr and exit with 2 (130 on Ctrl-C)."""
    try:
        stage()
    except UserError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: run the same command again, finished parts are kept", file=sys.stderr)
        sys.exit(130)
