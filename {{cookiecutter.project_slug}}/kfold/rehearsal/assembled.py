"""A fold put together for a rehearsal: the model and all that trains it, made anew and thrown away afterwards."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader

from kfold.artifacts import Workspace
from kfold.config import Competition, Config
from kfold.data.folds import Folds
from kfold.data.loader import Batch, EpochOrder, read_batches
from kfold.data.targets import Targets
from kfold.model.weights import ModelCard
from kfold.seeds import seed_of
from kfold.setup.batches import make_batches
from kfold.setup.objective import make_objective
from kfold.setup.pixels import open_pixels
from kfold.setup.rows import TrainingRows, all_paths, gather_rows
from kfold.setup.speed import choose_speed_of_rehearsal
from kfold.setup.speed_measure import Fold
from kfold.setup.start import make_network, make_training
from kfold.setup.terms import load_teachers, make_terms
from kfold.setup.training import make_recipe
from kfold.stopping import Stop
from kfold.training.loop import Recipe, keep_frozen
from kfold.training.objective import Objective
from kfold.training.precision import Precision, choose_device, make_deterministic
from kfold.training.predicting import refuse_unreadable
from kfold.training.state import Training
from kfold.training.step import Moment
from kfold.training.trial import trial_step


@dataclass(frozen=True)
class ChosenFold:
    """Which fold of which experiment is rehearsed. num_rows: of folds.csv, before a limit."""

    workspace: Workspace
    run: str
    number: int
    facts: Competition
    config: Config
    folds: Folds
    targets: Targets
    num_rows: int
    stop: Stop

    @property
    def name(self) -> str:
        return f"run {self.run}, {self.workspace.fold_dir(self.run, self.number).name}"


@dataclass(frozen=True)
class AssembledFold:
    """Everything that a fold trains with, made anew."""

    training: Training
    card: ModelCard
    objective: Objective
    batches: DataLoader
    rows: TrainingRows
    recipe: Recipe
    device: torch.device
    precision: Precision

    def moment(self, number: int, lr: float) -> Moment:
        epoch, seed = self.epoch, seed_of(self.recipe.seed, self.recipe.fold, number, "rehearsal")
        return Moment(number, epoch, float(epoch), lr, seed, self.recipe.clip_grad)

    @property
    def epoch(self) -> int:
        """The first (from 0) that trains the backbone, too."""
        return self.recipe.freeze_epochs

    def start_training(self) -> None:
        """Set the modes as the epoch has them."""
        self.training.model.train()
        keep_frozen(self.training.model, self.recipe, self.epoch)

    def step(self, batch: Batch, moment: Moment) -> float:
        """`trial_step`: the loss of the batch before it."""
        refuse_unreadable(batch)
        return trial_step(self.training, self.card, self.objective, batch, moment, self.device, self.precision)


def assemble(chosen: ChosenFold, config: Config, num_batches: int = 0) -> AssembledFold:
    """As train.py does for a fold, but for clean_labels: to judge rows is work of its own, and writes into the run.

    num_batches: of an epoch at least; where it has fewer, its rows are repeated.
    """
    workspace, number, task = chosen.workspace, chosen.number, chosen.facts.task
    device = choose_device()
    make_deterministic(config.deterministic)
    rows = gather_rows(workspace, chosen.run, number, chosen.facts, config, chosen.folds, chosen.targets)
    times = -(-num_batches * config.batch_size // len(rows.train_paths)) or 1
    run, stop = chosen.run, chosen.stop
    pixels = open_pixels(workspace, config, all_paths(rows), 1, stop.check)  # read once: auto uses a cache, makes none
    train_batches, _ = make_batches(repeated(rows, times), task, config, number, device, pixels, stop.check)
    model, card = make_network(rows, chosen.targets.names, task, config, number, device, pixels)
    teachers = load_teachers(workspace, config.distill_from, number, chosen.folds.stamp)
    order: EpochOrder = train_batches.batch_sampler
    num_steps, num_folds = order.steps_before(config.epochs) // times, chosen.folds.num_folds
    speed, reason = choose_speed_of_rehearsal(
        Fold(workspace, run, number, config, model, card, rows, teachers, num_steps, num_folds, device, stop)
    )
    print(f"speed: {speed} ({reason})")
    training, precision = make_training(model, config, speed, device), speed.precision(reason)
    averages = training.averages
    terms = make_terms(model, averages, teachers, rows, card, config, number, device, precision, order, 0, pixels)
    objective = make_objective(config, task, terms, bool(teachers), rows)
    fold = AssembledFold(training, card, objective, train_batches, rows, make_recipe(config, number), device, precision)
    fold.start_training()
    if config.clean_labels:
        print(f"{chosen.name}: clean_labels={config.clean_labels} is not applied here: all rows are trained on")
    return fold


def repeated(rows: TrainingRows, times: int) -> TrainingRows:
    """The training rows so often: the loader's start at each epoch is not what a profile of few rows should measure."""

    def repeat(values: np.ndarray) -> np.ndarray:
        real, pseudo = values[: rows.num_real], values[rows.num_real :]
        return np.concatenate([*[real] * times, *[pseudo] * times])

    return replace(
        rows,
        train_ids=repeat(rows.train_ids),
        train_paths=repeat(rows.train_paths),
        train_targets=repeat(rows.train_targets),
        train_weights=repeat(rows.train_weights),
        num_real=rows.num_real * times,
    )


def endless_batches(batches: DataLoader, epoch: int, stop: Stop) -> Iterator[Batch]:
    """Epoch after epoch, from number `epoch` on. Raises Interrupted when it is time to stop."""
    while True:
        for batch in read_batches(batches, epoch):
            stop.check()
            yield batch
        epoch += 1
