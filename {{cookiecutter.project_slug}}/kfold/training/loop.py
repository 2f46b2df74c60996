"""The training loop of one fold."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from kfold.data.loader import EpochOrder, read_batches
from kfold.data.progress import image_bar
from kfold.distributed import agreed, is_first, num_processes, of_first
from kfold.model.freeze import freeze
from kfold.model.weights import ModelCard
from kfold.seeds import batch_seed
from kfold.training.losses import choose_loss
from kfold.training.objective import Objective
from kfold.training.parameter_groups import restart_idle_counters
from kfold.training.precision import Precision
from kfold.training.predicting import nothing, predict_held_out, refuse_unreadable, standardized, to_target_units
from kfold.training.schedules import Curve, learning_rate, make_timetable
from kfold.training.sharing import shared_forward
from kfold.training.state import EpochResult, Training
from kfold.training.step import Moment, take_step


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
    curve: Curve = Curve()
    clip_grad: float = 0.0
    freeze_epochs: int = 0
    freeze_stages: int = 0
    freeze_batch_norm: bool = False


def never(scores: Sequence[float]) -> bool:
    """What ends a training before its last epoch where nothing is asked for."""
    return False


def fit(
    training: Training,
    card: ModelCard,
    objective: Objective,
    train_batches: DataLoader,
    valid_batches: DataLoader | None,
    score: Callable[[np.ndarray], float],
    recipe: Recipe,
    device: torch.device,
    precision: Precision,
    between_batches: Callable[[], None] = nothing,
    is_over: Callable[[Sequence[float]], bool] = never,
) -> Iterator[EpochResult]:
    """Train from where `training` stands to the last epoch, in place; after each epoch comes its row of the log.

    Without `valid_batches` (the full-data fit) nothing is validated. The validation loss is the task's own, whatever
    the objective, so that runs compare. Targets of regression are standardised with the card's offset and scale.
    `between_batches` is called when `training` may be saved, or the work stopped: after each batch of training and of
    validation. `is_over` is asked before each epoch, with the scores of those before it. Raises UserError where losses
    stay not finite, on an image that cannot be read, and when the memory is too small for two images.
    """
    # Over 60 lines on purpose: the training loop, read top to bottom.
    share_gradients(training, card, recipe)
    order: EpochOrder = train_batches.batch_sampler
    rate = make_rate(recipe, order, training)
    while training.epoch < recipe.epochs and not is_over([result.score for result in training.log]):
        num_batches = order.num_batches(training.epoch)
        training.model.train()
        keep_frozen(training.model, recipe, training.epoch)
        restart_idle_counters(training.optimizer)
        num_images = min(num_batches * order.batch_size, order.num_rows_of(training.epoch))
        title = f"{fold_title(recipe)} epoch {training.epoch + 1}/{recipe.epochs}"
        with image_bar(title, num_images, training.num_images) as bar:
            resumed = time.perf_counter() - training.train_seconds
            for batch in read_batches(train_batches, training.epoch, training.batch):
                with agreed():
                    refuse_unreadable(batch)
                moment = make_moment(training, recipe, rate, num_batches)
                take_step(training, card, objective, batch, moment, device, precision)
                training.batch += 1
                training.train_seconds = time.perf_counter() - resumed
                show(bar, training, moment.lr, len(batch.targets))
                between_batches()
        started, valid_loss, valid_score = time.perf_counter(), float("nan"), float("nan")
        if valid_batches is not None:
            title = f"{fold_title(recipe)} validation"
            logits = predict_held_out(training.model, valid_batches, card, device, precision, between_batches, title)
            targets = standardized(valid_batches.dataset.targets, card)
            valid_loss = choose_loss("auto", card.task)(logits, targets).mean().item()
            valid_score = float(score(to_target_units(logits, card).numpy()))
        averages = training.averages
        if averages.swa is not None and training.epoch + 1 >= averages.swa_from_epoch:
            averages.swa.update_parameters(training.model)
        own_result = EpochResult(
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
        result = of_first(own_result)  # what follows from it (lr, an early end) is then the same in all processes
        warn_of_lost_epoch(result)
        training.log.append(result)
        training.next_epoch()
        yield result


def warn_of_lost_epoch(result: EpochResult) -> None:
    """Say that no batch of the epoch could be trained on; after some such batches in a row training ends."""
    if np.isnan(result.train_loss) and is_first():
        print(
            f"warning: epoch {result.epoch}: nothing was learned, no batch had a finite loss and gradient: "
            f"if that goes on, lower lr (see --find-lr), or try precision=float32",
            file=sys.stderr,
        )


def make_moment(
    training: Training, recipe: Recipe, rate: Callable[[int, int], tuple[int, float]], num_batches: int
) -> Moment:
    step, lr = rate(training.epoch, training.batch)
    epochs_done = training.epoch + training.batch / num_batches
    seed = batch_seed(recipe.seed, recipe.fold, training.epoch, training.batch)
    return Moment(step, training.epoch, epochs_done, lr, seed, recipe.clip_grad)


def keep_frozen(model: nn.Module, recipe: Recipe, epoch: int) -> None:
    """Freeze what an epoch (from 0) should leave as it is, after `model.train()`, which undoes some of it."""
    if recipe.freeze_epochs or recipe.freeze_stages or recipe.freeze_batch_norm:
        freeze(model, recipe.freeze_stages, recipe.freeze_batch_norm, epoch < recipe.freeze_epochs)


def share_gradients(training: Training, card: ModelCard, recipe: Recipe) -> None:
    """Of several processes: the forward pass whose gradients become their mean, of all weights that will ever learn."""
    if num_processes() > 1:
        training.model.train()
        keep_frozen(training.model, recipe, recipe.freeze_epochs)
        training.forward = shared_forward(training.model, card.image_size, recipe.freeze_epochs > 0)


def make_rate(recipe: Recipe, order: EpochOrder, training: Training) -> Callable[[int, int], tuple[int, float]]:
    """(epoch, batch), both from 0 -> the number of the step, from 0, and its learning rate."""
    first_steps = [0, *accumulate(order.num_batches(epoch) for epoch in range(recipe.epochs))]
    times = make_timetable(recipe.schedule, first_steps, recipe.num_cycles, recipe.warmup_epochs)

    def rate(epoch: int, batch: int) -> tuple[int, float]:
        step, losses = first_steps[epoch] + batch, [result.train_loss for result in training.log]
        lr = learning_rate(recipe.schedule, step, times, recipe.peak_lr, recipe.min_lr, recipe.curve, losses)
        return step, lr

    return rate


def fold_title(recipe: Recipe) -> str:
    return f"fold {recipe.fold}" if recipe.fold >= 0 else "all data"


def show(bar: tqdm, training: Training, lr: float, num_images: int) -> None:
    bar.update(num_images)
    if not bar.disable and training.batch % 10 == 0:  # reading the loss waits for the device
        loss = float(training.total_loss) / max(training.num_averaged, 1)
        bar.set_postfix_str(f"loss {loss:.4f}, lr {lr:.1e}")
