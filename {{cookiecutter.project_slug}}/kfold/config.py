"""The two settings files: competition.yaml (facts that the competition fixes) and configs/*.yaml (one experiment each).

Both are flat, frozen, and refuse what they do not know. Precedence: defaults < YAML file < `key=value` words.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from kfold.conflicts import contradictions
from kfold.errors import UserError
from kfold.needs import idle_words
from kfold.settings import Contradictions, Settings, build_settings, parse_overrides
from kfold.strict_yaml import read_yaml

Task = Literal["multiclass", "binary", "multilabel", "regression"]
FoldScheme = Literal[
    "auto", "stratified", "group", "stratified_group", "multilabel", "binned", "time", "random"
]  # fmt: skip
FOLDS_COLUMNS = ("id", "fold", "group", "duplicate_group")  # folds.csv's own columns; the targets come after them
LOSS_NAMES = (
    "auto", "cross_entropy", "binary_cross_entropy", "focal", "asymmetric", "lovasz", "soft_fbeta", "mse", "mae",
    "smooth_l1",
)  # fmt: skip
NOT_TRAINED = (
    "cache",
    "cache_folder",
    "workers",
    "save_minutes",
    "save_batches",
    "tta",
    "tracker",
)  # settings that may change without changing a run's weights


MOST_WORKERS = 64


class Competition(Settings):
    """What the competition fixes; see competition.yaml."""

    home: ClassVar[str] = "competition.yaml: it is the same for all experiments"

    project_name: str  # shown in tables
    kaggle_competition: str = ""  # the slug in the competition's address; empty: no upload
    task: Task
    metric: str = "auto"  # a name of kfold.metrics.METRICS; auto: the usual one of the task

    id_column: str = Field("image_id", min_length=1)  # in all three CSVs
    target_columns: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]  # in train.csv
    group_column: str = ""  # rows of one group (patient, scene) stay in one fold; empty: none
    time_column: str = ""  # only for fold_scheme: time; sorts as a number, else as text (ISO dates)

    data_dir: str = Field("data", max_length=1000)  # holds the five below; relative to the repository, or absolute
    train_csv: str = Field("train.csv", max_length=250)
    test_csv: str = Field("test.csv", max_length=250)  # may be absent: then the ids of the sample submission
    sample_submission_csv: str = Field("sample_submission.csv", max_length=250)
    train_images: str = Field("train_images", max_length=250)  # folder of <id><image_suffix>
    test_images: str = Field("test_images", max_length=250)
    image_suffix: str = Field(".png", max_length=50)  # may be empty when the ids carry it
    bad_train_images: Literal["stop", "drop"] = "stop"  # drop: leave unreadable training rows out of folds.csv

    num_folds: int = Field(5, ge=2, le=20)
    fold_scheme: FoldScheme = "auto"
    fold_seed: int = Field(42, ge=0)

    @model_validator(mode="after")
    def check_columns(self) -> "Competition":
        for name in self.target_columns:
            if name in FOLDS_COLUMNS:
                raise ValueError(
                    f"target column '{name}' has the name of a column of folds.csv: "
                    f"rename it in train.csv and here, and back in competition.py's postprocess"
                )
        for key in ("data_dir", "train_csv", "test_csv", "sample_submission_csv", "train_images", "test_images"):
            if not getattr(self, key) or "\0" in getattr(self, key):
                raise ValueError(f"{key}: {getattr(self, key)!r} cannot name a file or folder: give its name")
        named = [self.id_column, *self.target_columns, self.group_column, self.time_column]
        named = [name for name in named if name]
        for name in sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(f"column '{name}' is named twice: id, targets, group and time must differ")
        if self.task in ("multiclass", "binary") and len(self.target_columns) > 1:
            raise ValueError(f"task {self.task} has one target column, not {len(self.target_columns)}")
        if self.fold_scheme == "time" and not self.time_column:
            raise ValueError("fold_scheme time needs time_column")
        if self.fold_scheme in ("group", "stratified_group") and not self.group_column:
            raise ValueError(f"fold_scheme {self.fold_scheme} needs group_column")
        return self


def to_names(value: Any) -> Any:
    """One name stands for a list of it: distill_from=baseline."""
    return (value,) if isinstance(value, str) and value else value


def to_numbers(value: Any) -> Any:
    """One number stands for a list of it: step_epochs=5."""
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value


def check_workers(value: Any) -> Any:
    is_number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_WORKERS
    if not is_number and value not in ("auto", "threads"):
        raise ValueError(f"workers: auto, threads, or 0 to {MOST_WORKERS} loader processes, not {value!r}")
    return value


Names = (BeforeValidator(to_names), Field(strict=False))
Numbers = (BeforeValidator(to_numbers), Field(strict=False))
Runs = Annotated[tuple[str, ...], *Names]  # names of runs
Mixings = Annotated[tuple[Literal["mixup", "cutmix", "ricap"], ...], *Names]
Losses = Annotated[tuple[Literal[LOSS_NAMES], ...], *Names, Field(min_length=1)]
Size = Annotated[int, Field(ge=8, le=4096)]  # pixels
Epoch = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Workers = Annotated[int | Literal["auto", "threads"], BeforeValidator(check_workers)]


class Config(Settings):
    """One experiment; configs/<name>.yaml holds only what differs from these defaults. See docs/recipes.md."""

    home: ClassVar[str] = "configs/<name>.yaml: it is of one experiment"

    seed: int = Field(42, ge=0)  # order, augmentation and initial weights follow from it
    limit: int = Field(0, ge=0)  # rows of folds.csv to use, for a trial run; 0: all

    # Model
    backbone: str = "resnet18"  # any name of timm.list_models(), or torchvision/<name>
    pretrained: bool = True  # download ImageNet weights (needs a network once)
    pretrained_path: str = ""  # local weights in the library's names (.safetensors or .pth) instead of a download
    pooling: Literal["default", "avg", "max", "avg_max", "concat", "gem", "spp"] = "default"  # default: the backbone's
    neck: Literal["none", "bnneck"] = "none"  # between pooled features and head
    head: Literal["linear", "arcface", "subcenter_arcface", "cosface", "ordinal"] = "linear"
    arcface_margin: float = Field(0.5, ge=0, lt=1.5)  # radians
    cosface_margin: float = Field(0.35, ge=0, lt=1)  # of the cosine
    margin_scale: float = Field(
        30.0, ge=0, le=1000
    )  # that multiplies the cosines; 0: grows with the log of the classes
    margin_power: float = Field(0.0, ge=0, le=1)  # margins go with (rows of the class)^-power; 0: alike; usual 0.25
    num_subcenters: int = Field(3, ge=2, le=20)  # of each class, for subcenter_arcface
    drop_rate: float = Field(0.0, ge=0, lt=1)  # dropout before the head
    drop_path_rate: float = Field(0.0, ge=0, lt=1)  # residual blocks left out at random: of the last one, others less
    multi_sample_dropout: int = Field(1, ge=1, le=64)  # masks of drop_rate whose logits are averaged; usual 5
    norm: Literal["default", "group", "ibn"] = "default"  # in place of BatchNorm; ibn: half InstanceNorm, early blocks
    zero_gamma: Literal["default", "on", "off"] = "default"  # residual blocks start as the identity; default: timm's
    prior_bias: bool = False  # the head starts at the classes' shares of the training rows

    # Input
    image_size: int = Field(224, ge=8, le=4096)  # pixels, square
    multi_scale: Annotated[tuple[Size, ...], *Numbers] = ()  # sizes of training, one drawn for each batch
    progressive: Annotated[tuple[Size, ...], *Numbers] = ()  # sizes of training, for equal stretches of it
    center_crop: float = Field(1.0, gt=0.5, le=1)  # share of the side that validation and test images keep
    input_statistics: Literal["backbone", "dataset"] = "backbone"  # mean and standard deviation of pixels

    # Augmentation; see kfold/data/augment.py
    augment: Literal[
        "none", "light", "medium", "heavy", "autoaugment", "randaugment", "trivialaugment"
    ] = "light"  # fmt: skip
    hflip: bool = True  # random mirror left-right; false where it changes the label (digits, text)
    vflip: bool = False  # random mirror up-down
    rotate90: bool = False  # random quarter turns (microscopy, satellite)
    crop_scale: float = Field(0.0, ge=0, le=1)  # least share of the area in a random crop; 0: as `augment` says
    color_jitter: float = Field(0.0, ge=0, le=1)  # strength; 0: as `augment` says
    fancy_pca: float = Field(0.0, ge=0, le=1)  # probability
    cutout: float = Field(0.0, ge=0, le=1)  # probability of a square hole in grey
    random_erasing: float = Field(0.0, ge=0, le=1)  # probability of a rectangle of noise
    mixing: Mixings = ()  # of mixup, cutmix, ricap; with several, one is drawn for each batch
    mixing_probability: float = Field(1.0, gt=0, le=1)  # of a batch to be mixed
    mixup_alpha: float = Field(0.2, gt=0)  # shares are drawn from Beta(alpha, alpha)
    cutmix_alpha: float = Field(1.0, gt=0)
    ricap_beta: float = Field(0.3, gt=0)
    plain_epochs: int = Field(0, ge=0)  # last epochs, with light augmentation and no mixing

    # Rows
    sampler: Literal["shuffled", "balanced", "square_root"] = "shuffled"  # balanced: classes alike often
    clean_labels: float = Field(0.0, ge=0, lt=0.5)  # share of training rows left out, by doubt
    clean_labels_from: Runs = ()  # runs whose model of the same fold judges the labels

    # Loss
    loss: Losses = ("auto",)  # one or several, added; auto: by task
    loss_weights: Annotated[tuple[Positive, ...], *Numbers] = ()  # of several losses; empty: 1 each
    label_smoothing: float = Field(0.0, ge=0, lt=1)  # share of the label that goes to all classes alike; usual 0.1
    class_weights: Literal["none", "inverse_log", "effective_number"] = "none"  # of the loss, by rows of the class
    effective_beta: float = Field(0.999, ge=0, lt=1)  # of effective_number; 0: all alike
    focal_gamma: float = Field(2.0, ge=0)  # 0: no focus
    asymmetric_gamma_positive: float = Field(1.0, ge=0)
    asymmetric_gamma_negative: float = Field(4.0, ge=0)
    asymmetric_clip: float = Field(0.05, ge=0, lt=1)  # probability below which a negative costs nothing
    fbeta: float = Field(1.0, gt=0)  # of soft_fbeta: how much recall counts against precision
    ohem_share: float = Field(1.0, gt=0, le=1)  # of a batch, its hardest rows, that the loss is of; 1: all; usual 0.7
    flooding: float = Field(0.0, ge=0, le=10)  # level that the training loss is kept around; 0: off
    triplet_weight: float = Field(0.0, ge=0)  # of the batch-hard triplet loss on features; 0: off
    triplet_margin: float = Field(0.3, ge=0)  # Euclidean distance
    center_weight: float = Field(0.0, ge=0)  # of the center loss on features; 0: off; usual 0.0005
    l1_penalty: float = Field(0.0, ge=0)  # on the sum of absolute weights; with weight_decay: elastic net

    # Optimisation
    epochs: int = Field(10, ge=1, le=100_000)
    batch_size: int = Field(32, ge=2, le=100_000)  # images a step
    accumulate: int = Field(1, ge=1)  # parts that a batch is split into, to need less memory; 2 images a part at least
    optimizer: Literal[
        "adam", "adamw", "sgd", "sgd_nesterov", "nadam", "radam", "rmsprop", "lamb", "lars", "novograd", "adafactor",
        "adabelief", "adabound", "adan", "lion", "madgrad",
    ] = "adam"  # fmt: skip
    lr: float = Field(3e-4, gt=0)  # peak learning rate
    scale_lr: bool = False  # true: lr is for 256 images a step, and is multiplied by batch_size / 256
    backbone_lr: float = Field(1.0, gt=0, le=1)  # factor on lr for everything but the head; usual 0.1
    layer_decay: float = Field(1.0, gt=0, le=1)  # factor on lr from each layer to the one before; usual 0.65 to 0.9
    freeze_epochs: int = Field(0, ge=0)  # first epochs, which train the head alone
    freeze_stages: int = Field(0, ge=0, le=100)  # first stages of the backbone, never trained
    freeze_batch_norm: bool = False  # keep the statistics of the pretrained BatchNorm
    sync_batch_norm: bool = False  # of several GPUs: BatchNorm over the images of all of them
    weight_decay: float = Field(0.0, ge=0)
    decay_all: bool = False  # true: weight decay of biases and norms, too
    clip_grad: float = Field(0.0, ge=0)  # longest gradient (its norm over all weights); 0: off; usual 1
    schedule: Literal[
        "cosine", "cosine_cycles", "one_cycle", "step", "plateau", "polynomial", "exponential", "inverse_time",
        "constant",
    ] = "cosine"  # fmt: skip
    warmup_epochs: float = Field(1.0, ge=0)  # linear; may be a fraction; at most half of the run, or of the first cycle
    min_lr: float = Field(1e-6, ge=0)  # where a schedule ends, or stops falling
    num_cycles: int = Field(2, ge=1)  # of cosine_cycles, equally long; each ends in a snapshot<n>.safetensors
    step_epochs: Annotated[tuple[Epoch, ...], *Numbers] = ()  # of step: epochs after which lr falls
    step_factor: float = Field(0.1, gt=0, lt=1)
    plateau_patience: int = Field(4, ge=0)  # epochs without a smaller training loss, after which lr falls
    plateau_factor: float = Field(0.1, gt=0, lt=1)
    polynomial_power: float = Field(0.9, gt=0)
    decay_rate: float = Field(0.1, gt=0)  # r an epoch e; exponential: exp(-r e); inverse_time: 1 / (1 + r e)
    early_stopping: int = Field(0, ge=0)  # epochs without a better score that end a fold; 0: off; optimistic
    select: Literal["last", "best", "ema", "swa", "snapshots"] = (
        "last"  # weights to predict with; best is optimistic: chosen on the validation fold
    )

    # Averaging of weights; see kfold/training/averaging.py
    ema_decay: float = Field(0.0, ge=0, lt=1)  # moving average over steps, with warm-up; 0: off; usual 0.99 to 0.9998
    swa_from_epoch: int = Field(0, ge=0)  # equal mean of the weights at the end of this epoch and later ones; 0: off

    # Pseudo-labels: fold k trains on test rows that only models without fold k labelled; see pseudo_label.py
    pseudo_from: Runs = ()  # teacher runs; their mean labels; empty: none
    pseudo_threshold: float = Field(0.9, ge=0, le=1)  # least confidence of a row that is taken
    pseudo_top_share: float = Field(0.0, ge=0, le=1)  # instead: this share of each class, the surest rows; 0: threshold
    pseudo_per_class: int = Field(0, ge=0)  # rows of one class at most, the surest; 0: no limit
    pseudo_targets: Literal["hard", "soft"] = "hard"  # the likeliest class, or the teachers' probabilities
    pseudo_weight: float = Field(1.0, gt=0, le=1)  # of a pseudo row in the loss; a real row has 1
    pseudo_ratio: float = Field(1.0, gt=0)  # pseudo rows for each real row in an epoch, at most
    cooldown_epochs: int = Field(0, ge=0)  # last epochs, on real labels only

    # Distillation: the loss also pulls towards fold k's own models of other runs
    distill_from: Runs = ()  # teacher runs; empty: off
    distill_weight: float = Field(0.5, gt=0, le=1)  # of the teachers in the loss; the labels have the rest
    distill_temperature: float = Field(2.0, gt=0)  # softens both sides; regression ignores it

    # Mean teacher: agree with the own EMA on test images without labels
    consistency_weight: float = Field(0.0, ge=0)  # 0: off; needs ema_decay
    consistency_rampup_epochs: float = Field(2.0, ge=0)  # until the full weight

    # Machine
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: as speed says
    speed: Literal["auto", "plain"] = "auto"  # auto: number format, layout and kernels are timed at start, once a run
    deterministic: bool = True  # on a GPU: the same bytes from the same settings, at some cost in speed
    cache: Literal["auto", "raw", "jpeg", "off"] = "auto"  # decoded images on the disk; what a run began with stays
    cache_folder: str = Field("", max_length=1000, pattern=r"^[^\x00]*$")  # for these; empty: cache/
    workers: Workers = "auto"  # threads, or 0 to 64 loader processes; changes speed only, never a batch
    save_minutes: float = Field(10.0, gt=0)  # between two saves of the state, and one at each epoch's end
    save_batches: int = Field(0, ge=0)  # also after so many batches; 0: by time alone
    tracker: Literal["none", "tensorboard", "wandb", "mlflow"] = "none"  # is told each epoch; see kfold/tracking.py

    # Prediction
    tta: Literal["none", "hflip", "flips", "rotations", "d4", "scales", "crops"] = (
        "none"  # test-time views, see kfold/ensemble/tta.py
    )

    @model_validator(mode="after")
    def check_choices(self) -> "Config":
        if problems := contradictions(self):
            raise Contradictions(problems)
        return self

    @property
    def peak_lr(self) -> float:
        """The learning rate at the schedule's peak (scale_lr: Goyal and others, arxiv.org/abs/1706.02677)."""
        return self.lr * self.batch_size / 256 if self.scale_lr else self.lr


def load_competition(path: Path) -> Competition:
    """Read competition.yaml. Raises UserError that lists every problem."""
    return build_settings(Competition, read_yaml(path), str(path.name))


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read one experiment and apply `key=value` words. Raises UserError that lists every problem."""
    words, source = (
        parse_overrides(overrides),
        f"{path.parent.name}/{path.name}" + (" + overrides" if overrides else ""),
    )
    config = build_settings(Config, {**read_yaml(path), **words}, source)
    if problems := idle_words(config, words):
        raise UserError(problems).at(source)
    return config


def settings_hash(settings: Settings) -> str:
    """sha256 (hex) of all values that the trained weights depend on, without those of NOT_TRAINED."""
    values = {key: value for key, value in settings.model_dump(mode="json").items() if key not in NOT_TRAINED}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
