"""The network of a fold with its first weights, and the card that rebuilds it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from kfold.config import Config
from kfold.data.cache import Pixels
from kfold.data.input_statistics import dataset_statistics
from kfold.errors import UserError
from kfold.losses.center import add_centers
from kfold.losses.margin import margin_scale
from kfold.model.build import build_model, has_fixed_input, input_statistics, refuse_unknown_backbone
from kfold.model.freeze import batch_norms
from kfold.model.network import Architecture, Network
from kfold.model.prior import set_prior_bias
from kfold.model.stages import refuse_too_many_stages
from kfold.model.weights import ModelCard
from kfold.model.zero_gamma import set_zero_gamma
from kfold.seeds import seed_of
from kfold.setup.training import make_optimizer_of


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
    """Raise UserError where no network or optimizer can be made of the settings; nothing is downloaded, no run begun.

    Some backbones compute with numbers while they are built, which the meta device has not: those are built in memory.
    """
    refuse_unknown_backbone(config.backbone)
    refuse_fixed_input(config)
    smallest = min([config.image_size, *config.multi_scale, *config.progressive])
    for device in ("meta", "cpu"):
        try:
            with torch.device(device), torch.inference_mode():
                model = build_network(config, num_outputs, pretrained=False).eval()
                make_optimizer_of(model, config)
                for key in ("freeze_batch_norm", "sync_batch_norm"):
                    if getattr(config, key) and not batch_norms(model.backbone):
                        raise UserError(f"{key}: {config.backbone} has no BatchNorm: leave it out")
                for size in {config.image_size, smallest}:
                    model(torch.zeros(2, 3, size, size))
            return
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
    raise UserError(
        f"backbone '{config.backbone}' at {smallest} pixels, pooling={config.pooling}, norm={config.norm} does not "
        f"work ({reason}): try them one by one"
    )


def refuse_fixed_input(config: Config) -> None:
    """Raise UserError where images of several sizes would go to a backbone that takes one."""
    for key in ("multi_scale", "progressive"):
        if getattr(config, key) and has_fixed_input(config.backbone):
            raise UserError(f"{key} with backbone={config.backbone}, which takes images of one size: drop one of them")
    if config.tta == "scales" and has_fixed_input(config.backbone):
        raise UserError(f"tta=scales with backbone={config.backbone}, which takes images of one size: take another tta")


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


def with_input(card: ModelCard, config: Config, paths: Sequence[Path], pixels: Pixels) -> ModelCard:
    """The card with the statistics that images are normalised by; paths: the fold's real training images."""
    if config.input_statistics == "backbone":
        return card
    mean, std = dataset_statistics(paths, config.image_size, config.center_crop, "input statistics", pixels)
    return replace(card, mean=mean, std=std)
