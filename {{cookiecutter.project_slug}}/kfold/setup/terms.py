"""What joins the loss of a fold: of features and weights, of teachers, of images without labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import Config
from kfold.data.cache import FILES, Pixels
from kfold.data.loader import EpochOrder
from kfold.ensemble.pseudo_files import refuse_unsafe_teacher
from kfold.errors import UserError
from kfold.model.weights import ModelCard, load_model
from kfold.setup.objective import make_loss, make_loss_terms
from kfold.setup.rows import TrainingRows
from kfold.setup.unlabelled import make_pairs
from kfold.training.precision import Precision
from kfold.training.state import Averages
from kfold.training.terms import Term, consistency, distillation


@dataclass(frozen=True)
class Teacher:
    weights_sha256: str
    manifest: Mapping  # of its fold
    models: list[tuple[nn.Module, ModelCard]]


def load_teachers(workspace: Workspace, runs: Sequence[str], number: int, fold_stamp: str) -> dict[str, Teacher]:
    """For each of the runs its models of this very fold, all that it predicts with.

    Out-of-fold predictions of the training rows would not do: fold j's come from a model that saw fold `number`.
    """
    teachers = {}
    for run in runs:
        artifacts.refuse_ablation(run)
        folder = workspace.fold_dir(run, number)
        manifest = artifacts.read_manifest(folder)
        if manifest is None:
            raise UserError(f"{folder}: run {run} is not trained there: run train.py for it")
        refuse_unsafe_teacher(manifest, run, number, fold_stamp)
        artifacts.verify_files(folder, manifest, list(manifest["weights"]))
        models = [load_model(folder / name) for name in manifest["weights"]]
        teachers[run] = Teacher(manifest["weights_sha256"], manifest, models)
    return teachers


def refuse_other_outputs(teachers: dict[str, Teacher], task: str, names: tuple[str, ...], key: str) -> None:
    for run, teacher in teachers.items():
        for _, its_card in teacher.models:
            if (its_card.task, its_card.names) != (task, names):
                raise UserError(f"{key}: run {run} was trained for other targets than train.csv now gives")


def make_terms(
    model: nn.Module,
    averages: Averages,
    teachers: dict[str, Teacher],
    rows: TrainingRows,
    card: ModelCard,
    config: Config,
    number: int,
    device: torch.device,
    precision: Precision,
    order: EpochOrder | None = None,
    first_step: int = 0,
    pixels: Pixels = FILES,
) -> list[Term]:
    """What joins the supervised loss, from the step on (from 0).

    order: of the training batches; it and `pixels` are for the images of the mean teacher alone.
    """
    terms = make_loss_terms(config, model)
    if teachers:
        refuse_other_outputs(teachers, card.task, card.names, "distill_from")
        models = [model for teacher in teachers.values() for model in teacher.models]
        loss = make_loss(config, card.task)
        weight, temperature = config.distill_weight, config.distill_temperature
        terms.append(distillation(models, card, loss, temperature, weight, device, precision))
    if config.consistency_weight:
        teacher = averages.ema.module
        pairs = make_pairs(rows.unlabelled_paths, config, number, device, order, first_step, pixels)
        weight, rampup_epochs = config.consistency_weight, config.consistency_rampup_epochs
        terms.append(consistency(model, teacher, pairs, card, weight, rampup_epochs, device, precision))
    return terms
