"""Test rows in shards on a Ray cluster whose nodes share this folder: each task is a command of predict.py."""

import shlex
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from kfold.errors import UserError
from kfold.fan_out import worker
from kfold.fan_out.cluster import POLL_SECONDS, Share, outcome_of
from kfold.stopping import Stop

Words = tuple[str, ...]  # of a command, after `python`
STAGES = ("first", "then, at the same time", "when all are done")


def run_words(words: Words, root: str, log: str, cores: int) -> str:
    """On a node: run `python words` in the repository; "" when it is done, else what it said last. Raises TryAgain."""
    here, log_path = Path(root), Path(log)
    if not (here / words[0]).exists():
        return f"{socket.gethostname()} sees no {here / words[0]}: share this folder with it"
    code = worker.watch(lambda: worker.start_training(words, here, log_path, cores), lambda is_over=False: None)
    last = worker.last_line(log_path)
    if code not in (0, worker.MISTAKE):
        raise worker.TryAgain(f"{worker.describe(code)} on {socket.gethostname()}: {last}")
    return "" if code == 0 else last.removeprefix("error: ")


def run_stages(
    ray,
    stages: Sequence[Sequence[Words]],
    logs: Mapping[Words, Path],
    root: Path,
    share: Share,
    retries: int,
    stop: Stop,
) -> None:
    """Run the commands of a stage at the same time, and the stages one after another; a log goes with its success.

    What is tried again goes on with what is not done. Raises UserError that names each command that failed.
    """
    remote = ray.remote(num_cpus=share.cores, num_gpus=share.gpus, max_retries=retries, retry_exceptions=True)(
        run_words
    )
    with stop.listening():
        for stage in stages:
            running = {remote.remote(words, str(root), str(logs[words]), share.cores): words for words in stage}
            problems, is_told = [], False
            while running:
                if stop.is_due and not is_told:
                    is_told = True  # a second time would interrupt a task that waits for its process to end
                    for reference in running:
                        ray.cancel(reference)
                for reference in ray.wait(list(running), timeout=POLL_SECONDS)[0]:
                    words, outcome = running.pop(reference), outcome_of(ray, reference)
                    print(f"{shlex.join(['python', *words])}: {outcome.state}", flush=True)
                    if outcome.state == "done":
                        logs[words].unlink(missing_ok=True)
                    else:
                        problems.append(f"{shlex.join(words)}: {outcome.state}, see {logs[words]}: {outcome.problem}")
            stop.check()
            if problems:
                raise UserError(problems)


def stages_text(stages: Sequence[Sequence[Words]]) -> str:
    """A shell script: one command a line, everything else a comment."""
    lines = []
    for title, stage in zip(STAGES, stages, strict=True):
        lines += [f"# {title}", *(shlex.join(["python", *words]) for words in stage)]
    return "\n".join(lines)
