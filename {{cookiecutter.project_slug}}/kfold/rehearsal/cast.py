"""A fold put together for a rehearsal: the model and all that trains it, made anew and thrown away afterwards."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader

from kfold.artifacts import Workspace
from kfold.config import Competition, Config
from kfold.data.folds import Folds
from kfold.data.loader import Batch, read_batches
from kfold.data.targets import Targets
from kfold.model.weights import ModelCard
from kfold.seeds import seed_of
from kfold.setup import (
    TrainingRows,
    gather_rows,
    load_teachers,
    make_averages,
    make_batches,
    make_card,
    make_model,
    make_objective,
    make_recipe,
    make_terms,
)
from kfold.stopping import Stop
from kfold.training.loop import Recipe
from kfold.training.objective import Objective
from kfold.training.optimizers import make_optimizer
from kfold.training.precision import Precision, choose_device, choose_precision, make_deterministic
from kfold.training.predicting import refuse_unreadable
from kfold.training.state import Training
from kfold.training.step import Moment
from kfold.training.trial import trial_step


@dataclass(frozen=True)
class Scene:
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
class Cast:
    """Everything that a fold trains with, made anew."""

    training: Training
    card: ModelCard
    objective: Objective
    batches: DataLoader
    rows: TrainingRows
    recipe: Recipe
    device: torch.device
    precision: Precision

    def moment(self, number: int, lr: float, epoch: int = 0) -> Moment:
        return Moment(number, epoch, float(epoch), lr, seed_of(self.recipe.seed, self.recipe.fold, number, "rehearsal"))

    def step(self, batch: Batch, moment: Moment) -> float:
        """`trial_step`: the loss of the batch before it."""
        refuse_unreadable(batch)
        return trial_step(self.training, self.card, self.objective, batch, moment, self.device, self.precision)


def assemble(scene: Scene, config: Config) -> Cast:
    workspace, number, targets = scene.workspace, scene.number, scene.targets
    device = choose_device()
    make_deterministic(config.deterministic)
    precision = choose_precision(config.precision, device)
    rows = gather_rows(workspace, scene.run, number, scene.facts, config, scene.folds, targets)
    train_batches, _ = make_batches(rows, config, number, device)
    model = make_model(config, len(targets.names), number).to(device)
    card = make_card(model, config, scene.facts.task, targets.names, targets.values[scene.folds.fold != number])
    optimizer = make_optimizer(config.optimizer, model, config.lr, config.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=precision.needs_scaler)
    training = Training(model, optimizer, scaler, make_averages(model, config), config.accumulate)
    teachers = load_teachers(workspace, number, config, scene.folds.stamp)
    terms = make_terms(model, training.averages, teachers, rows, card, config, number, device, precision, 0)
    objective = make_objective(config, scene.facts.task, terms, bool(teachers))
    model.train()
    return Cast(training, card, objective, train_batches, rows, make_recipe(config, number), device, precision)


def endless_batches(batches: DataLoader, epoch: int, stop: Stop) -> Iterator[Batch]:
    """Epoch after epoch, from number `epoch` on. Raises Interrupted when it is time to stop."""
    while True:
        for batch in read_batches(batches, epoch):
            stop.check()
            yield batch
        epoch += 1
