"""One step of training: a batch, in parts where memory asks for it, skipped where its loss is not finite."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from kfold.data.loader import Batch
from kfold.distributed import num_processes, summed
from kfold.errors import UserError
from kfold.model.weights import ModelCard, normalize
from kfold.training.memory import is_full_memory, split_further, split_rows
from kfold.training.objective import Objective
from kfold.training.precision import Precision, autocast
from kfold.training.predicting import standardized
from kfold.training.sharing import average_statistics, gradients_kept_here, seed_apart
from kfold.training.state import Training
from kfold.training.terms import Step

MAX_SKIPPED_IN_ROW = 20  # float16 halves its loss scale at each: from 65,536 down to 1/16, which cures what it can


@dataclass(frozen=True)
class Moment:
    """Where in training a step is."""

    step: int  # from 0
    epoch: int  # from 0
    epochs_done: float  # with the fraction of the one that is going on
    lr: float
    seed: int  # of everything random in the step
    clip_grad: float = 0.0  # longest gradient; 0: any


def take_step(
    training: Training,
    card: ModelCard,
    objective: Objective,
    batch: Batch,
    moment: Moment,
    device: torch.device,
    precision: Precision,
) -> None:
    """Train on a batch, or skip and count it where its loss is not finite.

    Where the memory is full the batch, and all later ones, are split into twice as many parts.
    """
    training.num_images += len(batch.targets)
    while True:
        try:
            with buffers_kept_on_failure(training.model):
                # Dropout, drop path and mixing draw from torch's generator: seeded a batch, they do not depend on what
                # ran before.
                torch.manual_seed(moment.seed)
                loss = train_step(training, card, objective, batch, moment, device, precision)
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
    training.total_loss = training.total_loss + loss * len(batch.targets)
    training.num_averaged += len(batch.targets)
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
    moment: Moment,
    device: torch.device,
    precision: Precision,
) -> torch.Tensor:
    """One step of the optimizer; the loss of the batch, still on the device. Raises NotFinite before weights change.

    The parts of a batch, and the shares of several processes, add up to its mean loss. BatchNorm, OHEM, flooding,
    triplets, centers and the losses of a batch (Lovász, soft F-beta) see one part of one share at a time.
    """
    optimizer, scaler, forward = training.optimizer, training.scaler, training.forward or training.model
    optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros((), device=device)
    given = (tensor.to(device, non_blocking=True) for tensor in (batch.images, batch.targets, batch.weights))
    own_pixels, all_targets, row_weights = objective.mix(moment.epoch, *given)
    all_weights = objective.weigh(all_targets, row_weights)
    own_targets, own_weights, row_weights = (of_all[batch.own] for of_all in (all_targets, all_weights, row_weights))
    seed_apart(moment.seed)
    parts = split_rows(len(own_pixels), training.accumulate)
    for number, rows in enumerate(parts):
        pixels, targets = own_pixels[rows], standardized(own_targets[rows], card)
        with gradients_kept_here(forward, number == len(parts) - 1):
            with autocast(device, precision):
                logits, features = forward(normalize(pixels, card.mean, card.std), with_features=True)
            # Losses in float32: half precision rounds the log of small probabilities.
            logits, features = logits.float(), features.float()
            part_loss = objective.supervised(logits, targets, own_weights[rows], all_weights)
            for term in objective.terms:
                share = len(pixels) / len(all_targets)
                its = (pixels, logits, features, targets, row_weights[rows])
                step = Step(*its, moment.step, moment.epochs_done, number, len(parts))
                part_loss = part_loss + share * term(step)
            scaler.scale(num_processes() * part_loss).backward()  # their mean is the sum of the shares
        loss += part_loss.detach()
    loss = summed(loss)
    scaler.unscale_(optimizer)
    gradients = [weight.grad for weight in training.model.parameters() if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if not torch.isfinite(loss + norm):  # waits for the device, as the scaler does
        scaler.update()  # lowers the scale, where there is one
        raise NotFinite([] if scaler.is_enabled() and torch.isfinite(loss) else batch.indices.tolist())
    if moment.clip_grad:
        torch.nn.utils.clip_grads_with_norm_(training.model.parameters(), moment.clip_grad, norm)
    move_weights(training, moment.lr, device)
    average_statistics(training.model)
    return loss


def move_weights(training: Training, lr: float, device: torch.device) -> None:
    """One step of the optimizer by the gradients that are there, at a learning rate that layers may scale."""
    for group in training.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    try:
        training.scaler.step(training.optimizer)
    except RuntimeError as error:  # no second try: some weights may have changed already
        if not is_full_memory(error):
            raise
        raise UserError(
            f"the memory of the {device.type} is full in the optimizer's step: free it and run the same command again, "
            f"or take a smaller backbone"
        ) from None
    training.scaler.update()


class NotFinite(ArithmeticError):
    """The loss or a gradient is NaN or infinite. rows: those of the batch; none for a mere overflow of float16."""

    def __init__(self, rows: list[int]):
        super().__init__("not a finite loss")
        self.rows = rows


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
