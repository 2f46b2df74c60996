"""What a fold minimises: losses, labels, margins, class weights, mixing."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from kfold.config import Config
from kfold.losses.center import center_loss, move_centers
from kfold.losses.class_weights import Rule, effective_number, inverse_log, weigh_classes
from kfold.losses.l1 import absolute_sum
from kfold.losses.label_smoothing import smooth_labels
from kfold.losses.margin import arcface, class_margins, cosface, margin_scale
from kfold.losses.triplet import triplet
from kfold.on_device import on_device
from kfold.setup.batches import first_plain_epoch
from kfold.setup.rows import TrainingRows
from kfold.training.losses import Loss, choose_loss
from kfold.training.mixing import mixer
from kfold.training.objective import Mixer, Objective, unmixed
from kfold.training.terms import Step, Term

HIGHEST_MARGIN = {"arcface": 1.5, "subcenter_arcface": 1.5, "cosface": 1.0}  # radians below pi/2, and of the cosine


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


def make_loss(config: Config, task: str) -> Loss:
    """The loss or losses of the experiment. Raises UserError when one does not fit the task."""
    options = {
        "focal": {"gamma": config.focal_gamma},
        "asymmetric": {
            "gamma_positive": config.asymmetric_gamma_positive,
            "gamma_negative": config.asymmetric_gamma_negative,
            "clip": config.asymmetric_clip,
        },
        "soft_fbeta": {"beta": config.fbeta},
    }
    return choose_loss(config.loss, task, config.loss_weights, options)


def make_training_loss(config: Config, task: str, targets: np.ndarray) -> Loss:
    """The same with a margin and smoothed labels, which only training has. targets: (N, C), of the training rows."""
    loss, harden = make_loss(config, task), make_margin(config, targets)

    def training_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return loss(harden(logits, targets), smooth_labels(targets, config.label_smoothing, task))

    return training_loss if config.head in HIGHEST_MARGIN or config.label_smoothing else loss


def make_margin(config: Config, targets: np.ndarray) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(logits, targets) -> logits (B, C), as the head asks for."""
    if config.head not in HIGHEST_MARGIN:
        return lambda logits, targets: logits
    function, margin = (
        (cosface, config.cosface_margin) if config.head == "cosface" else (arcface, config.arcface_margin)
    )
    margins = class_margins(margin, targets.sum(axis=0), config.margin_power, HIGHEST_MARGIN[config.head])
    scale, numbers = margin_scale(config.margin_scale, targets.shape[1]), tuple(margins.tolist())
    return lambda logits, targets: function(logits, targets, scale, on_device(logits.device, numbers)[0])


def make_class_weights(config: Config, task: str, targets: np.ndarray) -> Callable[[torch.Tensor], torch.Tensor] | None:
    rules: dict[str, Rule] = {
        "inverse_log": inverse_log,
        "effective_number": partial(effective_number, beta=config.effective_beta),
    }
    return weigh_classes(targets, task, rules[config.class_weights]) if config.class_weights in rules else None


def make_mixer(config: Config) -> Mixer:
    betas = {"mixup": config.mixup_alpha, "cutmix": config.cutmix_alpha, "ricap": config.ricap_beta}
    if not config.mixing:
        return unmixed
    return mixer([(name, betas[name]) for name in config.mixing], config.mixing_probability, first_plain_epoch(config))


def make_loss_terms(config: Config, model: nn.Module) -> list[Term]:
    """What joins the loss of logits: of features, and of the weights. Center loss needs `model.centers`."""

    def of_triplets(step: Step) -> torch.Tensor:
        labels, weights = labels_of(step.targets), step.weights[:, 0]
        return config.triplet_weight * triplet(step.features, labels, config.triplet_margin, weights)

    def of_centers(step: Step) -> torch.Tensor:
        labels, weights = labels_of(step.targets), step.weights[:, 0]
        loss = center_loss(step.features, labels, model.centers, weights)
        move_centers(model.centers, step.features, labels, weights)
        return config.center_weight * loss

    def of_weights(step: Step) -> torch.Tensor:
        return config.l1_penalty * absolute_sum(model.parameters())

    wanted = (
        (config.triplet_weight, of_triplets),
        (config.center_weight, of_centers),
        (config.l1_penalty, of_weights),
    )
    return [term for weight, term in wanted if weight]


def labels_of(targets: torch.Tensor) -> torch.Tensor:
    """Targets (B, C) of multiclass, or (B, 1) of binary -> classes (B,) int64."""
    return targets.argmax(dim=1) if targets.shape[1] > 1 else (targets[:, 0] > 0.5).long()
