"""Which folds of which runs are to be trained, and the command of each: the same by hand, on SLURM, Kaggle and Ray."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kfold.config import load_config
from kfold.errors import UserError

MOST_SEEDS = 100


@dataclass(frozen=True)
class Run:
    """An experiment with one seed. config_path: from the root; words: key=value."""

    name: str
    config_path: str
    words: tuple[str, ...]

    def command(self, fold: str) -> list[str]:
        """What follows `python`. fold: a number, or all."""
        return ["train.py", "--config", self.config_path, "--fold", fold, "--name", self.name, *self.words]


@dataclass(frozen=True)
class Task:
    """One fold of one run."""

    run: Run
    number: int

    @property
    def name(self) -> str:
        return f"{self.run.name}, fold {self.number}"

    @property
    def command(self) -> list[str]:
        return self.run.command(str(self.number))


def plan_runs(root: Path, configs: Sequence[str], seeds: str, words: Sequence[str]) -> list[Run]:
    """The runs, named as train.py names them: <config>, or <config>-seed<s>. Raises UserError for bad settings."""
    runs = []
    if any(re.match(r"seed=.*\.\.", word) for word in words):
        raise UserError("seed=a..b is train.py's: here it is --seeds a..b")
    if not configs:
        raise UserError("--configs: name one or more files of configs/")
    for config in configs:
        path = root / (config if config.endswith(".yaml") else f"configs/{config}.yaml")
        if not path.is_file():
            raise UserError(f"--configs {config}: there is no {path}: name a file of configs/")
        shown = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        for ending, its_words in seed_words(seeds, words):
            limit = load_config(path, its_words).limit
            name = path.stem + ending + (f"-limit{limit}" if limit else "")
            runs.append(Run(name, shown, tuple(its_words)))
    names = [run.name for run in runs]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--configs: {', '.join(doubled)} is named twice, and a run is trained once")
    return runs


def seed_words(seeds: str, words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """For each seed what the run's name ends in, and its words: `3` is 1, 2, 3; `4..6` is 4, 5, 6; "" the config's."""
    if not seeds:
        return [("", list(words))]
    match = re.fullmatch(r"(?:(\d{1,9})\.\.)?(\d{1,9})", seeds)
    first, last = (int(match[1] or 1), int(match[2])) if match else (1, 0)
    if not 1 <= last - first + 1 <= MOST_SEEDS:
        raise UserError(f"--seeds {seeds}: write how many, 1 to {MOST_SEEDS}, or a range such as 4..6")
    if any(word.startswith("seed=") for word in words):
        raise UserError("seed= and --seeds: leave out one of them")
    return [(f"-seed{seed}", [*words, f"seed={seed}"]) for seed in range(first, last + 1)]


def make_tasks(runs: Sequence[Run], numbers: Sequence[int]) -> list[Task]:
    """Run by run, so that the first is whole while the last has not begun."""
    return [Task(run, number) for run in runs for number in numbers]


def sum_up_commands(tasks: Sequence[Task], num_folds: int) -> list[list[str]]:
    """Once all tasks are done these train nothing: they print the scores and, of all folds, write the ledger."""
    runs = dict.fromkeys(task.run for task in tasks)
    if len(tasks) == len(runs) * num_folds:
        return [run.command("all") for run in runs]
    return [task.command for task in tasks]  # "all" would train the folds that were not asked for


# The list as plain commands


def deal(tasks: Sequence[Task], sessions: int) -> list[list[Task]]:
    """Neighbours stay together, as they share decoded images; no session has more than one task more than another."""
    cuts = [len(tasks) * place // sessions for place in range(sessions + 1)]
    return [list(tasks[first:last]) for first, last in zip(cuts[:-1], cuts[1:], strict=True)]


def commands_text(tasks: Sequence[Task], num_folds: int, sessions: int = 0) -> str:
    """A shell script: one command a line, everything else a comment; in blocks, one for each of several sessions.

    num_folds: that a run has.
    """
    sum_up = [shell(words) for words in sum_up_commands(tasks, num_folds)]
    lines = [f"# {len(tasks)} trainings; one that was interrupted (exit code 75) goes on when it is run again"]
    if sessions:
        for place, part in enumerate(deal(tasks, sessions), start=1):
            lines += [f"# session {place} of {sessions}", *map(line_of, part)]
        lines += ["# at home, with the outputs of all sessions in one folder:"]
        lines += [f"#   {command} --resume-from FOLDER" for command in sum_up]
    else:
        lines += map(line_of, tasks)
        lines += ["# SLURM, with these lines in tasks.txt:", f"#   {slurm_command(len(tasks))}"]
        lines += ["# when all are done:", *(f"#   {command}" for command in sum_up)]
    return "\n".join(lines)


def slurm_command(count: int) -> str:
    """Submit the lines of tasks.txt that are no comments as one array."""
    nth = 'eval "$(grep -v "^#" tasks.txt | sed -n "${SLURM_ARRAY_TASK_ID}p")"'
    return f"sbatch --array=1-{count} --gpus=1 --wrap '{nth}'"


def line_of(task: Task) -> str:
    return shell(task.command)


def shell(words: Sequence[str]) -> str:
    return shlex.join(["python", *words])
