"""How a fold is trained: optimizer, averages, recipe, and what saves its state."""

import json
from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import Config, settings_hash
from kfold.data.cache import Pixels
from kfold.distributed import num_processes
from kfold.setup.rows import TrainingRows, rows_sha256
from kfold.setup.terms import Teacher
from kfold.stopping import Stop
from kfold.training.averaging import make_ema, make_swa
from kfold.training.loop import Recipe
from kfold.training.optimizers import make_optimizer
from kfold.training.saver import Saver
from kfold.training.schedules import Curve
from kfold.training.speed import Speed
from kfold.training.state import Averages, Training


def make_optimizer_of(model: nn.Module, config: Config, fused: bool = False) -> torch.optim.Optimizer:
    return make_optimizer(
        config.optimizer,
        model,
        config.peak_lr,
        config.weight_decay,
        config.decay_all,
        config.backbone_lr,
        config.layer_decay,
        fused,
    )


def make_averages(model: nn.Module, config: Config) -> Averages:
    ema = make_ema(model, config.ema_decay) if config.ema_decay else None
    swa = make_swa(model) if config.swa_from_epoch else None
    return Averages(ema, swa, config.swa_from_epoch)


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
        config.num_cycles if config.schedule == "cosine_cycles" else 1,
        config.warmup_epochs,
        config.seed,
        number,
        curve,
        config.clip_grad,
        config.freeze_epochs,
        config.freeze_stages,
        config.freeze_batch_norm,
    )


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else device.type


def make_saver(
    workspace: Workspace,
    run: str,
    number: int,
    training: Training,
    config: Config,
    fold_stamp: str,
    rows: TrainingRows,
    pixels: Pixels,
    teachers: Mapping[str, "Teacher"],
    device: torch.device,
    speed: Speed,
    stop: Stop,
) -> Saver:
    """What saves the fold's state. It belongs to these settings, rows and teachers; its bytes depend on the machine."""
    identity = {
        "run": run,
        "fold": str(number),
        "config_hash": settings_hash(config),
        "fold_stamp": fold_stamp,
        "rows_sha256": rows_sha256(rows),
        "pixels": pixels.name,
        "teachers": json.dumps({name: teacher.weights_sha256 for name, teacher in teachers.items()}),
        "device": device_name(device),
        "precision": speed.dtype,
        "speed": str(speed),
        **({"threads": str(torch.get_num_threads())} if device.type == "cpu" else {}),  # sums are split among them
        "processes": str(num_processes()),  # and among these
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
