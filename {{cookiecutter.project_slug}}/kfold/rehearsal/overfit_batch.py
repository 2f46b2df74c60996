"""--overfit-batch: a network that cannot learn one batch by heart will not learn a data set."""

import torch

from kfold.data.loader import Batch
from kfold.errors import UserError
from kfold.model.heads import OrdinalHead
from kfold.model.weights import normalize
from kfold.rehearsal.assembled import AssembledFold, ChosenFold, assemble, endless_batches
from kfold.training.overfit import (
    GOAL,
    MAX_STEPS,
    conflicting_labels,
    explain_failure,
    is_all_right,
    learn_batch,
    refuse_idle_optimizer,
    refuse_odd_targets,
    refuse_wrong_head,
)
from kfold.training.precision import autocast
from kfold.training.predicting import refuse_unreadable, standardized

# What keeps the loss of one batch above what can be reached, or makes the batch another one at each step. The loss
# itself, the head, the optimizer, what is frozen, the number format and accumulation stay as in the experiment.
PLAIN = {
    "augment": "none", "hflip": False, "vflip": False, "rotate90": False, "crop_scale": 0.0, "color_jitter": 0.0,
    "fancy_pca": 0.0, "cutout": 0.0, "random_erasing": 0.0, "mixing": (), "multi_scale": (), "progressive": (),
    "plain_epochs": 0, "drop_rate": 0.0, "drop_path_rate": 0.0, "multi_sample_dropout": 1, "label_smoothing": 0.0,
    "flooding": 0.0, "ohem_share": 1.0, "triplet_weight": 0.0, "center_weight": 0.0, "l1_penalty": 0.0,
    "weight_decay": 0.0, "freeze_epochs": 0, "clean_labels": 0.0, "clean_labels_from": (), "pseudo_from": (),
    "distill_from": (), "consistency_weight": 0.0, "ema_decay": 0.0, "swa_from_epoch": 0, "workers": 0,
    "cache": "off", "cache_folder": "",
}  # fmt: skip


def overfit_batch(chosen: ChosenFold) -> None:
    """Say that one fixed batch can be learned. Raises UserError that says which part is broken where it cannot."""
    task, fold = chosen.facts.task, assemble(chosen, chosen.config.model_copy(update=PLAIN))
    batch = next(endless_batches(fold.batches, 0, chosen.stop))
    refuse_unreadable(batch)
    ids = [str(fold.rows.train_ids[row]) for row in batch.indices.tolist()]
    model, lr = fold.training.model, fold.recipe.peak_lr
    refuse_odd_targets(batch.targets, ids, task)
    refuse_idle_optimizer(model, fold.training.optimizer)
    refuse_wrong_head(logits_of(fold, batch), batch.targets)
    print(f"{chosen.name}: the same {len(ids)} images at every step, at lr={lr:.2g}, without what would change them")
    number = 0

    def step() -> float:
        nonlocal number
        chosen.stop.check()
        number += 1
        least = least_loss(fold, batch)
        return fold.step(batch, fold.moment(number - 1, lr)) - least

    losses, silent = learn_batch(step, model, GOAL, MAX_STEPS)
    ordinal = " (above the least that the thresholds of head=ordinal allow)" * isinstance(model.head, OrdinalHead)
    course = f"loss{ordinal} {losses[0]:.4g} -> {losses[-1]:.4g} in {len(losses)} steps"
    if not losses[-1] < GOAL:
        conflicts = conflicting_labels(batch.images, batch.targets, ids)
        problem = explain_failure(losses, silent, conflicts, lr)
        if "stopped falling" not in problem or not is_learned(fold, batch, task):
            raise UserError(f"--overfit-batch: {problem}")
        right = "every target is nearly right" if task == "regression" else "every label is right"
        course += f", where it stays: {right}, and this loss or head gets no lower"
    unused = f"; no gradient reaches {', '.join(silent[:3])}: is that unused on purpose?" if silent else ""
    print(f"  learned: {course}{unused}")


@torch.no_grad()
def least_loss(fold: AssembledFold, batch: Batch) -> float:
    """What the batch's loss cannot fall below while the head stays as it is: 0, but for the ordinal head.

    Its thresholds lie near each other at first, and move by about the rate a step: in a test of 200 steps they hide
    whether the scores are learned.
    """
    if not isinstance(fold.training.model.head, OrdinalHead):
        return 0.0
    targets, weights = batch.targets.to(fold.device), batch.weights.to(fold.device)
    logits, weights = fold.training.model.head.surest(targets.argmax(dim=1)), fold.objective.weigh(targets, weights)
    return float(fold.objective.supervised(logits, targets, weights, weights))


def is_learned(fold: AssembledFold, batch: Batch, task: str) -> bool:
    """Whether every label is given back; with the ordinal head, every score lies between its class's thresholds."""
    logits = logits_of(fold, batch)
    if isinstance(fold.training.model.head, OrdinalHead):
        medians = (logits.softmax(dim=1).cumsum(dim=1)[:, :-1] < 0.5).sum(dim=1)
        return torch.equal(medians, batch.targets.argmax(dim=1))
    return is_all_right(logits, standardized(batch.targets, fold.card), task)


@torch.no_grad()
def logits_of(fold: AssembledFold, batch: Batch) -> torch.Tensor:
    """Logits (B, C) float32 on the CPU, as they are predicted; the model goes on training afterwards."""
    images = normalize(batch.images.to(fold.device), fold.card.mean, fold.card.std)
    model = fold.training.model.eval()
    with autocast(fold.device, fold.precision):
        logits = model(images)
    fold.start_training()
    return logits.float().cpu()
