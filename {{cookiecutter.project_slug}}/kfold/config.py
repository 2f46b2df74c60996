"""The two settings files: competition.yaml (facts that the competition fixes) and configs/*.yaml (one experiment each).

Both are flat, frozen, and refuse what they do not know. Precedence: defaults < YAML file < `key=value` words.
"""

import difflib
import hashlib
import json
import re
import reprlib
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from kfold.errors import UserError

Task = Literal["multiclass", "binary", "multilabel", "regression"]
FoldScheme = Literal[
    "auto", "stratified", "group", "stratified_group", "multilabel", "binned", "time", "random"
]  # fmt: skip
FOLDS_COLUMNS = ("id", "fold", "group", "duplicate_group")  # folds.csv's own columns; the targets come after them
LONGEST_YAML = 100_000  # characters; PyYAML reads about this much a second
RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"  # also what Kaggle's data sets keep of a file name
NOT_TRAINED = (
    "num_workers",
    "save_minutes",
    "save_batches",
    "tta",
)  # settings that may change without changing a run's weights


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def check_text(self) -> "Settings":
        for key, value in self:
            for text in value if isinstance(value, tuple) else [value]:
                if isinstance(text, str) and re.search("[\ud800-\udfff]", text):
                    raise ValueError(f"{key}: {text!a} holds half a character: retype it")
        return self


class Competition(Settings):
    """What the competition fixes; see competition.yaml."""

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


Runs = Annotated[tuple[str, ...], BeforeValidator(to_names), Field(strict=False)]  # names of runs


class Config(Settings):
    """One experiment; configs/<name>.yaml holds only what differs from these defaults."""

    seed: int = Field(42, ge=0)  # order, augmentation and initial weights follow from it
    limit: int = Field(0, ge=0)  # rows of folds.csv to use, for a trial run; 0: all

    # Model
    backbone: str = "resnet18"  # any name of timm.list_models()
    pretrained: bool = True  # download ImageNet weights (needs a network once)
    pretrained_path: str = ""  # local weights in timm's names (.safetensors or .pth) instead of a download
    drop_rate: float = Field(0.0, ge=0, lt=1)  # dropout before the head

    # Input
    image_size: int = Field(224, ge=8, le=4096)  # pixels, square
    augment: Literal["none", "light", "medium", "heavy"] = "light"  # see kfold/data/augment.py
    hflip: bool = True  # random mirror left-right; false where it changes the label (digits, text)
    vflip: bool = False  # random mirror up-down
    rotate90: bool = False  # random quarter turns (microscopy, satellite)

    # Optimisation
    epochs: int = Field(10, ge=1, le=100_000)
    batch_size: int = Field(32, ge=2, le=100_000)  # images a step
    accumulate: int = Field(1, ge=1)  # parts that a batch is split into, to need less memory; 2 images a part at least
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(3e-4, gt=0)  # peak learning rate
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "cosine_cycles", "constant"] = "cosine"
    num_cycles: int = Field(1, ge=1)  # of cosine_cycles, equally long; each ends in a snapshot<n>.safetensors
    min_lr: float = Field(1e-6, ge=0)  # where a cosine ends
    warmup_epochs: float = Field(1.0, ge=0)  # linear; may be a fraction; at most half of the run
    loss: Literal["auto", "cross_entropy", "binary_cross_entropy", "mse", "smooth_l1"] = "auto"  # auto: by task
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
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: by device, reason printed
    deterministic: bool = True  # on a GPU: the same bytes from the same settings, at some cost in speed
    num_workers: int = Field(2, ge=0, le=64)  # loader processes; changes speed only, never a batch
    save_minutes: float = Field(10.0, gt=0)  # between two saves of the state, and one at each epoch's end
    save_batches: int = Field(0, ge=0)  # also after so many batches; 0: by time alone

    # Prediction
    tta: Literal["none", "hflip", "flips", "d4", "scales"] = "none"  # test-time views, see kfold/ensemble/tta.py

    @model_validator(mode="after")
    def check_choices(self) -> "Config":
        if self.pretrained_path and not self.pretrained:
            raise ValueError("pretrained_path is given but pretrained is false: drop one of them")
        if self.accumulate > self.batch_size // 2:
            raise ValueError(
                f"accumulate={self.accumulate} leaves fewer than 2 images a part of batch_size={self.batch_size}"
            )
        if self.num_cycles > 1 and self.schedule != "cosine_cycles":
            raise ValueError(f"num_cycles={self.num_cycles} needs schedule=cosine_cycles, not {self.schedule}")
        if self.num_cycles > self.epochs:
            raise ValueError(f"num_cycles={self.num_cycles}: more cycles than epochs ({self.epochs})")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr} is above lr={self.lr}")
        if self.swa_from_epoch > self.epochs:
            raise ValueError(f"swa_from_epoch={self.swa_from_epoch} comes after the last epoch ({self.epochs})")
        for kind, is_made, remedy in (
            ("ema", self.ema_decay, "ema_decay=0.999"),
            ("swa", self.swa_from_epoch, "swa_from_epoch=<epoch>"),
            ("snapshots", self.schedule == "cosine_cycles", "schedule=cosine_cycles"),
        ):
            if self.select == kind and not is_made:
                raise ValueError(f"select={kind} needs {remedy}")
        for key in ("pseudo_from", "distill_from"):
            runs = getattr(self, key)
            for run in runs:
                if not re.fullmatch(RUN_NAME, run):
                    raise ValueError(f"{key}: '{run}' is no name of a run")
                if runs.count(run) > 1:
                    raise ValueError(f"{key}: {run} is named twice")
        if self.consistency_weight and not self.ema_decay:
            raise ValueError("consistency_weight needs ema_decay: its teacher is the moving average")
        if self.cooldown_epochs and not self.pseudo_from:
            raise ValueError("cooldown_epochs needs pseudo-labels (pseudo_from): without them every epoch is real")
        if self.cooldown_epochs >= self.epochs:
            raise ValueError(f"cooldown_epochs={self.cooldown_epochs} must be fewer than epochs={self.epochs}")
        return self


class StrictLoader(yaml.SafeLoader):
    """YAML without surprises: `1e-3` is a number, `no` and `010` and `12:30` are text, a key given twice is refused.

    So are anchors, aliases and tags: ten lines of aliases can stand for more text than a computer can hold.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if event.anchor or getattr(event, "tag", None):
            raise yaml.composer.ComposerError(
                None, None, "a value that starts with & * or ! goes into quotes", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused below
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


StrictLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", list("tf")),
    ("int", r"[-+]?(0|[1-9][0-9_]{0,30})", list("-+0123456789")),
    (
        "float",
        r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf)|\.nan",
        list("-+.0123456789"),
    ),
):
    StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


class StrictDumper(yaml.SafeDumper):
    """Quotes exactly the text that StrictLoader would read as something else."""

    yaml_implicit_resolvers = StrictLoader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True  # StrictLoader refuses them


SettingsType = TypeVar("SettingsType", bound=Settings)


def load_competition(path: Path) -> Competition:
    """Read competition.yaml. Raises UserError that lists every problem."""
    return build_settings(Competition, read_yaml(path), str(path.name))


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read one experiment and apply `key=value` words. Raises UserError that lists every problem."""
    values = {**read_yaml(path), **parse_overrides(overrides)}
    return build_settings(Config, values, f"{path.parent.name}/{path.name}" + (" + overrides" if overrides else ""))


def read_yaml(path: Path) -> dict[str, Any]:
    """The top-level keys of a YAML file. Raises UserError naming file and line."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise UserError(f"{path}: is a folder or a device: put a readable file there")
        values = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        others = sorted(other.stem for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"there are: {', '.join(others)}" if others else "mend the name or the folder"
        raise UserError(f"{path}: no such file: {hint}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): put a readable file there") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold `key: value` lines, not a {type(values).__name__}")
    return values


def parse_yaml(text: str) -> Any:
    """The values of a YAML text. Raises ValueError with one line: what is wrong, and where."""
    if len(text) > LONGEST_YAML:
        raise ValueError(f"{len(text):,} characters, settings have at most {LONGEST_YAML:,}: shorten it")
    try:
        return yaml.load(text, StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(describe_yaml(error, text)) from None


def describe_yaml(error: Exception, text: str) -> str:
    """`line 3: not valid YAML: ...`, on one line, for what loading `text` raised."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"line {line}: not valid YAML: holds the character {chr(error.character)!a}: delete it"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        start = f"{error.context}, which starts on line {error.context_mark.line + 1}: " if error.context_mark else ""
        line = f"line {error.problem_mark.line + 1}"
        return f"{line}: not valid YAML: {start}{error.problem}: a line is `key: value`, text with signs goes in quotes"
    if isinstance(error, RecursionError):
        return "not valid YAML: brackets within brackets without end: close them"
    return f"not valid YAML: {' '.join(str(error).split())[:300]}"


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`["lr=1e-3", "epochs=3"]` -> `{"lr": 0.001, "epochs": 3}`, values read as in the YAML files."""
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"'{word}': an override is written key=value, for example lr=1e-3")
        if key in values:
            raise UserError(f"'{word}': {key} is given twice")
        try:
            values[key] = parse_yaml(text)
        except ValueError as error:
            raise UserError(f"'{word[:100]}': cannot read the value: {error}") from None
        if values[key] is None:
            values[key] = ""  # `pretrained_path=` empties a text
    return values


def build_settings(kind: type[SettingsType], values: dict[str, Any], source: str) -> SettingsType:
    """Validate values into a settings object. Raises UserError with one line per problem, all at once."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError([describe_problem(kind, source, problem) for problem in error.errors()]) from None


def describe_problem(kind: type[Settings], source: str, problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])[:100]
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, kind.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(kind.model_fields)}"
        return f"{source}: unknown key '{key}': {hint}"
    if problem["type"] == "missing":
        return f"{source}: '{key}' is missing: add a line `{key}: ...`"
    if problem["type"] == "value_error":
        return f"{source}: {problem['ctx']['error']}"
    said = problem["msg"][0].lower() + problem["msg"][1:].replace("tuple", "list")
    return f"{source}: {key}: {said}, not {reprlib.repr(problem['input'])}"


def settings_to_yaml(settings: Settings) -> str:
    """All values as YAML that `read_yaml` reads back."""
    return yaml.dump(settings.model_dump(mode="json"), Dumper=StrictDumper, sort_keys=False, allow_unicode=True)


def settings_hash(settings: Settings) -> str:
    """sha256 (hex) of all values that the trained weights depend on, without those of NOT_TRAINED."""
    values = {key: value for key, value in settings.model_dump(mode="json").items() if key not in NOT_TRAINED}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def difference(settings: Settings, other: Settings, but: Sequence[str] = ()) -> str:
    """`lr=0.001 epochs=3`: what `settings` has otherwise than `other`, leaving out the keys `but`; empty when equal."""
    mine, theirs = settings.model_dump(mode="json"), other.model_dump(mode="json")
    return " ".join(f"{key}={mine[key]}" for key in mine if mine[key] != theirs[key] and key not in but)
