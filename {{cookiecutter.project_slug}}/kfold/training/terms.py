"""Terms that join the supervised loss: distillation, and the mean teacher's consistency. Each: (Step) -> scalar."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from kfold.data.loader import EpochOrder, read_batches
from kfold.model.weights import ModelCard, normalize
from kfold.on_device import on_device
from kfold.training.losses import Loss, to_probabilities
from kfold.training.memory import split_rows
from kfold.training.precision import Precision, autocast
from kfold.training.predicting import standardized


@dataclass(frozen=True)
class Step:
    """One training step, or one part of its batch, after the forward pass."""

    pixels: torch.Tensor  # (B, S, S, 3) uint8, or float32 of 0 to 255, on the device
    logits: torch.Tensor  # (B, C) float32, with gradient
    features: torch.Tensor  # (B, D) float32, with gradient: pooled, before the neck
    targets: torch.Tensor  # (B, C) float32
    weights: torch.Tensor  # (B, C) float32: of each target, without those of classes
    number: int  # of the step, from 0
    epochs_done: float  # since the start, with its fraction
    part: int = 0  # of the batch, from 0
    num_parts: int = 1


Term = Callable[[Step], torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor]  # images (B, S, S, 3) uint8 of the same rows, augmented differently


# Knowledge distillation: Hinton, Vinyals and Dean, arxiv.org/abs/1503.02531


def distillation(
    teachers: Sequence[tuple[nn.Module, ModelCard]],
    card: ModelCard,
    loss_function: Loss,
    temperature: float,
    weight: float,
    device: torch.device,
    precision: Precision,
) -> Term:
    """weight x the distance from the student to the teachers' mean on the same augmented images.

    Classes: Kullback-Leibler divergence of probabilities softened by the temperature T, times T squared, which keeps
    the gradients' size. Regression: `loss_function` towards the teachers' mean value. The student has `card`.
    """
    for teacher, _ in teachers:
        teacher.to(device).eval().requires_grad_(False)

    def term(step: Step) -> torch.Tensor:
        with torch.no_grad():
            answers = [ask(teacher, its, step.pixels, device, precision) for teacher, its in teachers]
        if card.task == "regression":
            return weight * loss_function(step.logits, mean_value(answers, teachers, card)).mean()
        soft = torch.stack([to_probabilities(logits / temperature, card.task) for logits in answers]).mean(dim=0)
        return weight * temperature**2 * divergence(step.logits / temperature, soft, card.task)

    return term


def ask(
    teacher: nn.Module, card: ModelCard, pixels: torch.Tensor, device: torch.device, precision: Precision
) -> torch.Tensor:
    """The teacher's logits (B, C) float32, at its own image size and input statistics."""
    images = normalize(pixels, card.mean, card.std)
    if images.shape[-1] != card.image_size:
        images = F.interpolate(images, size=card.image_size, mode="bilinear", antialias=True)
    with autocast(device, precision):
        return teacher(images).float()


def mean_value(
    answers: Sequence[torch.Tensor], teachers: Sequence[tuple[nn.Module, ModelCard]], card: ModelCard
) -> torch.Tensor:
    """The teachers' mean prediction (B, C) in the units that the student is trained in."""
    values = []
    for logits, (_, its) in zip(answers, teachers, strict=True):
        offset, scale = on_device(logits.device, its.offset, its.scale)
        values.append(logits * scale + offset)
    return standardized(torch.stack(values).mean(dim=0), card)


def divergence(logits: torch.Tensor, probabilities: torch.Tensor, task: str) -> torch.Tensor:
    """Mean Kullback-Leibler divergence of the student (logits (B, C)) from probabilities (B, C); 0 where they agree.

    Per row for multiclass, per cell for binary and multilabel.
    """
    if task == "multiclass":
        return F.kl_div(logits.log_softmax(dim=1), probabilities, reduction="batchmean")
    entropy = F.binary_cross_entropy(probabilities, probabilities)
    return F.binary_cross_entropy_with_logits(logits, probabilities) - entropy


# Mean teacher: Tarvainen and Valpola, arxiv.org/abs/1703.01780


def consistency(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterator[Pair],
    card: ModelCard,
    weight: float,
    rampup_epochs: float,
    device: torch.device,
    precision: Precision,
) -> Term:
    """weight x the mean squared distance of student and teacher (the student's EMA) on images without labels.

    batches: for each step a pair of differently augmented images of the same rows, (B, S, S, 3) uint8. Distances are of
    probabilities, or of standardised values for regression. The weight grows as exp(-5 (1 - t)^2) over the first
    epochs, as in the paper: at first the teacher knows nothing.
    """
    pair_of: dict[int, Pair] = {}  # of the step that is going on

    def term(step: Step) -> torch.Tensor:
        if step.number not in pair_of:
            pair_of.clear()
            pair_of[step.number] = next(batches)
        for_student, for_teacher = pair_of[step.number]
        parts = split_rows(len(for_student), step.num_parts)  # as the labelled batch, so that its parts add up
        rows = parts[step.part] if step.part < len(parts) else slice(0)
        for_student, for_teacher = for_student[rows], for_teacher[rows]
        if len(for_student) < 2:  # the others cannot be read, and BatchNorm cannot train on one
            return step.logits.new_zeros(())
        teacher.eval()
        with torch.no_grad():
            wanted = outputs(ask(teacher, card, for_teacher.to(device), device, precision), card.task)
        given = outputs(ask(student, card, for_student.to(device), device, precision), card.task)
        return weight * rampup(step.epochs_done, rampup_epochs) * F.mse_loss(given, wanted)

    return term


def outputs(logits: torch.Tensor, task: str) -> torch.Tensor:
    return logits if task == "regression" else to_probabilities(logits, task)


def rampup(epochs_done: float, rampup_epochs: float) -> float:
    """0.0067 at the start, 1 from `rampup_epochs` on."""
    share = 1.0 if epochs_done >= rampup_epochs else epochs_done / rampup_epochs
    return float(torch.exp(torch.tensor(-5 * (1 - share) ** 2)))


def endless_pairs(one: DataLoader, other: DataLoader, first: int = 0) -> Iterator[Pair]:
    """Batches of the same rows from two loaders, epoch after epoch, from batch number `first` on.

    Rows that cannot be read are left out: predict.py names them.
    """
    order: EpochOrder = one.batch_sampler
    epoch, start = divmod(first, len(order))
    while True:
        for left, right in zip(read_batches(one, epoch, start), read_batches(other, epoch, start), strict=True):
            bad = [row for row, _ in left.problems]
            readable = torch.tensor([row not in bad for row in left.indices[left.own].tolist()], dtype=torch.bool)
            yield left.images[readable], right.images[readable]
        epoch, start = epoch + 1, 0
