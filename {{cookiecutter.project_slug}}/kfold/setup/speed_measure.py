"""Timing the ways to compute that are sensible for a fold's model, size, batch and machine."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from kfold.artifacts import Workspace
from kfold.config import Config
from kfold.data.loader import Batch
from kfold.model.weights import ModelCard
from kfold.setup.batches import largest_size
from kfold.setup.objective import make_objective
from kfold.setup.rows import TrainingRows
from kfold.setup.terms import Teacher, make_terms
from kfold.setup.training import device_name, make_optimizer_of, make_recipe
from kfold.stopping import Stop, describe_seconds
from kfold.training.compiling import estimated_seconds
from kfold.training.depthwise import is_depthwise
from kfold.training.freed_memory import can_keep_freed_memory
from kfold.training.loop import keep_frozen
from kfold.training.objective import Objective
from kfold.training.optimizers import FUSED
from kfold.training.speed import Speed, plain_speed
from kfold.training.speed_search import Timer, Trial, Unfit, combinations, search
from kfold.training.speed_trial import NUM_SANE_IMAGES, Bench, Rig, random_batch, trial_of
from kfold.training.state import Averages

LEAST_SECONDS, LARGEST_SHARE = 30.0, 0.02  # of the forecast: what measuring may take
MOST_SECONDS = 300.0  # compiling twice, and all turns; a slow moment may have made the forecast
SHORTEST = 30.0  # seconds of a training that is worth it
SHARE_OF_SHORT = 0.2  # of the forecast of a short training, where 30 s would be more than they can save
TURNS_NEEDED = 10  # of each way to compute: to check it, to warm up, five that count, and some to compare with


@dataclass(frozen=True)
class Fold:
    """What a choice is made for. num_steps: of the fold; folds_left: with this one; is_shared: by several processes,
    of each of which config.batch_size is the share."""

    workspace: Workspace
    run: str
    number: int
    config: Config
    model: nn.Module
    card: ModelCard
    rows: TrainingRows
    teachers: dict[str, Teacher]
    num_steps: int
    folds_left: int
    device: torch.device
    stop: Stop
    is_shared: bool = False

    @property
    def kind(self) -> str:
        """Of the device, by the name of its maker."""
        return cpu_name() if self.device.type == "cpu" else device_name(self.device)

    @property
    def key(self) -> str:
        """All that a measurement depends on."""
        config, sizes = self.config, sorted({*self.config.multi_scale, *self.config.progressive})
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        return "; ".join([
            f"{config.backbone} {self.card.architecture}, {len(self.card.names)} outputs",
            f"{sizes or config.image_size} px",
            f"batches of {config.batch_size} in {config.accumulate}",
            f"precision {config.precision}, deterministic {config.deterministic}",
            f"frozen {config.freeze_stages} {config.freeze_batch_norm}",
            f"{self.kind}{threads}",
            f"torch {torch.__version__}",
        ])  # fmt: skip


def cpu_name(path: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = [line for line in path.read_text().splitlines() if line.startswith("model name")]
        return lines[0].partition(":")[2].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def is_sane(fold: Fold, speed: Speed) -> bool:
    """What was measured for another loss or other first weights: is it sane for these, too?"""
    with trial_of(make_rig(fold), *2 * [make_batch(fold, NUM_SANE_IMAGES)]) as bench:
        try:
            bench.check(replace(speed, compiled=False))
        except Unfit as reason:
            print(f"  speed: {speed}, measured before, does not do here: {reason}")
            return False
    return True


def measure(fold: Fold) -> tuple[list[Trial], bool]:
    """Trials of all ways to compute that are sensible here, and whether there was time for all."""
    config, device = fold.config, fold.device
    has_convolutions = any(isinstance(module, nn.Conv2d) for module in fold.model.modules())
    has_depthwise = device.type == "cpu" and any(is_depthwise(module) for module in fold.model.modules())
    can_keep = device.type == "cpu" and can_keep_freed_memory()
    first = combinations(dtypes_of(config, device), has_depthwise, has_convolutions, can_keep)
    switches = (["fused"] if config.optimizer in FUSED else []) + (["keep_memory"] if can_keep else [])
    plain = plain_speed(config.precision, device)
    sample = make_batch(fold, NUM_SANE_IMAGES)
    with trial_of(make_rig(fold), sample, sample) as bench:
        seconds = bench.seconds_an_image(plain) * config.batch_size
    forecast = seconds * fold.num_steps * fold.folds_left
    if forecast < SHORTEST:
        print(f"  speed: a training of about {describe_seconds(forecast)} is too short to measure what is fastest")
        return [Trial(plain, seconds)], False
    budget, num_turns = time_for(forecast), TURNS_NEEDED * (len(first) + len(switches))
    num_images = config.batch_size
    if seconds * num_turns > budget:  # smaller batches rank the same, but on a device that waits for Python
        num_images = max(min(NUM_SANE_IMAGES, num_images), int(num_images * budget / (seconds * num_turns)))
    print(
        f"  speed: timing steps on {num_images} random images of {largest_size(config)} px, "
        f"about {describe_seconds(budget)} (speed=plain leaves it out)"
    )
    with trial_of(make_rig(fold), make_batch(fold, num_images), sample) as bench, turn_bar() as bar:
        timer = timer_of(bench, time.monotonic() + budget, fold.stop, bar)
        trials, is_complete = search(first, switches, compile_estimate(fold), fold.num_steps, timer)
    scale = config.batch_size / num_images
    trials = [replace(trial, seconds=trial.seconds and scale * trial.seconds) for trial in trials]
    show(trials)
    return trials, is_complete


def time_for(forecast: float) -> float:
    """Seconds that measuring may take, for a training of so many seconds."""
    return min(MOST_SECONDS, max(LARGEST_SHARE * forecast, min(LEAST_SECONDS, SHARE_OF_SHORT * forecast)))


def turn_bar() -> tqdm:
    return tqdm(desc="  timing", unit=" turns", disable=None, leave=False)


def timer_of(bench: Bench, deadline: float, stop: Stop, bar: tqdm) -> Timer:
    def checked(function: Callable[[Speed], float], speed: Speed) -> float:
        stop.check()
        bar.set_postfix_str(str(speed))
        bar.update()
        return function(speed)

    return Timer(partial(checked, bench.prepare), partial(checked, bench.turn), lambda: deadline - time.monotonic())


def dtypes_of(config: Config, device: torch.device) -> list[str]:
    """Number formats to try, the plain one first."""
    first = plain_speed(config.precision, device).dtype
    if config.precision != "auto":
        return [first]
    half = "bfloat16" if device.type == "cpu" else "float16" if device.type == "mps" else first
    return list(dict.fromkeys([first, "float32", half]))


def compile_estimate(fold: Fold) -> float:
    """Seconds; infinite where a compiled step will not do: other sizes are compiled anew, on a GPU the kernels that are
    chosen by timing round otherwise each time, and several processes hand over gradients as layers are done."""
    config = fold.config
    is_excluded = config.multi_scale or config.progressive or (config.deterministic and fold.device.type != "cpu")
    is_excluded = is_excluded or fold.is_shared
    return float("inf") if is_excluded else estimated_seconds(fold.model)


def make_rig(fold: Fold) -> Rig:
    config, card, number, device = fold.config, fold.card, fold.number, fold.device
    alone = config.model_copy(update={"consistency_weight": 0.0})  # its images would have to be read
    recipe = make_recipe(config, number)

    def objective_of(model: nn.Module, speed: Speed) -> Objective:
        precision = speed.precision("trial")
        terms = make_terms(model, Averages(), fold.teachers, fold.rows, card, alone, number, device, precision)
        return make_objective(alone, card.task, terms, bool(fold.teachers), fold.rows)

    def start(model: nn.Module) -> None:
        model.train()
        keep_frozen(model, recipe, config.freeze_epochs)

    return Rig(
        fold.model,
        lambda model, fused: make_optimizer_of(model, config, fused),
        objective_of,
        start,
        card,
        device,
        config.accumulate,
        config.clip_grad,
    )


def make_batch(fold: Fold, num_images: int) -> Batch:
    """Noise with the targets of rows from all over the training set."""
    rows = np.arange(num_images) * fold.rows.num_real // num_images
    targets, weights = (
        torch.from_numpy(values[rows]).float() for values in (fold.rows.train_targets, fold.rows.train_weights)
    )
    return random_batch(largest_size(fold.config), targets, weights)


def show(trials: list[Trial]) -> None:
    """The table: a line for each way to compute."""
    for trial in trials:
        found = f"left out: {trial.note}"
        if trial.seconds is not None:
            found = f"{1000 * trial.seconds:9.1f} ms a step, {describe_gain(trials, trial)}"
        print(f"    {trial.speed!s:<50} {found}")


def describe_gain(trials: list[Trial], trial: Trial) -> str:
    """How much faster than the plain one, and what compiling costs."""
    if trial.speed == trials[0].speed:
        return "plain"
    gain = f"{trials[0].seconds / trial.seconds:.2f} times as fast as plain" if trials[0].seconds else "plain fails"
    return gain + (f", {describe_seconds(trial.compile_seconds)} to compile" if trial.speed.compiled else "")
