"""The switches of training as factors with levels: what test_recipes.py combines, pair by pair."""

from functools import cache

from covering import Row, covering_rows, valid_pairs
from pydantic import ValidationError

from kfold.config import Config
from kfold.conflicts import task_contradictions
from kfold.errors import UserError
from kfold.settings import parse_overrides
from kfold.training.losses import choose_loss

OFF = "off"
LEVELS: dict[str, tuple[str, ...]] = {  # factor -> its levels as key=value words; `off`, the default, comes first
    "task": ("multiclass", "binary", "multilabel", "regression"),
    "precision": (OFF, "precision=bfloat16", "precision=float16"),
    "parts": (OFF, "accumulate=2"),
    "averages": (
        OFF,
        "ema_decay=0.9 select=ema",
        "swa_from_epoch=1 select=swa",
        "select=best",
        "schedule=cosine_cycles num_cycles=2 select=snapshots",
    ),
    "workers": (OFF, "workers=2"),
    "loss": (
        OFF,
        "loss=focal focal_gamma=1.5",
        "loss=asymmetric asymmetric_clip=0.1",
        "loss=lovasz",
        "loss=soft_fbeta fbeta=2.0",
        "loss=mse",
        "loss=mae",
        "loss=[auto,soft_fbeta] loss_weights=[1.0,0.5]",
        "loss=[smooth_l1,mse]",
    ),
    "smoothing": (OFF, "label_smoothing=0.1"),
    "class balance": (
        OFF,
        "class_weights=inverse_log",
        "class_weights=effective_number effective_beta=0.9",
        "sampler=balanced",
        "sampler=square_root",
    ),
    "hard rows": (OFF, "ohem_share=0.5", "flooding=0.1"),
    "features": (OFF, "triplet_weight=0.5 triplet_margin=0.2", "center_weight=0.01"),
    "penalty": (OFF, "l1_penalty=1e-5", "weight_decay=0.05", "weight_decay=0.05 decay_all=true"),
    "mixing": (
        OFF,
        "mixing=mixup mixup_alpha=0.4",
        "mixing=cutmix",
        "mixing=ricap ricap_beta=0.5 mixing_probability=0.7",
        "mixing=[mixup,cutmix,ricap] plain_epochs=1",
    ),
    "head": (
        OFF,
        "head=arcface arcface_margin=0.3 margin_power=0.25",
        "head=subcenter_arcface num_subcenters=2",
        "head=cosface margin_scale=0",
        "head=ordinal",
        "prior_bias=true",
    ),
    "pooling": (OFF, *(f"pooling={name}" for name in ("avg", "max", "avg_max", "concat", "gem", "spp"))),
    "neck": (OFF, "neck=bnneck"),
    "dropout": (OFF, "drop_rate=0.3", "drop_rate=0.3 multi_sample_dropout=3", "drop_path_rate=0.2"),
    "norm": (OFF, "norm=group", "norm=ibn"),
    "first weights": (
        OFF,
        "zero_gamma=on",
        "zero_gamma=off",
        "pretrained=true freeze_epochs=1",
        "pretrained=true freeze_stages=2",
        "pretrained=true freeze_batch_norm=true",
        "sync_batch_norm=true",
    ),
    "augment": (
        OFF,
        *(f"augment={name}" for name in ("none", "medium", "heavy", "autoaugment", "randaugment", "trivialaugment")),
    ),
    "extras": (
        OFF,
        "crop_scale=0.4",
        "color_jitter=0.3",
        "fancy_pca=0.5",
        "cutout=0.5",
        "random_erasing=0.5 plain_epochs=1",
    ),
    "size": (OFF, "multi_scale=[24,32,40]", "progressive=[24,32]", "center_crop=0.9", "input_statistics=dataset"),
    "optimizer": (
        OFF,
        *(f"optimizer={name}" for name in Config.model_fields["optimizer"].annotation.__args__ if name != "adam"),
    ),
    "rates": (OFF, "backbone_lr=0.1", "layer_decay=0.75", "clip_grad=0.5", "scale_lr=true", "early_stopping=2"),
    "schedule": (
        OFF,
        "schedule=one_cycle",
        "schedule=step step_epochs=[1,2] step_factor=0.5",
        "schedule=plateau plateau_patience=0 plateau_factor=0.5",
        "schedule=polynomial polynomial_power=2.0",
        "schedule=exponential decay_rate=0.5",
        "schedule=inverse_time",
        "schedule=constant",
    ),
}  # fmt: skip


def words_of(row: Row) -> list[str]:
    """The key=value words of a row, without its task; one that two levels share comes once."""
    words = [word for factor, level in row.items() if factor != "task" and level != OFF for word in level.split()]
    return list(dict.fromkeys(words))


def goes(row: Row) -> bool:
    """Whether choices go together by the rules that train.py refuses them with; for any task where none is given."""
    words = words_of(row)
    if len({word.partition("=")[0] for word in words}) < len(words):
        return False  # two levels give a key two values
    values = {"epochs": 3, "pretrained": False, **parse_overrides(words)}
    try:
        config = Config.model_validate(values)
    except ValidationError:
        return False
    return any(fits(config, task) for task in ([row["task"]] if "task" in row else LEVELS["task"]))


def fits(config: Config, task: str) -> bool:
    try:
        choose_loss(config.loss, task)
    except UserError:
        return False
    return not task_contradictions(config, task)


@cache
def matrix() -> list[Row]:
    """Rows in which every pair of levels that go together occurs."""
    factors = {factor: list(levels) for factor, levels in LEVELS.items()}
    return covering_rows(factors, valid_pairs(factors, goes))
