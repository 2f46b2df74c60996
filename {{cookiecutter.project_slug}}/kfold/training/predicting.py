"""The prediction loop that validation, predict.py and embed.py share."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import nn
from torch.utils.data import DataLoader

from kfold.data.loader import Batch, ThreadLoader, read_batches
from kfold.data.progress import with_bar
from kfold.distributed import agreed, gather_by_index
from kfold.errors import UserError
from kfold.model.weights import ModelCard, normalize
from kfold.on_device import on_device
from kfold.training.losses import to_probabilities
from kfold.training.memory import is_full_memory
from kfold.training.precision import Precision, autocast

View = Callable[[torch.Tensor], torch.Tensor]


def nothing() -> None:
    """What is done between batches where nothing is asked for."""


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
        if len(images):  # of a small batch, another process may have them all
            outputs.append(forward_views(model, images, views, device, precision).cpu())
        between_batches()
    return torch.cat(outputs, dim=1) if outputs else torch.zeros(len(views), 0, len(card.names))


def predict_held_out(
    model: nn.Module,
    held_out: DataLoader | ThreadLoader,
    card: ModelCard,
    device: torch.device,
    precision: Precision,
    between_batches: Callable[[], None] = nothing,
    title: str = "",
) -> torch.Tensor:
    """Logits (N, C) float32 on the CPU, in the data set's row order; of several processes each predicts its share.

    title: of the bar.
    """
    rows = []

    def noted() -> Iterator[Batch]:
        for batch in with_bar(read_batches(held_out), title, len(held_out.dataset)):
            with agreed():
                refuse_unreadable(batch)
            rows.append(batch.indices[batch.own])
            yield batch

    logits = predict_logits(model, noted(), [same], card, device, precision, None, between_batches)[0]
    return gather_by_index(logits, torch.cat(rows))


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
    offset, scale = on_device(targets.device, card.offset, card.scale)
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
