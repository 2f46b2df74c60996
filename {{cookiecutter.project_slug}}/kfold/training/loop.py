"""The training loop of one fold, and the prediction loop that validation and predict.py share."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from kfold.data.loader import Batch, EpochOrder
from kfold.errors import UserError
from kfold.model.weights import ModelCard, normalize
from kfold.seeds import seed_of
from kfold.training.losses import Loss, to_probabilities
from kfold.training.precision import Precision
from kfold.training.schedules import lr_factor

View = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """How long, how fast and from which seed to train: plain values of an experiment."""

    epochs: int
    peak_lr: float
    schedule: str
    warmup_epochs: float
    seed: int
    fold: int


@dataclass(frozen=True)
class EpochResult:
    """One row of log.csv."""

    epoch: int  # from 1
    train_loss: float
    valid_loss: float
    score: float  # the metric on the validation fold
    lr: float  # at the last step
    seconds: float  # training and validation
    images_per_second: float  # training only


def fit(
    model: nn.Module,
    card: ModelCard,
    optimizer: torch.optim.Optimizer,
    loss_function: Loss,
    train_batches: DataLoader,
    valid_batches: DataLoader,
    score: Callable[[np.ndarray], float],
    recipe: Recipe,
    device: torch.device,
    precision: Precision,
) -> Iterator[tuple[EpochResult, np.ndarray]]:
    """Train `model` in place; after each epoch comes its result and its validation predictions (N, C) in row order.

    Targets of regression are standardised with the card's offset and scale. Raises UserError on a loss that is not
    finite and on an image that cannot be read.
    """
    order: EpochOrder = train_batches.batch_sampler
    scaler = torch.amp.GradScaler(device.type, enabled=precision.needs_scaler)
    num_steps = recipe.epochs * len(order)
    num_warmup_steps = min(round(recipe.warmup_epochs * len(order)), num_steps // 2)

    for epoch in range(recipe.epochs):
        started = time.perf_counter()
        order.epoch = epoch
        total_loss, num_images = torch.zeros((), device=device), 0
        model.train()
        title = f"fold {recipe.fold} epoch {epoch + 1}/{recipe.epochs}"
        bar = tqdm(train_batches, desc=title, disable=None, leave=False)
        for batch_number, batch in enumerate(bar):
            refuse_unreadable(batch)
            step = epoch * len(order) + batch_number
            lr = recipe.peak_lr * lr_factor(recipe.schedule, step, num_steps, num_warmup_steps)
            # Dropout and drop path draw from torch's generator: seeded a batch, they do not depend on what ran before.
            torch.manual_seed(seed_of(recipe.seed, recipe.fold, epoch, batch_number, "batch"))
            loss = train_step(model, card, optimizer, loss_function, batch, lr, scaler, device, precision)
            total_loss += loss * len(batch.images)
            num_images += len(batch.images)
            if not bar.disable and batch_number % 10 == 0:  # reading the loss waits for the device
                speed = num_images / (time.perf_counter() - started)
                bar.set_postfix_str(f"loss {loss.item():.4f}, lr {lr:.1e}, {speed:.0f} images/s")
        train_loss, trained_in = total_loss.item() / num_images, time.perf_counter() - started
        if not np.isfinite(train_loss):
            raise UserError(f"{title}: the loss is {train_loss}: lower lr, or try precision=float32")

        logits = predict_logits(model, valid_batches, [same], card, device, precision)[0]
        valid_loss = loss_function(logits, standardized(valid_batches.dataset.targets, card)).item()
        predictions = to_target_units(logits, card).numpy()
        seconds = time.perf_counter() - started
        yield (
            EpochResult(
                epoch + 1, train_loss, valid_loss, score(predictions), lr, seconds, num_images / trained_in
            ),
            predictions,
        )  # fmt: skip


def train_step(
    model: nn.Module,
    card: ModelCard,
    optimizer: torch.optim.Optimizer,
    loss_function: Loss,
    batch: Batch,
    lr: float,
    scaler: torch.amp.GradScaler,
    device: torch.device,
    precision: Precision,
) -> torch.Tensor:
    """One step of the optimizer; the mean loss of the batch, still on the device."""
    images = normalize(batch.images.to(device, non_blocking=True), card.mean, card.std)
    targets = standardized(batch.targets.to(device, non_blocking=True), card)
    with autocast(device, precision):
        logits = model(images)
    loss = loss_function(logits.float(), targets)  # float32: half precision rounds the log of small probabilities
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


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    return torch.autocast(device.type, precision.dtype, enabled=precision.dtype != torch.float32)


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
