"""Keys of an experiment that do nothing without another choice."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from kfold.settings import show

if TYPE_CHECKING:
    from kfold.config import Config

MARGIN_HEADS = ("arcface", "subcenter_arcface", "cosface")

# key -> what it needs, and whether that is there
NEEDS: dict[str, tuple[str, Callable[["Config"], bool]]] = {
    "arcface_margin": ("head=arcface or subcenter_arcface", lambda c: c.head in ("arcface", "subcenter_arcface")),
    "cosface_margin": ("head=cosface", lambda c: c.head == "cosface"),
    "margin_scale": ("a margin head (head=arcface)", lambda c: c.head in MARGIN_HEADS),
    "margin_power": ("a margin head (head=arcface)", lambda c: c.head in MARGIN_HEADS),
    "num_subcenters": ("head=subcenter_arcface", lambda c: c.head == "subcenter_arcface"),
    "multi_sample_dropout": ("drop_rate above 0: its masks are of that rate", lambda c: c.drop_rate > 0),
    "mixing_probability": ("mixing", lambda c: bool(c.mixing)),
    "mixup_alpha": ("mixing=mixup", lambda c: "mixup" in c.mixing),
    "cutmix_alpha": ("mixing=cutmix", lambda c: "cutmix" in c.mixing),
    "ricap_beta": ("mixing=ricap", lambda c: "ricap" in c.mixing),
    "plain_epochs": ("something to leave out: mixing, or more augmentation than light", lambda c: is_augmented(c)),
    "clean_labels": ("clean_labels_from=<run>", lambda c: bool(c.clean_labels_from)),
    "clean_labels_from": ("clean_labels above 0, the share of rows to leave out", lambda c: c.clean_labels > 0),
    "effective_beta": ("class_weights=effective_number", lambda c: c.class_weights == "effective_number"),
    "focal_gamma": ("loss=focal", lambda c: "focal" in c.loss),
    "asymmetric_gamma_positive": ("loss=asymmetric", lambda c: "asymmetric" in c.loss),
    "asymmetric_gamma_negative": ("loss=asymmetric", lambda c: "asymmetric" in c.loss),
    "asymmetric_clip": ("loss=asymmetric", lambda c: "asymmetric" in c.loss),
    "fbeta": ("loss=soft_fbeta", lambda c: "soft_fbeta" in c.loss),
    "triplet_margin": ("triplet_weight above 0", lambda c: c.triplet_weight > 0),
    "decay_all": ("weight_decay above 0", lambda c: c.weight_decay > 0),
    "min_lr": ("a schedule that falls, not constant", lambda c: c.schedule != "constant"),
    "num_cycles": ("schedule=cosine_cycles", lambda c: c.schedule == "cosine_cycles"),
    "step_epochs": ("schedule=step", lambda c: c.schedule == "step"),
    "step_factor": ("schedule=step", lambda c: c.schedule == "step"),
    "plateau_patience": ("schedule=plateau", lambda c: c.schedule == "plateau"),
    "plateau_factor": ("schedule=plateau", lambda c: c.schedule == "plateau"),
    "polynomial_power": ("schedule=polynomial", lambda c: c.schedule == "polynomial"),
    "decay_rate": (
        "schedule=exponential or inverse_time",
        lambda c: c.schedule in ("exponential", "inverse_time"),
    ),
    "distill_weight": ("distill_from=<run>", lambda c: bool(c.distill_from)),
    "distill_temperature": ("distill_from=<run>", lambda c: bool(c.distill_from)),
    "consistency_rampup_epochs": ("consistency_weight above 0", lambda c: c.consistency_weight > 0),
    "consistency_weight": ("ema_decay: its teacher is the moving average", lambda c: c.ema_decay > 0),
    "cooldown_epochs": (
        "pseudo-labels (pseudo_from): without them every epoch is real",
        lambda c: bool(c.pseudo_from),
    ),
}


def is_augmented(c: "Config") -> bool:
    extras = (c.fancy_pca, c.cutout, c.random_erasing, c.crop_scale, c.color_jitter)
    return bool(c.mixing) or c.augment not in ("none", "light") or any(extras)


def waiting_keys(config: "Config") -> list[str]:
    """Settings of pseudo-labels that this training does not read: pseudo_label.py, which adds teachers, will."""
    if config.pseudo_from:
        return []
    fields = type(config).model_fields
    keys = [key for key in fields if key.startswith("pseudo_") and key != "pseudo_from"]
    return [key for key in keys if getattr(config, key) != fields[key].default]


def idle_words(config: "Config", keys: Iterable[str]) -> list[str]:
    """The same as problems, a line each, for keys that are asked of this very training."""
    return [
        f"{key}={show(getattr(config, key))} needs pseudo_from: give it to pseudo_label.py, which makes pseudo-labels"
        for key in keys
        if key.startswith("pseudo_") and not config.pseudo_from
    ]
