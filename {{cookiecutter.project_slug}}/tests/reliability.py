"""How often the tests of reliability try: a few times in `make test`, many times with RELIABILITY=full."""

import os

FULL = os.environ.get("RELIABILITY") == "full"


def count(short: int, full: int) -> int:
    """The number of tries: `full` when the environment variable RELIABILITY is full, else `short`."""
    return full if FULL else short
