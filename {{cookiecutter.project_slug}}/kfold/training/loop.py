"""The training loop of one fold, and the prediction loop that validation and predict.py share."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from kfold.data.loader import Batch, EpochOrder, read_batches
from kfold.errors import UserError
from kfold.model.weights import ModelCard, normalize
from kfold.seeds import seed_of
from kfold.training.losses import Loss, to_probabilities, weighted_mean
from kfold.training.objectives import Step, Term
from kfold.training.precision import Precision, autocast
from kfold.training.schedules import cycle_ends, learning_rate
from kfold.training.state import EpochResult, Training

View = Callable[[torch.Tensor], torch.Tensor]
MAX_SKIPPED_IN_ROW = 20  # float16 halves its loss scale at each: from 65,536 down to 1/16, which cures what it can


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


def nothing() -> None:
    """What is done between batches where nothing is asked for."""


def fit(
    training: Training,
    card: ModelCard,
    loss_function: Loss,
    train_batches: DataLoader,
    valid_batches: DataLoader | None,
    score: Callable[[np.ndarray], float],
    recipe: Recipe,
    device: torch.device,
    precision: Precision,
    terms: Sequence[Term] = (),
    between_batches: Callable[[], None] = nothing,
) -> Iterator[EpochResult]:
    """Train from where `training` stands to the last epoch, in place; after each epoch comes its row of the log.

    Without `valid_batches` (the full-data fit) nothing is validated. terms: what joins the supervised loss. Targets of
    regression are standardised with the card's offset and scale. `between_batches` is called when `training` may be
    saved, or the work stopped: after each batch of training and of validation. Raises UserError where losses stay not
    finite, on an image that cannot be read, and when the memory is too small for two images.
    """
    # Over 60 lines on purpose: the training loop, read top to bottom.
    order: EpochOrder = train_batches.batch_sampler
    rate = make_rate(recipe, order)
    while training.epoch < recipe.epochs:
        num_batches = order.num_batches(training.epoch)
        training.model.train()
        with epoch_bar(training, recipe, num_batches) as bar:
            resumed = time.perf_counter() - training.train_seconds
            for batch in read_batches(train_batches, training.epoch, training.batch):
                refuse_unreadable(batch)
                step, lr = rate(training.epoch, training.batch)
                epochs_done = training.epoch + training.batch / num_batches
                objective = Objective(loss_function, recipe.label_weight, terms, step, epochs_done)
                # Dropout and drop path draw from torch's generator: seeded a batch, they do not depend on what ran
                # before.
                seed = seed_of(recipe.seed, recipe.fold, training.epoch, training.batch, "batch")
                take_step(training, card, objective, batch, lr, seed, device, precision)
                training.batch += 1
                training.train_seconds = time.perf_counter() - resumed
                show(bar, training, lr)
                between_batches()
        started, valid_loss, valid_score = time.perf_counter(), float("nan"), float("nan")
        if valid_batches is not None:
            batches = read_batches(valid_batches)
            logits = predict_logits(training.model, batches, [same], card, device, precision, None, between_batches)[0]
            valid_loss = loss_function(logits, standardized(valid_batches.dataset.targets, card)).mean().item()
            valid_score = float(score(to_target_units(logits, card).numpy()))
        averages = training.averages
        if averages.swa is not None and training.epoch + 1 >= averages.swa_from_epoch:
            averages.swa.update_parameters(training.model)
        result = EpochResult(
            epoch=training.epoch + 1,
            train_loss=float(training.total_loss) / training.num_averaged if training.num_averaged else float("nan"),
            valid_loss=valid_loss,
            score=valid_score,
            lr=rate(training.epoch, num_batches - 1)[1],
            skipped=training.skipped,
            accumulate=training.accumulate,
            seconds=training.train_seconds + time.perf_counter() - started,
            images_per_second=training.num_images / training.train_seconds,
        )
        training.log.append(result)
        training.next_epoch()
        yield result


def make_rate(recipe: Recipe, order: EpochOrder) -> Callable[[int, int], tuple[int, float]]:
    """(epoch, batch), both from 0 -> the number of the step, from 0, and its learning rate."""
    first_steps = [order.steps_before(epoch) for epoch in range(recipe.epochs + 1)]
    ends = [first_steps[epoch] for epoch in cycle_ends(recipe.epochs, recipe.num_cycles)]
    num_warmup_steps = min(round(recipe.warmup_epochs * first_steps[1]), ends[0] // 2)

    def rate(epoch: int, batch: int) -> tuple[int, float]:
        step = first_steps[epoch] + batch
        return step, learning_rate(recipe.schedule, step, ends, num_warmup_steps, recipe.peak_lr, recipe.min_lr)

    return rate


def epoch_bar(training: Training, recipe: Recipe, num_batches: int) -> tqdm:
    where = f"fold {recipe.fold}" if recipe.fold >= 0 else "all data"
    title = f"{where} epoch {training.epoch + 1}/{recipe.epochs}"
    return tqdm(initial=training.batch, total=num_batches, desc=title, disable=None, leave=False)


def show(bar: tqdm, training: Training, lr: float) -> None:
    bar.update()
    if not bar.disable and training.batch % 10 == 0:  # reading the loss waits for the device
        loss, speed = float(training.total_loss) / max(training.num_averaged, 1), training.num_images
        bar.set_postfix_str(f"loss {loss:.4f}, lr {lr:.1e}, {speed / training.train_seconds:.0f} images/s")


# One step


@dataclass(frozen=True)
class Objective:
    """What a step minimises: label_weight x the supervised loss + the terms."""

    loss_function: Loss
    label_weight: float = 1.0
    terms: Sequence[Term] = ()
    step: int = 0
    epochs_done: float = 0.0


class NotFinite(ArithmeticError):
    """The loss or a gradient is NaN or infinite. rows: those of the batch; none for a mere overflow of float16."""

    def __init__(self, rows: list[int]):
        super().__init__("not a finite loss")
        self.rows = rows


def take_step(
    training: Training,
    card: ModelCard,
    objective: Objective,
    batch: Batch,
    lr: float,
    seed: int,
    device: torch.device,
    precision: Precision,
) -> None:
    """Train on a batch, or skip and count it where its loss is not finite.

    Where the memory is full the batch, and all later ones, are split into twice as many parts.
    """
    training.num_images += len(batch.images)
    while True:
        try:
            with buffers_kept_on_failure(training.model):
                torch.manual_seed(seed)
                loss = train_step(training, card, objective, batch, lr, device, precision)
        except NotFinite as problem:
            count_skipped(training, problem.rows)
            return
        except RuntimeError as error:
            if not is_full_memory(error):
                raise
            training.optimizer.zero_grad(set_to_none=True)
        else:
            break
        split_further(training, len(batch.images), device)  # here, where no traceback holds the tensors any more
    training.total_loss = training.total_loss + loss * len(batch.images)
    training.num_averaged += len(batch.images)
    training.skipped_in_row = 0
    if training.averages.ema is not None:
        training.averages.ema.update_parameters(training.model)


@contextmanager
def buffers_kept_on_failure(model: nn.Module) -> Iterator[None]:
    """A batch that fails leaves no trace in BatchNorm's statistics: NaN would stay in them for ever."""
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    except (NotFinite, RuntimeError):
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)
        raise


def train_step(
    training: Training,
    card: ModelCard,
    objective: Objective,
    batch: Batch,
    lr: float,
    device: torch.device,
    precision: Precision,
) -> torch.Tensor:
    """One step of the optimizer; the loss of the batch, still on the device. Raises NotFinite before weights change.

    The parts of a batch add up to its mean loss; only BatchNorm, which sees one part at a time, knows of them.
    """
    optimizer, scaler = training.optimizer, training.scaler
    optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros((), device=device)
    parts = split_rows(len(batch.images), training.accumulate)
    for number, part in enumerate(parts):
        pixels = batch.images[part].to(device, non_blocking=True)
        targets = standardized(batch.targets[part].to(device, non_blocking=True), card)
        with autocast(device, precision):
            logits = training.model(normalize(pixels, card.mean, card.std))
        logits = logits.float()  # losses in float32: half precision rounds the log of small probabilities
        losses = objective.loss_function(logits, targets)
        weights = batch.weights.to(device, non_blocking=True)
        part_loss = objective.label_weight * weighted_mean(losses, weights[part], weights)
        for term in objective.terms:
            share = len(pixels) / len(batch.images)
            step = Step(pixels, logits, objective.step, objective.epochs_done, number, len(parts))
            part_loss = part_loss + share * term(step)
        scaler.scale(part_loss).backward()
        loss += part_loss.detach()
    scaler.unscale_(optimizer)
    gradients = [weight.grad for weight in training.model.parameters() if weight.grad is not None]
    if not torch.isfinite(loss + torch.nn.utils.get_total_norm(gradients)):  # waits for the device, as the scaler does
        scaler.update()  # lowers the scale, where there is one
        raise NotFinite([] if scaler.is_enabled() and torch.isfinite(loss) else batch.indices.tolist())
    for group in optimizer.param_groups:
        group["lr"] = lr
    try:
        scaler.step(optimizer)
    except RuntimeError as error:  # no second try: some weights may have changed already
        if not is_full_memory(error):
            raise
        raise UserError(
            f"the memory of the {device.type} is full in the optimizer's step: free it and run the same command again, "
            f"or take a smaller backbone"
        ) from None
    scaler.update()
    return loss


def split_rows(num_rows: int, num_parts: int) -> list[slice]:
    """Parts of a batch, alike in size, of two rows or more: BatchNorm cannot train on one."""
    bounds = np.linspace(0, num_rows, min(num_parts, max(1, num_rows // 2)) + 1).round().astype(int).tolist()
    return [slice(first, last) for first, last in zip(bounds[:-1], bounds[1:], strict=True)]


def split_further(training: Training, num_rows: int, device: torch.device) -> None:
    """Twice as many parts a batch. Raises UserError when they are down to two images."""
    parts = len(split_rows(num_rows, training.accumulate))
    if parts == len(split_rows(num_rows, 2 * parts)):
        raise UserError(
            f"the memory of the {device.type} is full with 2 images: lower image_size, or take a smaller backbone"
        )
    training.accumulate = 2 * parts
    if device.type == "cuda":
        torch.cuda.empty_cache()
    print(
        f"  the memory is full: batches of {num_rows} are split into {training.accumulate} parts from here on "
        f"(accumulate={training.accumulate} does so from the start)"
    )


def is_full_memory(error: RuntimeError) -> bool:
    """cuBLAS, cuDNN and Apple's GPUs have no class of error for it."""
    return isinstance(error, torch.OutOfMemoryError) or bool(re.search("out of memory|ALLOC_FAILED", str(error)))


def count_skipped(training: Training, rows: list[int]) -> None:
    """Note a batch that was left out. Raises UserError after many in a row."""
    training.skipped += 1
    training.skipped_in_row += 1
    training.skipped_rows += [[training.epoch + 1, training.batch + 1, row] for row in rows]
    if training.skipped_in_row == MAX_SKIPPED_IN_ROW:
        raise UserError(
            f"epoch {training.epoch + 1}, batch {training.batch + 1}: the loss or a gradient is not finite, "
            f"{MAX_SKIPPED_IN_ROW} times in a row: lower lr, or try precision=float32"
        )


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    batches: Iterable[Batch],
    views: Sequence[View],
    card: ModelCard,
    device: torch.device,
    precision: Precision,
    on_problem: Callable[[int, str], None] | None = None,
    between_batches: Callable[[], None] = nothing,
) -> torch.Tensor:
    """Logits of every view, (V, N, C) float32 on the CPU, in the data set's row order.

    A file that cannot be read is passed to `on_problem(row, reason)`, or raises UserError where that is None.
    """
    model.eval()
    outputs = []
    for batch in batches:
        if on_problem is None:
            refuse_unreadable(batch)
        for row, reason in batch.problems:
            on_problem(row, reason)
        images = normalize(batch.images.to(device, non_blocking=True), card.mean, card.std)
        outputs.append(forward_views(model, images, views, device, precision).cpu())
        between_batches()
    return torch.cat(outputs, dim=1)


def forward_views(
    model: nn.Module, images: torch.Tensor, views: Sequence[View], device: torch.device, precision: Precision
) -> torch.Tensor:
    """Logits (V, B, C) float32. Where the memory is full, one half of the batch after the other."""
    try:
        with autocast(device, precision):
            return torch.stack([model(view(images)).float() for view in views])
    except RuntimeError as error:
        if not is_full_memory(error):
            raise
        if len(images) == 1:
            raise UserError(f"the memory of the {device.type} is full with 1 image: lower image_size") from None
    halves = images.split(-(-len(images) // 2))
    return torch.cat([forward_views(model, half, views, device, precision) for half in halves], dim=1)


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
