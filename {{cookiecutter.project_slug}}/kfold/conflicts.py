"""Choices of an experiment that do not go together, each with its reason: refused before anything is read or trained.

CONFLICTS: choices of one experiment that contradict each other. TASK_CONFLICTS: choices that make no sense for a task.
A text names values by their keys. Choices that need another one are in needs.py.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from kfold.needs import MARGIN_HEADS, NEEDS
from kfold.settings import show

if TYPE_CHECKING:
    from kfold.config import Config

RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"  # also what Kaggle's data sets keep of a file name
POLICIES = ("autoaugment", "randaugment", "trivialaugment")  # of torchvision
BATCH_LOSSES = ("lovasz", "soft_fbeta")  # of a column of the batch, not of a row

CONFLICTS: tuple[tuple[Callable[["Config"], bool], str], ...] = (
    # Model
    (
        lambda c: bool(c.pretrained_path) and not c.pretrained,
        "pretrained_path is given but pretrained is false: drop one of them",
    ),
    (
        lambda c: c.zero_gamma != "default" and c.pretrained,
        "zero_gamma={zero_gamma} would overwrite what pretrained weights learned: pretrained=false, or leave it out",
    ),
    (
        lambda c: c.freeze_batch_norm and c.norm == "group",
        "freeze_batch_norm with norm=group: no BatchNorm is left to freeze: drop one of them",
    ),
    *(
        (
            lambda c, is_on=is_on: c.sync_batch_norm and is_on(c),
            "sync_batch_norm with " + what + ": drop one of them",
        )
        for what, is_on in (
            ("freeze_batch_norm, whose statistics are fixed", lambda c: c.freeze_batch_norm),
            ("norm=group: no BatchNorm is left", lambda c: c.norm == "group"),
            (
                "consistency_weight: a process whose test images cannot be read would keep the others waiting",
                lambda c: c.consistency_weight > 0,
            ),
        )
    ),
    (
        lambda c: c.head != "linear" and c.prior_bias,
        "prior_bias with head={head}: that head has no bias of classes: drop one of them",
    ),
    *(
        (
            lambda c, key=key, default=default: getattr(c, key) != default and c.backbone.startswith("torchvision/"),
            key + "={" + key + "} with backbone={backbone}: networks of torchvision have their own: leave it out",
        )
        for key, default in (("pooling", "default"), ("drop_path_rate", 0))
    ),
    # Frozen parts keep what they are, which is random without pretrained weights.
    *(
        (
            lambda c, key=key: bool(getattr(c, key)) and not c.pretrained,
            f"{key} keeps weights as they are, and pretrained=false makes them random: drop one of them",
        )
        for key in ("freeze_epochs", "freeze_stages", "freeze_batch_norm")
    ),
    # Input and augmentation
    (
        lambda c: bool(c.multi_scale) and bool(c.progressive),
        "multi_scale and progressive both choose the size of a batch: drop one of them",
    ),
    (
        lambda c: list(c.progressive) != sorted(set(c.progressive)),
        "progressive={progressive}: sizes must grow",
    ),
    (
        lambda c: len(c.progressive) == 1,
        "progressive={progressive}: one size does not grow: name several, or leave it out",
    ),
    (
        lambda c: set(c.multi_scale) == {c.image_size},
        "multi_scale={multi_scale} is image_size itself and changes nothing: name several sizes, or leave it out",
    ),
    (
        lambda c: c.center_crop < 1 and round(c.image_size / c.center_crop) == c.image_size,  # as eval_transform
        "center_crop={center_crop} of image_size={image_size} cuts off less than a pixel: make it smaller, or leave it "
        "out",
    ),
    (
        lambda c: len(set(c.mixing)) < len(c.mixing),
        "mixing={mixing} names one twice",
    ),
    (
        lambda c: len(c.progressive) > c.epochs,
        "progressive: {progressive} are more sizes than epochs={epochs}",
    ),
    (
        lambda c: c.plain_epochs >= c.epochs,
        "plain_epochs={plain_epochs} must be fewer than epochs={epochs}",
    ),
    (
        lambda c: c.workers == "threads" and c.augment in POLICIES,
        "workers=threads with augment={augment}: it draws from the one generator that the step uses, too: "
        "workers=auto, or a number of processes",
    ),
    (
        lambda c: c.cache == "off" and bool(c.cache_folder),
        "cache_folder={cache_folder} with cache=off: nothing is kept there: drop one of them",
    ),
    # Heads and losses
    (
        lambda c: c.head == "ordinal" and "binary_cross_entropy" in c.loss,
        "head=ordinal with loss={loss}: its logits are log probabilities, not for a sigmoid: drop one of them",
    ),
    # Labels that are mixed or softened
    *(
        (
            lambda c, is_soft=is_soft: c.head in MARGIN_HEADS and is_soft(c),
            "head={head} with " + what + ": a margin needs one true class an image: drop one of them",
        )
        for what, is_soft in (
            ("mixing", lambda c: bool(c.mixing)),
            ("label_smoothing", lambda c: c.label_smoothing > 0),
            ("pseudo_targets=soft", lambda c: bool(c.pseudo_from) and c.pseudo_targets == "soft"),
        )
    ),
    (
        lambda c: c.head in MARGIN_HEADS and not {"auto", "cross_entropy", "focal"}.issuperset(c.loss),
        "head={head} with loss={loss}: a margin head trains with cross_entropy or focal",
    ),
    *(
        (
            lambda c, is_soft=is_soft: "lovasz" in c.loss and is_soft(c),
            f"loss=lovasz with {what}: it needs labels of 0 and 1: drop one of them",
        )
        for what, is_soft in (
            ("mixing", lambda c: bool(c.mixing)),
            ("label_smoothing", lambda c: c.label_smoothing > 0),
        )
    ),
    *(
        (
            lambda c, key=key, is_soft=is_soft: getattr(c, key) > 0 and is_soft(c),
            f"{key} with {what}: it compares images of one class each: drop one of them",
        )
        for key in ("triplet_weight", "center_weight")
        for what, is_soft in (
            ("mixing", lambda c: bool(c.mixing)),
            ("pseudo_targets=soft", lambda c: bool(c.pseudo_from) and c.pseudo_targets == "soft"),
        )
    ),
    # Loss
    (
        lambda c: len(set(c.loss)) < len(c.loss),
        "loss={loss} names one twice: give it more of loss_weights",
    ),
    (
        lambda c: bool(c.loss_weights) and len(c.loss_weights) != len(c.loss),
        "loss_weights={loss_weights}: give as many as losses: {loss}",
    ),
    (
        lambda c: c.flooding > 0 and c.ohem_share < 1,
        "flooding with ohem_share: the level is of the mean loss, and OHEM takes the hardest rows: drop one of them",
    ),
    (
        lambda c: c.flooding > 0 and "focal" in c.loss,
        "flooding with loss=focal: focal loss is small by design, so a level on it floods nothing: drop one of them",
    ),
    *(
        (
            lambda c, is_on=is_on: bool(set(c.loss) & set(BATCH_LOSSES)) and is_on(c),
            what + " with loss={loss}: lovasz and soft_fbeta are of a whole batch, not of rows: drop one",
        )
        for what, is_on in (
            ("ohem_share", lambda c: c.ohem_share < 1),
            ("class_weights", lambda c: c.class_weights != "none"),
            ("pseudo_from", lambda c: bool(c.pseudo_from)),  # a label that is not sure has a weight of 0
        )
    ),
    (
        lambda c: "soft_fbeta" in c.loss and c.label_smoothing > 0,
        "loss=soft_fbeta with label_smoothing: no class would be absent from a batch any more: drop one of them",
    ),
    (
        lambda c: c.class_weights != "none" and c.sampler != "shuffled",
        "class_weights with sampler={sampler}: rare classes would count twice over: drop one of them",
    ),
    (
        lambda c: c.prior_bias and c.class_weights != "none",
        "prior_bias with class_weights: the weighted loss wants other shares than the rows have: drop one of them",
    ),
    (
        lambda c: c.prior_bias and c.sampler != "shuffled",
        "prior_bias with sampler={sampler}: the batches have other shares of classes than the rows: drop one of them",
    ),
    # Optimisation
    (
        lambda c: c.accumulate > c.batch_size // 2,
        "accumulate={accumulate} leaves fewer than 2 images a part of batch_size={batch_size}",
    ),
    (
        lambda c: c.layer_decay < 1 and c.backbone_lr < 1,
        "layer_decay and backbone_lr both slow the backbone down: drop one of them",
    ),
    (
        lambda c: c.freeze_epochs >= c.epochs,
        "freeze_epochs={freeze_epochs} must be fewer than epochs={epochs}",
    ),
    (
        lambda c: c.schedule == "cosine_cycles" and c.num_cycles > c.epochs,
        "num_cycles={num_cycles}: more cycles than epochs ({epochs})",
    ),
    (lambda c: c.min_lr > c.lr, "min_lr={min_lr} is above lr={lr}"),
    (
        lambda c: c.scale_lr and c.lr >= c.min_lr > c.peak_lr,
        "min_lr={min_lr} is above lr={lr} x batch_size={batch_size} / 256 (scale_lr)",
    ),
    (
        lambda c: c.schedule == "step" and not c.step_epochs,
        "schedule=step needs step_epochs, after which lr falls, such as step_epochs=[6,9] of 10",
    ),
    (
        lambda c: list(c.step_epochs) != sorted(set(c.step_epochs)) or max(c.step_epochs, default=0) >= c.epochs,
        "step_epochs={step_epochs} must grow, and end before epochs={epochs}: after the last one no lr is left to fall",
    ),
    (
        lambda c: c.schedule == "one_cycle" and c.warmup_epochs != 1.0,
        "warmup_epochs={warmup_epochs} with schedule=one_cycle, which has a rise of its own: leave it out",
    ),
    (
        lambda c: c.early_stopping >= c.epochs > 0,
        "early_stopping={early_stopping} can never come to pass in epochs={epochs}: take fewer, or leave it out",
    ),
    # Mixing that ends (plain_epochs) may stay: the loss falls there, which puts a fall of lr off and causes none.
    *(
        (lambda c, key=key: c.schedule == "plateau" and bool(getattr(c, key)), f"schedule=plateau with {key}: {reason}")
        for key, reason in (
            ("flooding", "lr would fall because the training loss is kept at its level: drop one of them"),
            (
                "progressive",
                "what it watches does not compare between sizes: drop one of them",
            ),
        )
    ),
    (
        lambda c: c.schedule == "cosine_cycles" and c.num_cycles > 1 and bool(c.progressive),
        "progressive with num_cycles={num_cycles}: early snapshots would be of networks that never saw the last size: "
        "drop one of them",
    ),
    *(
        (
            lambda c, is_on=is_on: c.early_stopping > 0 and is_on(c),
            f"early_stopping with {what}: a fold that ends early never gets there: drop one of them",
        )
        for what, is_on in (
            ("swa_from_epoch", lambda c: c.swa_from_epoch > 0),
            ("schedule=cosine_cycles", lambda c: c.schedule == "cosine_cycles"),
            ("freeze_epochs", lambda c: c.freeze_epochs > 0),
            ("plain_epochs", lambda c: c.plain_epochs > 0),
            ("progressive", lambda c: bool(c.progressive)),
        )
    ),
    (
        lambda c: c.early_stopping > 0 and bool(c.pseudo_from),
        "early_stopping with pseudo_from: a round of pseudo-labels is judged by its score, which would be optimistic: "
        "drop one of them",
    ),
    (
        lambda c: c.swa_from_epoch > c.epochs,
        "swa_from_epoch={swa_from_epoch} comes after the last epoch ({epochs})",
    ),
    *(
        (
            lambda c, kind=kind, is_made=is_made: c.select == kind and not is_made(c),
            f"select={kind} needs {remedy}",
        )
        for kind, is_made, remedy in (
            ("ema", lambda c: c.ema_decay > 0, "ema_decay=0.999"),
            ("swa", lambda c: c.swa_from_epoch > 0, "swa_from_epoch=<epoch>"),
            ("snapshots", lambda c: c.schedule == "cosine_cycles", "schedule=cosine_cycles"),
        )
    ),
    (
        lambda c: c.cooldown_epochs >= c.epochs,
        "cooldown_epochs={cooldown_epochs} must be fewer than epochs={epochs}",
    ),
)


def no_classes(what: str) -> str:
    return what + " is for classes: task {task} has none"


def one_class(what: str) -> str:
    return what + " needs one of several classes an image: task {task} does not give that"


# (experiment, task) -> whether they contradict each other; losses are checked by kfold/training/losses.py
TASK_CONFLICTS: tuple[tuple[Callable[["Config", str], bool], str], ...] = (
    (lambda c, task: c.class_weights != "none" and task == "regression", no_classes("class_weights")),
    (lambda c, task: c.label_smoothing > 0 and task == "regression", no_classes("label_smoothing")),
    (lambda c, task: c.sampler != "shuffled" and task == "regression", no_classes("sampler={sampler}")),
    (lambda c, task: c.prior_bias and task == "regression", no_classes("prior_bias")),
    (
        lambda c, task: c.prior_bias and task == "multiclass" and "binary_cross_entropy" in c.loss,
        "prior_bias with loss={loss} and task {task}: shares are of a softmax, the loss takes sigmoids: drop one",
    ),
    (lambda c, task: c.head != "linear" and task != "multiclass", one_class("head={head}")),
    (lambda c, task: c.triplet_weight > 0 and task not in ("multiclass", "binary"), one_class("triplet_weight")),
    (lambda c, task: c.center_weight > 0 and task not in ("multiclass", "binary"), one_class("center_weight")),
)


def contradictions(config: "Config") -> list[str]:
    """Every reason why the experiment cannot be meant, a line each; none when it can."""
    problems = [text.format(**shown(config)) for applies, text in CONFLICTS if applies(config)]
    for key, (what, is_there) in NEEDS.items():
        default = type(config).model_fields[key].default
        if getattr(config, key) != default and not is_there(config):
            problems.append(f"{key}={show(getattr(config, key))} needs {what}")
    for key in ("pseudo_from", "distill_from", "clean_labels_from"):
        runs = getattr(config, key)
        problems += [f"{key}: '{run}' is no name of a run" for run in runs if not re.fullmatch(RUN_NAME, run)]
        problems += [f"{key}: {run} is named twice" for run in sorted(set(runs)) if runs.count(run) > 1]
    return problems


def task_contradictions(config: "Config", task: str) -> list[str]:
    """The same for choices that do not fit the competition's task."""
    return [text.format(task=task, **shown(config)) for applies, text in TASK_CONFLICTS if applies(config, task)]


def shown(config: "Config") -> dict[str, str]:
    """Every choice as it is written behind `key=`."""
    return {key: show(value) for key, value in config}
