"""How far the tasks are, as a table that is drawn again and again on a terminal, or as lines of what is new."""

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kfold.errors import one_line
from kfold.fan_out.plan import Task
from kfold.stopping import describe_seconds

HEADER = ("run", "fold", "state", "epoch", "score", "node", "time", "try", "problem")
PROBLEM_LENGTH = 60  # characters in the table, whose lines should not be broken; lines of what is new have all
ORDER = ("failed", "trains", "starts", "stopped", "waits", "done")  # the first are shown where there is no room for all

Row = Mapping[str, object]


def table(tasks: Sequence[Task], rows: Mapping[str, Row], epochs: Mapping[str, int], now: float, most: int = 0) -> str:
    """A line a task and one of sums. rows: by task; epochs: by run; now: seconds; most: tasks shown, 0: all."""
    shown = list(tasks)
    if most and len(tasks) > most:
        urgent = sorted(tasks, key=lambda task: ORDER.index(state_of(rows, task)))[:most]
        shown = [task for task in tasks if task in urgent]
    cells = [HEADER, *(cells_of(task, rows.get(task.name, {}), epochs[task.run.name], now) for task in shown)]
    cells = [(*line[:-1], line[-1][:PROBLEM_LENGTH]) for line in cells]
    widths = [max(len(line[place]) for line in cells) for place in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([*lines, sums(tasks, rows)])


def cells_of(task: Task, row: Row, epochs: int, now: float) -> tuple[str, ...]:
    epoch = f"{row['epoch']}/{epochs}" if "epoch" in row else ""
    score = f"{row['score']:.5f}" if "score" in row else ""
    seconds = row.get("ended", now) - row["started"] if "started" in row else None
    taken = "" if seconds is None else describe_seconds(seconds)
    tries = str(row["tries"]) if row.get("tries", 0) > 1 else ""
    state = str(row.get("state", "waits"))
    problem = "" if state == "done" else one_line(str(row.get("problem", "")))
    return (task.run.name, str(task.number), state, epoch, score, str(row.get("node", "")), taken, tries, problem)


def state_of(rows: Mapping[str, Row], task: Task) -> str:
    return str(rows.get(task.name, {}).get("state", "waits"))


def sums(tasks: Sequence[Task], rows: Mapping[str, Row]) -> str:
    states = [state_of(rows, task) for task in tasks]
    return ", ".join(f"{states.count(state)} {state}" for state in reversed(ORDER) if state in states)


@dataclass
class Screen:
    """Shows what changed since it was last shown."""

    tasks: Sequence[Task]
    epochs: Mapping[str, int]
    is_terminal: bool = field(default_factory=sys.stdout.isatty)
    before: dict[str, tuple] = field(default_factory=dict)
    num_lines: int = 0  # of the table on the terminal

    def show(self, rows: Mapping[str, Row]) -> None:
        if self.is_terminal:
            text = table(self.tasks, rows, self.epochs, time.time(), max(3, shutil.get_terminal_size().lines - 4))
            back = f"\x1b[{self.num_lines}F\x1b[J" if self.num_lines else ""
            print(back + text, flush=True)
            self.num_lines = text.count("\n") + 1
            return
        for task in self.tasks:
            row = rows.get(task.name, {})
            news = (row.get("state", "waits"), row.get("epoch"), row.get("tries"), row.get("problem", ""))
            if news != self.before.get(task.name, ("waits", None, None, "")):
                cells = cells_of(task, row, self.epochs[task.run.name], time.time())
                said = [f"{name} {cell}" for name, cell in zip(HEADER[3:], cells[3:], strict=True) if cell]
                print(", ".join([f"{task.name}: {cells[2]}", *said]), flush=True)
            self.before[task.name] = news
