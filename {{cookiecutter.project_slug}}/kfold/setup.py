"""One fold put together from its settings, for train.py: rows, batches, model, averages, teachers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import Competition, Config, settings_hash
from kfold.data.augment import eval_transform, train_transform, transform_of_epoch
from kfold.data.folds import Folds
from kfold.data.images import image_path
from kfold.data.loader import EpochOrder, Images, make_loader
from kfold.data.tables import read_test_ids
from kfold.data.targets import Targets
from kfold.ensemble.pseudo import PseudoRows
from kfold.ensemble.pseudo_files import read_pseudo, read_teachers, refuse_unsafe_teacher, teacher_facts
from kfold.errors import UserError
from kfold.inputs import (
    first_plain_epoch,
    largest_size,
    make_augmentation,
    make_mixer,
    make_rows_of,
    make_size_of,
    refuse_fixed_input,
)
from kfold.losses.center import add_centers
from kfold.losses.margin import margin_scale
from kfold.model.build import build_model, input_statistics, refuse_unknown_backbone
from kfold.model.network import Architecture, Network
from kfold.model.prior import set_prior_bias
from kfold.model.stages import refuse_too_many_stages
from kfold.model.weights import ModelCard, load_model
from kfold.model.zero_gamma import set_zero_gamma
from kfold.seeds import seed_of
from kfold.setup_loss import make_class_weights, make_loss, make_loss_terms, make_training_loss
from kfold.stopping import Stop
from kfold.training.averaging import make_ema, make_swa
from kfold.training.loop import Recipe
from kfold.training.objective import Objective
from kfold.training.optimizers import make_optimizer
from kfold.training.precision import Precision
from kfold.training.saver import Saver
from kfold.training.schedules import Curve
from kfold.training.state import Averages, Training
from kfold.training.terms import Term, consistency, distillation, endless_pairs


@dataclass(frozen=True)
class TrainingRows:
    """The images of a fold, with targets (N, C). Training rows: real ones first, pseudo-labelled test rows after."""

    train_ids: np.ndarray
    train_paths: np.ndarray
    train_targets: np.ndarray
    train_weights: np.ndarray  # (N, C), of each target in the loss
    num_real: int
    valid_paths: np.ndarray
    valid_targets: np.ndarray
    unlabelled_paths: np.ndarray  # test images, for the mean teacher


def gather_rows(
    workspace: Workspace, run: str, number: int, facts: Competition, config: Config, folds: Folds, targets: Targets
) -> TrainingRows:
    valid = folds.fold == number
    train_dir, test_dir = (workspace.data_path(facts, name) for name in (facts.train_images, facts.test_images))
    paths = np.array([image_path(train_dir, image_id, facts.image_suffix) for image_id in folds.ids])
    train_ids, train_paths, train_targets = folds.ids[~valid], paths[~valid], targets.values[~valid]
    weights = np.ones_like(train_targets)
    unlabelled = []
    if config.pseudo_from or config.consistency_weight:
        test_csv, sample = (workspace.data_path(facts, name) for name in (facts.test_csv, facts.sample_submission_csv))
        test_ids = read_test_ids(test_csv, sample, facts.id_column)
        unlabelled = [image_path(test_dir, image_id, facts.image_suffix) for image_id in test_ids]
    if config.pseudo_from:
        pseudo = read_pseudo_of_fold(workspace, run, number, config, facts.task, folds, targets.names, test_ids)
        pseudo_paths = [image_path(test_dir, image_id, facts.image_suffix) for image_id in pseudo.ids]
        train_ids = np.concatenate([train_ids, pseudo.ids])
        train_paths = np.concatenate([train_paths, np.array(pseudo_paths, object)])
        train_targets = np.concatenate([train_targets, pseudo.targets])
        weights = np.concatenate([weights, config.pseudo_weight * pseudo.weights])
    return TrainingRows(
        train_ids,
        train_paths,
        train_targets,
        weights,
        int((~valid).sum()),
        paths[valid],
        targets.values[valid],
        np.array(unlabelled),
    )


def read_pseudo_of_fold(
    workspace: Workspace,
    run: str,
    number: int,
    config: Config,
    task: str,
    folds: Folds,
    names: tuple[str, ...],
    test_ids: Sequence[str],
) -> PseudoRows:
    """The fold's pseudo-labels, after asking each teacher's manifest whether it may teach this fold."""
    manifests = read_teachers(workspace, config.pseudo_from, number, folds.num_folds, folds.stamp)
    teachers = [teacher_facts(manifest) for of_run in manifests.values() for manifest in of_run]
    path = workspace.pseudo_path(run, number)
    return read_pseudo(path, number, folds.stamp, task, names, teachers, test_ids, folds.ids)


def make_batches(
    rows: TrainingRows, task: str, config: Config, number: int, device: torch.device
) -> tuple[DataLoader, DataLoader | None]:
    """Augmented, shuffled batches of the training rows, and plain ones of the validation rows in order."""
    augmentation, size, largest = make_augmentation(config), config.image_size, largest_size(config)
    train_images = Images(
        rows.train_paths,
        rows.train_targets,
        train_transform(augmentation, largest),
        largest,
        config.seed,
        number,
        rows.train_weights,
        partial(transform_of_epoch, augmentation, first_plain_epoch(config)),
    )
    rows_of = make_rows_of(config, rows.train_targets, rows.num_real, task, number)
    size_of = make_size_of(config, number)
    train_order = EpochOrder(len(train_images), config.batch_size, True, config.seed, number, rows_of, size_of)
    train_batches = make_loader(train_images, train_order, config.num_workers, device)
    if not len(rows.valid_paths):
        return train_batches, None
    valid_images = Images(rows.valid_paths, rows.valid_targets, eval_transform(size, config.center_crop), size)
    valid_order = EpochOrder(len(valid_images), 2 * config.batch_size, False)
    return train_batches, make_loader(valid_images, valid_order, config.num_workers, device)


def make_model(config: Config, task: str, number: int, targets: np.ndarray) -> torch.nn.Module:
    """The network with its initial weights: the same for the same seed, fold and targets (N, C) of the training rows.

    Raises UserError where the backbone lacks what the settings ask for, or its weights cannot be had.
    """
    torch.manual_seed(seed_of(config.seed, number, "initial weights"))
    model = build_network(config, targets.shape[1], config.pretrained)
    if config.prior_bias:
        set_prior_bias(model.head, targets, task)
    if config.center_weight:
        add_centers(model, max(targets.shape[1], 2), config.image_size)  # binary has one output and two classes
    return model


def build_network(config: Config, num_outputs: int, pretrained: bool) -> Network:
    model = build_model(
        config.backbone,
        num_outputs,
        config.image_size,
        config.drop_rate,
        pretrained,
        config.pretrained_path if pretrained else "",
        make_architecture(config, num_outputs),
        config.drop_path_rate,
        config.multi_sample_dropout,
    )
    set_zero_gamma(model.backbone, config.backbone, config.zero_gamma)
    refuse_too_many_stages(model.backbone, config.backbone, config.freeze_stages)
    return model


def make_architecture(config: Config, num_outputs: int) -> Architecture:
    scale = margin_scale(config.margin_scale, num_outputs)
    return Architecture(config.pooling, config.neck, config.head, scale, config.num_subcenters, config.norm)


def refuse_unfit_model(config: Config, num_outputs: int) -> None:
    """Raise UserError where no network can be made of the settings; nothing is downloaded, and no run begun.

    Some backbones compute with numbers while they are built, which the meta device has not: those are built in memory.
    """
    refuse_unknown_backbone(config.backbone)
    refuse_fixed_input(config)
    smallest = min([config.image_size, *config.multi_scale, *config.progressive])
    for device in ("meta", "cpu"):
        try:
            with torch.device(device), torch.inference_mode():
                model = build_network(config, num_outputs, pretrained=False).eval()
                for size in {config.image_size, smallest}:
                    model(torch.zeros(2, 3, size, size))
            return
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
    raise UserError(
        f"backbone '{config.backbone}' at {smallest} pixels, pooling={config.pooling}, norm={config.norm} does not "
        f"work ({reason}): try them one by one"
    )


def make_card(
    model: torch.nn.Module, config: Config, task: str, names: tuple[str, ...], values: np.ndarray
) -> ModelCard:
    """What predict.py must know of the model; offset and scale standardise regression targets by the training rows."""
    mean, std = input_statistics(model.backbone)
    offset, scale = np.zeros(len(names)), np.ones(len(names))
    if task == "regression":
        offset, scale = values.mean(axis=0), np.maximum(values.std(axis=0), 1e-6)
    architecture = make_architecture(config, len(names))
    offset, scale = (tuple(map(float, numbers)) for numbers in (offset, scale))
    return ModelCard(
        config.backbone,
        config.image_size,
        task,
        names,
        mean,
        std,
        offset,
        scale,
        architecture,
        config.center_crop,
    )


def make_objective(
    config: Config, task: str, terms: Sequence[Term], has_teachers: bool, rows: TrainingRows
) -> Objective:
    """What the fold minimises. Class weights and margins follow the real training rows."""
    targets = rows.train_targets[: rows.num_real]
    return Objective(
        make_training_loss(config, task, targets),
        1 - config.distill_weight if has_teachers else 1.0,
        terms,
        make_mixer(config),
        make_class_weights(config, task, targets),
        ohem_share=config.ohem_share,
        flooding=config.flooding,
    )


def make_optimizer_of(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    return make_optimizer(
        config.optimizer,
        model,
        config.peak_lr,
        config.weight_decay,
        config.decay_all,
        config.backbone_lr,
        config.layer_decay,
    )


def make_recipe(config: Config, number: int) -> Recipe:
    curve = Curve(
        config.step_epochs,
        config.step_factor,
        config.plateau_patience,
        config.plateau_factor,
        config.polynomial_power,
        config.decay_rate,
    )
    return Recipe(
        config.epochs,
        config.peak_lr,
        config.min_lr,
        config.schedule,
        config.num_cycles,
        config.warmup_epochs,
        config.seed,
        number,
        curve,
        config.clip_grad,
        config.freeze_epochs,
        config.freeze_stages,
        config.freeze_batch_norm,
    )


def rows_sha256(rows: TrainingRows) -> str:
    """A digest (hex) of what is trained on: ids, targets and their weights, and images without labels, in order."""
    unlabelled = [Path(path).name for path in rows.unlabelled_paths]
    ids = "\n".join([*rows.train_ids, str(rows.num_real), *unlabelled]).encode()
    arrays = (rows.train_targets, rows.train_weights)
    return hashlib.sha256(
        ids + b"".join(np.ascontiguousarray(array, np.float32).tobytes() for array in arrays)
    ).hexdigest()


def make_averages(model: nn.Module, config: Config) -> Averages:
    ema = make_ema(model, config.ema_decay) if config.ema_decay else None
    swa = make_swa(model) if config.swa_from_epoch else None
    return Averages(ema, swa, config.swa_from_epoch)


def make_saver(
    workspace: Workspace,
    run: str,
    number: int,
    training: Training,
    config: Config,
    fold_stamp: str,
    rows: TrainingRows,
    teachers: Mapping[str, "Teacher"],
    device: torch.device,
    precision: Precision,
    stop: Stop,
) -> Saver:
    """What saves the fold's state. It belongs to these settings, rows and teachers; its bytes depend on the machine."""
    identity = {
        "run": run,
        "fold": str(number),
        "config_hash": settings_hash(config),
        "fold_stamp": fold_stamp,
        "rows_sha256": rows_sha256(rows),
        "teachers": json.dumps({name: teacher.weights_sha256 for name, teacher in teachers.items()}),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "precision": str(precision.dtype)[6:],
        **artifacts.environment(),
    }
    return Saver(
        training,
        workspace.state_path(run, number),
        workspace.previous_state_path(run, number),
        identity,
        partial(workspace.weights_path, run, number),
        stop,
        config.save_minutes,
        config.save_batches,
    )


# Teachers


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
        pairs = endless_pairs(*make_unlabelled_batches(rows.unlabelled_paths, config, number, device), first_step)
        weight, rampup_epochs = config.consistency_weight, config.consistency_rampup_epochs
        terms.append(consistency(model, averages.ema.module, pairs, card, weight, rampup_epochs, device, precision))
    return terms


def refuse_other_outputs(teachers: dict[str, Teacher], task: str, names: tuple[str, ...], key: str) -> None:
    for run, teacher in teachers.items():
        for _, its_card in teacher.models:
            if (its_card.task, its_card.names) != (task, names):
                raise UserError(f"{key}: run {run} was trained for other targets than train.csv now gives")


def make_unlabelled_batches(
    paths: Sequence, config: Config, number: int, device: torch.device
) -> tuple[DataLoader, DataLoader]:
    """Two loaders of the same test images in the same order, augmented differently."""
    if sum(Path(path).is_file() for path in paths) < 2:  # BatchNorm cannot train on one
        raise UserError(f"consistency_weight learns from test images, and fewer than 2 of {len(paths)} are there")
    size = config.image_size
    augment = train_transform(make_augmentation(config), size)
    batch_size = min(config.batch_size, len(paths))
    loaders = []
    for side in ("student", "teacher"):
        seed = seed_of(config.seed, "unlabelled", side)
        images = Images(paths, np.zeros((len(paths), 0)), augment, size, seed, number)
        order = EpochOrder(len(paths), batch_size, True, config.seed, number)
        loaders.append(make_loader(images, order, config.num_workers, device))
    return loaders[0], loaders[1]
