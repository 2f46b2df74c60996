"""What joins the loss of a fold: of features and weights, of teachers, of images without labels."""

from dataclasses import dataclass

import torch
from torch import nn

from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import Config
from kfold.data.cache import FILES, Pixels
from kfold.ensemble.pseudo_files import refuse_unsafe_teacher
from kfold.errors import UserError
from kfold.model.weights import ModelCard, load_model
from kfold.setup.batches import make_unlabelled_batches
from kfold.setup.objective import make_loss, make_loss_terms
from kfold.setup.rows import TrainingRows
from kfold.training.precision import Precision
from kfold.training.state import Averages
from kfold.training.terms import Term, consistency, distillation, endless_pairs


@dataclass(frozen=True)
class Teacher:
    weights_sha256: str
    models: list[tuple[nn.Module, ModelCard]]


def load_teachers(
    workspace: Workspace, number: int, config: Config, fold_stamp: str, key: str = "distill_from"
) -> dict[str, Teacher]:
    """For each run that `key` names its models of this very fold, all that it predicts with.

    Out-of-fold predictions of the training rows would not do: fold j's come from a model that saw fold `number`.
    """
    teachers = {}
    for run in getattr(config, key):
        artifacts.refuse_ablation(run)
        folder = workspace.fold_dir(run, number)
        manifest = artifacts.read_manifest(folder)
        if manifest is None:
            raise UserError(f"{folder}: {key} names run {run}, which is not trained there: run train.py for it")
        refuse_unsafe_teacher(manifest, run, number, fold_stamp)
        artifacts.verify_files(folder, manifest, list(manifest["weights"]))
        models = [load_model(folder / name) for name in manifest["weights"]]
        teachers[run] = Teacher(manifest["weights_sha256"], models)
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
    first_step: int,
    pixels: Pixels = FILES,
) -> list[Term]:
    """What joins the supervised loss, from this step on."""
    terms = make_loss_terms(config, model)
    if teachers:
        refuse_other_outputs(teachers, card.task, card.names, "distill_from")
        models = [model for teacher in teachers.values() for model in teacher.models]
        loss = make_loss(config, card.task)
        weight, temperature = config.distill_weight, config.distill_temperature
        terms.append(distillation(models, card, loss, temperature, weight, device, precision))
    if config.consistency_weight:
        batches = make_unlabelled_batches(rows.unlabelled_paths, config, number, device, pixels)
        pairs = endless_pairs(*batches, first_step)
        weight, rampup_epochs = config.consistency_weight, config.consistency_rampup_epochs
        terms.append(consistency(model, averages.ema.module, pairs, card, weight, rampup_epochs, device, precision))
    return terms
