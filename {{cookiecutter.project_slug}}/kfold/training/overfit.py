"""Can the network learn one batch by heart? If not, which part is broken: targets, head, gradients, or the rate.

Source of the recipe: Karpathy, A Recipe for Training Neural Networks, karpathy.github.io/2019/04/25/recipe
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from kfold.errors import UserError

GOAL = 0.01  # loss: of classes, a probability of 0.99 for the right one
NEAR = 0.1  # standard deviations of a regression's targets, root mean square
MAX_STEPS = 200
WATCHED_STEPS = 10  # a weight that starts at 0 (the last of a residual block) keeps others from a gradient at first
WINDOW = 20  # losses whose mean is compared


# Before the first step


def refuse_odd_targets(targets: torch.Tensor, ids: Sequence[str], task: str) -> None:
    """Raise UserError for targets (B, C) that no loss of the task is made for."""
    refuse_rows(~torch.isfinite(targets).all(dim=1), targets, ids, "not finite", "mend train.csv or competition.py")
    if task == "regression":
        return
    outside = ((targets < 0) | (targets > 1)).any(dim=1)
    refuse_rows(outside, targets, ids, "outside 0..1", "let competition.py decode labels to 0..1")
    if task == "multiclass":
        off = (targets.sum(dim=1) - 1).abs() > 1e-3
        refuse_rows(off, targets, ids, "not of sum 1", "let competition.py give each image one class")


def refuse_rows(wrong: torch.Tensor, targets: torch.Tensor, ids: Sequence[str], what: str, remedy: str) -> None:
    """Raise UserError where a row of (B,) bool is true; the first is shown."""
    if wrong.any():
        row = int(wrong.nonzero()[0])
        shown = ", ".join(f"{value:g}" for value in targets[row, :8].tolist()) + ", ..." * (targets.shape[1] > 8)
        raise UserError(
            f"targets: {int(wrong.sum())} of {len(targets)} rows are {what}, the first is id '{ids[row]}' ({shown}): "
            f"{remedy}"
        )


def refuse_wrong_head(logits: torch.Tensor, targets: torch.Tensor) -> None:
    """Raise UserError unless logits are finite and have the shape (B, C) of the targets."""
    if logits.shape != targets.shape:
        raise UserError(
            f"head: its logits have the shape {tuple(logits.shape)}, the targets {tuple(targets.shape)}: "
            f"let kfold/model/build.py make a head with {targets.shape[1]} outputs"
        )
    if not torch.isfinite(logits).all():
        raise UserError("network: its first logits are not finite: try precision=float32, or other pretrained weights")


def refuse_frozen(model: nn.Module) -> None:
    """Raise UserError where no weight of the model is trained."""
    if not any(weight.requires_grad for weight in model.parameters()):
        raise UserError("everything is frozen: no weight has requires_grad: see kfold/model")


def refuse_idle_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise UserError where the optimizer has none of the model's weights that are trained."""
    trained = {id(weight) for weight in model.parameters() if weight.requires_grad}
    if not trained & {id(weight) for group in optimizer.param_groups for weight in group["params"]}:
        raise UserError("everything is frozen: the optimizer has none of the model's weights: see kfold/training")


# The steps


def learn_batch(
    step: Callable[[], float], model: nn.Module, goal: float, max_steps: int
) -> tuple[list[float], list[str]]:
    """The loss of each step until it is below `goal`, and the modules that no gradient reached in the first ten.

    step: trains `model` on the batch, gives the loss before that. Ends at a loss that is not finite, too. Raises
    UserError where the first module of the network is among those without gradient: the chain to it is cut.
    """
    losses: list[float] = []
    reached: set[str] = set()
    modules = trained_modules(model)
    while len(losses) < max_steps and (not losses or losses[-1] >= goal):  # NaN ends it: it is not >= anything
        losses.append(step())
        if len(losses) <= WATCHED_STEPS:
            reached |= {name for name, weights in modules.items() if any(has_gradient(weight) for weight in weights)}
        if len(losses) == WATCHED_STEPS:
            refuse_cut_chain(list(modules), reached)
    if math.isfinite(losses[-1]):
        refuse_cut_chain(list(modules), reached)
    return losses, [name for name in modules if name not in reached]


def trained_modules(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Name -> trained weights that lie in the module itself, in the order of the network."""
    found = {}
    for name, module in model.named_modules():
        if weights := [weight for weight in module.parameters(recurse=False) if weight.requires_grad]:
            found[name or type(module).__name__] = weights
    return found


def has_gradient(weight: nn.Parameter) -> bool:
    return weight.grad is not None and bool(weight.grad.any())


def refuse_cut_chain(names: Sequence[str], reached: set[str]) -> None:
    """Raise UserError where no gradient reaches the first of the modules; one in the midst may be unused on purpose."""
    if names[0] in reached:
        return
    cut = next((number for number, name in enumerate(names) if name in reached), len(names))
    until = f" and the {cut - 1} after it, up to {names[cut - 1]}" if cut > 1 else ""
    raise UserError(
        f"gradients: none reaches {names[0]}{until} (all are zero or None): look there for detach(), no_grad(), "
        f"or outputs that are always 0"
    )


# After the last step


def explain_failure(losses: Sequence[float], silent: Sequence[str], conflicts: Sequence[str], lr: float) -> str:
    """Why a batch was not learned, and what to do, a line.

    silent: modules without gradient. conflicts: equal images with different labels, in words.
    """
    first, last = losses[0], float(np.mean(losses[-WINDOW:]))
    course = f"loss {first:.4g} -> {last:.4g} in {len(losses)} steps at lr={lr:.2g}"
    finder = "find a rate with --find-lr"
    if not math.isfinite(losses[-1]):
        return f"the loss is not finite at step {len(losses)} (lr={lr:.2g}): lower lr ({finder}), or precision=float32"
    if conflicts:
        return f"labels contradict each other: {conflicts[0]}; both cannot be learned ({course}): mend train.csv"
    if silent:
        return f"gradients: none reaches {silent[0]} (all are zero or None), and the batch is not learned ({course})"
    if last > first or max(losses) > 2 * first:
        return f"the loss rises or jumps: {course}: the rate is too large: {finder}"
    recent = float(np.mean(losses[-3 * WINDOW : -2 * WINDOW] or losses[:1])) - last  # fall over the last two windows
    if recent > (first - last) * 2 * WINDOW / len(losses) / 4:  # a quarter of the mean fall: it has not settled
        return f"the loss falls, but too slowly: {course}: the rate is too small: {finder}"
    if last > 0.95 * first:
        return f"the loss hardly moves: {course}: the rate is far too small, or too little is trained: {finder}"
    return (
        f"the loss stopped falling: {course}: too much is frozen or regularised for one batch, or the rate is too "
        f"large: {finder}"
    )


def conflicting_labels(images: torch.Tensor, targets: torch.Tensor, ids: Sequence[str]) -> list[str]:
    """A text for each pair of equal images (B, H, W, 3) with different targets (B, C)."""
    first_with: dict[bytes, int] = {}
    conflicts = []
    for row, image in enumerate(images):
        other = first_with.setdefault(image.numpy().tobytes(), row)
        if not torch.equal(targets[row], targets[other]):
            conflicts.append(f"ids '{ids[other]}' and '{ids[row]}' are the same image with different labels")
    return conflicts


def is_all_right(logits: torch.Tensor, targets: torch.Tensor, task: str) -> bool:
    """Whether logits (B, C) give every label of the targets (B, C); of regression, standardised, nearly so."""
    if task == "regression":
        return bool((logits - targets).square().mean().sqrt() < NEAR)
    if task == "multiclass":
        return torch.equal(logits.argmax(dim=1), targets.argmax(dim=1))
    return torch.equal(logits > 0, targets > 0.5)
