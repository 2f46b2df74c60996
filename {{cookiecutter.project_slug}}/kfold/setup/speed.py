"""How the steps of a fold are computed: as its state or its run says, as was measured before, or by measuring."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from kfold import speed_files
from kfold.config import Config
from kfold.distributed import by_first
from kfold.setup.speed_measure import LARGEST_SHARE, Fold, compile_estimate, describe_gain, is_sane, measure
from kfold.setup.training import device_name
from kfold.stopping import Stop
from kfold.training.optimizers import FUSED
from kfold.training.precision import choose_precision
from kfold.training.speed import Speed, plain_speed
from kfold.training.speed_search import Trial, pick

MUCH_LONGER = 2  # times the steps: then there is more time to measure, and compiling may repay


def choose_speed(fold: Fold) -> tuple[Speed, str]:
    """How the fold's steps are computed, and why; by the rules of kfold/speed_files.py."""
    workspace, run, config = fold.workspace, fold.run, fold.config
    if config.speed == "plain":
        return plain(fold)
    if fold.number in workspace.begun_folds(run):
        speed = speed_files.choice_of_state(workspace, run, fold.number, device_name(fold.device))
        if speed:
            return speed, "as before the interruption"
    path = workspace.speed_path(run)
    with waited_for(path.with_name(".speed.lock"), fold.stop):
        speed = speed_files.read_choice(workspace, run, fold.kind)
        if speed:
            return speed, f"as {path} says"
        speed, reason, trials = measured_before_or_now(fold)
        speed_files.write_choice(workspace, run, fold.kind, fold.key, speed, trials)
        return speed, reason


def choose_speed_of_rehearsal(fold: Fold) -> tuple[Speed, str]:
    """The same, but nothing of a run is written, and nothing compiled: that does not repay in a rehearsal."""
    if fold.config.speed == "plain":
        return plain(fold)
    speed = speed_files.read_choice(fold.workspace, fold.run, fold.kind, fold.key)
    reason = "as the run"
    if speed is None:
        speed, reason, _ = measured_before_or_now(fold)
    return replace(speed, compiled=False), reason + (", not compiled here" if speed.compiled else "")


def plain(fold: Fold) -> tuple[Speed, str]:
    precision = choose_precision(fold.config.precision, fold.device)
    return plain_speed(fold.config.precision, fold.device), precision.reason


def choose_speed_together(fold: Fold) -> tuple[Speed, str]:
    """The first process's choice, for all; fold: with what each has of a batch."""
    speed, reason = by_first(choose_speed, fold)
    if fold.is_shared and speed.compiled:  # a state of one process goes on
        return replace(speed, compiled=False), f"{reason}, not compiled in several processes"
    return speed, reason


@contextmanager
def waited_for(path: Path, stop: Stop) -> Iterator[None]:
    """The lock of a file, once no other fold of the run measures. Raises Interrupted when it is time to stop."""
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=1)
            break
        except Timeout:
            stop.check()
    try:
        yield
    finally:
        lock.release()


def measured_before_or_now(fold: Fold) -> tuple[Speed, str, list[Trial]]:
    """The choice, why, and the trials that it is made from."""
    path, num_steps = fold.workspace.speed_choices_path, fold.num_steps
    trials, is_complete, known_steps = speed_files.read_trials(fold.workspace, fold.key)
    is_much_longer = num_steps * fold.folds_left > MUCH_LONGER * known_steps
    is_stale = is_much_longer and (not is_complete or is_compiling_due(fold, trials))
    chosen = pick(trials, num_steps)
    if chosen and not is_stale and is_sane(fold, chosen.speed):
        return usable(chosen.speed, fold.config), f"{describe_gain(trials, chosen)}, measured before: {path}", trials
    trials, is_complete = measure(fold)
    speed_files.write_trials(fold.workspace, fold.key, trials, is_complete, num_steps * fold.folds_left)
    chosen = pick(trials, num_steps)
    if chosen is None:
        return plain_speed(fold.config.precision, fold.device), "nothing could be measured", trials
    return usable(chosen.speed, fold.config), describe_gain(trials, chosen), trials


def usable(speed: Speed, config: Config) -> Speed:
    """Without what the optimizer at hand has not: the same measurement serves all optimizers."""
    return replace(speed, fused=speed.fused and config.optimizer in FUSED)


def is_compiling_due(fold: Fold, trials: list[Trial]) -> bool:
    """Whether this training is long enough for torch.compile, and an earlier one was not, so that it was not tried."""
    if any(trial.speed.compiled for trial in trials):
        return False
    fastest = min((trial.seconds for trial in trials if trial.seconds is not None), default=0.0)
    forecast = fastest * fold.num_steps * fold.folds_left
    return compile_estimate(fold) < LARGEST_SHARE * forecast
