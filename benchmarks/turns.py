"""Sides of a benchmark as processes that stay, and work in turns: all are warm, and one at a time has the machine.

A side does one piece of work for each line that it is sent, such as an epoch, and answers with a line: TURN and JSON,
{"images_per_second": 123.4}. So every round measures all sides within seconds of one another, without paying again for
their start. Their end of it: peers/common.py.
"""

import json
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

MARK = "TURN "
LAST_LINES = 20  # of the output, that are kept for the case that the side fails
SECONDS_TO_END = 60


class SideFailed(Exception):
    """A side ended before it answered; the text is the end of its output."""


class Side:
    def __init__(self, command: Sequence[object], folder: Path):
        self.process = subprocess.Popen(
            [str(word) for word in command], cwd=folder, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def turn(self) -> dict:
        """The answer to one turn. Raises SideFailed."""
        last: deque[str] = deque(maxlen=LAST_LINES)
        with suppress(BrokenPipeError):  # what it said before it ended follows
            self.process.stdin.write("go\n")
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
            last.append(line)
        raise SideFailed("".join(last).strip() or f"exit code {self.process.wait()}")

    def close(self) -> None:
        """No more turns: the side ends by itself, or is ended."""
        try:
            self.process.communicate(timeout=SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def take_turns(
    commands: Mapping[str, tuple[Sequence[object], Path]], rounds: int, needed: Sequence[str]
) -> tuple[dict[str, list[dict]], dict[str, str]]:
    """The answers of each side, one a round after a turn that warms up, and why sides were left out.

    commands: {side: (command, folder)}. needed: sides without which there is nothing to measure; raises SideFailed.
    """
    sides: dict[str, Side] = {}
    left_out: dict[str, str] = {}
    answers: dict[str, list[dict]] = {name: [] for name in commands}

    def take_turn(name: str, counts: bool) -> None:
        try:
            answer = sides[name].turn()
        except SideFailed as failure:
            if name in needed:
                raise
            print(f"  {name}: left out:\n{failure}", flush=True)
            left_out[name], answers[name] = str(failure).splitlines()[-1], []
            sides.pop(name).close()
            return
        print(f"  {name}{'' if counts else ', warm'}: {answer}", flush=True)
        if counts:
            answers[name].append(answer)

    try:
        for name, (command, folder) in commands.items():
            sides[name] = Side(command, folder)
            take_turn(name, counts=False)
        for _ in range(rounds):
            for name in list(sides):
                take_turn(name, counts=True)
    finally:
        for side in sides.values():
            side.close()
    return answers, left_out
