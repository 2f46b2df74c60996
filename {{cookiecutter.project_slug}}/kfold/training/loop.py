"""The training loop of one fold, and the prediction loop that validation and predict.py share."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from kfold.data.loader import Batch, EpochOrder
from kfold.errors import UserError
from kfold.model.weights import ModelCard, normalize
from kfold.seeds import seed_of
from kfold.training.losses import Loss, to_probabilities, weighted_mean
from kfold.training.objectives import Step, Term
from kfold.training.precision import Precision, autocast
from kfold.training.schedules import cycle_ends, learning_rate

View = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """How long, how fast and from which seed to train: plain values of an experiment."""

    epochs: int
    peak_lr: float
    min_lr: float
    schedule: str
    num_cycles: int
    warmup_epochs: float
    seed: int
    fold: int
    label_weight: float = 1.0  # of the supervised loss, beside `terms`


@dataclass(frozen=True)
class Averages:
    """Copies of the model that are averaged along the way; None: not wanted."""

    ema: AveragedModel | None = None
    swa: AveragedModel | None = None
    swa_from_epoch: int = 0  # from 1


@dataclass(frozen=True)
class EpochResult:
    """One row of log.csv."""

    epoch: int  # from 1
    train_loss: float
    valid_loss: float  # NaN without validation rows
    score: float  # the metric on the validation fold; NaN without
    lr: float  # at the last step
    seconds: float  # training and validation
    images_per_second: float  # training only


def fit(
    model: nn.Module,
    card: ModelCard,
    optimizer: torch.optim.Optimizer,
    loss_function: Loss,
    train_batches: DataLoader,
    valid_batches: DataLoader | None,
    score: Callable[[np.ndarray], float],
    recipe: Recipe,
    device: torch.device,
    precision: Precision,
    averages: Averages = Averages(),
    terms: Sequence[Term] = (),
) -> Iterator[tuple[EpochResult, np.ndarray | None]]:
    """Train `model` in place; after each epoch comes its result and its validation predictions (N, C) in row order.

    Without `valid_batches` (the full-data fit) the predictions are None. terms: what joins the supervised loss. Targets
    of regression are standardised with the card's offset and scale. Raises UserError on a loss that is not finite and
    on an image that cannot be read.
    """
    # Over 60 lines on purpose: the training loop, read top to bottom.
    order: EpochOrder = train_batches.batch_sampler
    scaler = torch.amp.GradScaler(device.type, enabled=precision.needs_scaler)
    first_steps = np.cumsum([0] + [order.num_batches(epoch) for epoch in range(recipe.epochs)])
    cycles = cycle_ends(recipe.epochs, recipe.num_cycles)
    num_warmup_steps = min(round(recipe.warmup_epochs * first_steps[1]), int(first_steps[cycles[0]]) // 2)

    for epoch in range(recipe.epochs):
        started = time.perf_counter()
        order.epoch = epoch
        total_loss, num_images = torch.zeros((), device=device), 0
        model.train()
        where = f"fold {recipe.fold}" if recipe.fold >= 0 else "all data"
        title = f"{where} epoch {epoch + 1}/{recipe.epochs}"
        bar = tqdm(train_batches, desc=title, disable=None, leave=False)
        for batch_number, batch in enumerate(bar):
            refuse_unreadable(batch)
            step = first_steps[epoch] + batch_number
            lr = learning_rate(
                recipe.schedule, step, first_steps[cycles], num_warmup_steps, recipe.peak_lr, recipe.min_lr
            )
            # Dropout and drop path draw from torch's generator: seeded a batch, they do not depend on what ran before.
            torch.manual_seed(seed_of(recipe.seed, recipe.fold, epoch, batch_number, "batch"))
            objective = Objective(loss_function, recipe.label_weight, terms, epoch + batch_number / len(bar))
            loss = train_step(model, card, optimizer, objective, batch, lr, scaler, device, precision)
            if averages.ema is not None:
                averages.ema.update_parameters(model)
            total_loss += loss * len(batch.images)
            num_images += len(batch.images)
            if not bar.disable and batch_number % 10 == 0:  # reading the loss waits for the device
                speed = num_images / (time.perf_counter() - started)
                bar.set_postfix_str(f"loss {loss.item():.4f}, lr {lr:.1e}, {speed:.0f} images/s")
        if averages.swa is not None and epoch + 1 >= averages.swa_from_epoch:
            averages.swa.update_parameters(model)
        train_loss, trained_in = total_loss.item() / num_images, time.perf_counter() - started
        if not np.isfinite(train_loss):
            raise UserError(f"{title}: the loss is {train_loss}: lower lr, or try precision=float32")

        predictions, valid_loss, valid_score = None, float("nan"), float("nan")
        if valid_batches is not None:
            logits = predict_logits(model, valid_batches, [same], card, device, precision)[0]
            valid_loss = loss_function(logits, standardized(valid_batches.dataset.targets, card)).mean().item()
            predictions = to_target_units(logits, card).numpy()
            valid_score = score(predictions)
        seconds, speed = time.perf_counter() - started, num_images / trained_in
        yield EpochResult(epoch + 1, train_loss, valid_loss, valid_score, lr, seconds, speed), predictions


@dataclass(frozen=True)
class Objective:
    """What a step minimises: label_weight x the supervised loss + the terms."""

    loss_function: Loss
    label_weight: float = 1.0
    terms: Sequence[Term] = ()
    epochs_done: float = 0.0


def train_step(
    model: nn.Module,
    card: ModelCard,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batch: Batch,
    lr: float,
    scaler: torch.amp.GradScaler,
    device: torch.device,
    precision: Precision,
) -> torch.Tensor:
    """One step of the optimizer; the loss of the batch, still on the device."""
    pixels = batch.images.to(device, non_blocking=True)
    targets = standardized(batch.targets.to(device, non_blocking=True), card)
    with autocast(device, precision):
        logits = model(normalize(pixels, card.mean, card.std))
    logits = logits.float()  # losses in float32: half precision rounds the log of small probabilities
    losses = objective.loss_function(logits, targets)
    loss = objective.label_weight * weighted_mean(losses, batch.weights.to(device, non_blocking=True))
    for term in objective.terms:
        loss = loss + term(Step(pixels, logits, objective.epochs_done))
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return loss.detach()


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    batches: Iterable[Batch],
    views: Sequence[View],
    card: ModelCard,
    device: torch.device,
    precision: Precision,
    on_problem: Callable[[int, str], None] | None = None,
    title: str = "",
) -> torch.Tensor:
    """Logits of every view, (V, N, C) float32 on the CPU, in the data set's row order.

    A file that cannot be read is passed to `on_problem(row, reason)`, or raises UserError where that is None.
    `title`: of the progress bar; none without it.
    """
    model.eval()
    outputs = []
    for batch in tqdm(batches, desc=title, disable=None if title else True, leave=False):
        if on_problem is None:
            refuse_unreadable(batch)
        for row, reason in batch.problems:
            on_problem(row, reason)
        images = normalize(batch.images.to(device, non_blocking=True), card.mean, card.std)
        with autocast(device, precision):
            outputs.append(torch.stack([model(view(images)).float() for view in views]).cpu())
    return torch.cat(outputs, dim=1)


def same(images: torch.Tensor) -> torch.Tensor:
    """The view that changes nothing."""
    return images


def standardized(targets: torch.Tensor, card: ModelCard) -> torch.Tensor:
    """Targets (N, C) in the units that the model is trained in; other tasks than regression have offset 0, scale 1."""
    offset, scale = torch.tensor([card.offset, card.scale], device=targets.device)
    return (targets - offset) / scale


def to_target_units(logits: torch.Tensor, card: ModelCard) -> torch.Tensor:
    """Logits (..., C) -> predictions: probabilities, or values in the targets' units for regression."""
    if card.task == "regression":
        return logits * torch.tensor(card.scale) + torch.tensor(card.offset)
    return to_probabilities(logits, card.task)


def refuse_unreadable(batch: Batch) -> None:
    if batch.problems:
        remedy = "run make_folds.py --check (bad_train_images: drop leaves such rows out)"
        raise UserError([f"{reason}: {remedy}" for _, reason in batch.problems])
