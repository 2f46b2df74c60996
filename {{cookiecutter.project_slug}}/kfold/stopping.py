"""A clean end before the work is done: a signal, or a limit of time."""

import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kfold.errors import Interrupted, UserError, run_stage

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_SIGNAL_SECONDS = 2  # a signal to a process group comes twice: from the system, and passed on by pipeline.sh


class Stop:
    """Whether to stop between two batches, and why. time_limit: seconds from now; None: no limit."""

    def __init__(self, time_limit: float | None = None):
        self.reason = ""
        self.time_limit = time_limit
        self.deadline = float("inf") if time_limit is None else time.monotonic() + time_limit

    @property
    def is_due(self) -> bool:
        if not self.reason and time.monotonic() >= self.deadline:
            self.reason = f"the time limit of {describe_seconds(self.time_limit)} is over"
        return bool(self.reason)

    def check(self) -> None:
        """Raise Interrupted when it is time to stop."""
        if self.is_due:
            raise Interrupted(self.reason)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note SIGTERM and Ctrl-C instead of ending at once; a second one, later, ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        noted_at = float("inf")

        def note(number: int, frame: FrameType | None) -> None:
            nonlocal noted_at
            self.reason = f"{signal.Signals(number).name} received"
            is_second = time.monotonic() > noted_at + SAME_SIGNAL_SECONDS
            noted_at = min(noted_at, time.monotonic())
            if is_second and callable(before[number]):
                before[number](number, frame)

        for number in SIGNALS:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number in SIGNALS:
                signal.signal(number, before[number])


def parse_seconds(text: str) -> float:
    """`8h30m`, `45m`, `90s` -> seconds. Raises UserError."""
    match = re.fullmatch(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?", text)
    if not match or not text:
        raise UserError(f"--time-limit {text}: write hours, minutes and seconds such as 8h30m, 45m or 90s")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return 3600.0 * hours + 60 * minutes + seconds


def describe_seconds(seconds: float) -> str:
    """8h30m, 45m, 90s: what `parse_seconds` reads."""
    if seconds < 120:
        return f"{seconds:.0f}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m"


if __name__ == "__main__":  # for pipeline.sh

    def print_seconds() -> None:
        print(round(parse_seconds(sys.argv[1])))

    run_stage(print_seconds)
