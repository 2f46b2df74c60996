"""What competition.yaml and configs/*.yaml have in common: flat, frozen, and every problem of them named at once."""

import difflib
import re
import reprlib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from kfold.errors import UserError
from kfold.strict_yaml import StrictDumper, parse_yaml


class Contradictions(ValueError):
    """Choices that do not go together, each problem a line."""

    def __init__(self, problems: Sequence[str]):
        super().__init__("; ".join(problems))
        self.problems = list(problems)


class Settings(BaseModel):
    home: ClassVar[str] = ""  # where its keys are written, for one that stands elsewhere

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def check_text(self) -> "Settings":
        for key, value in self:
            for text in value if isinstance(value, tuple) else [value]:
                if isinstance(text, str) and re.search("[\ud800-\udfff]", text):
                    raise ValueError(f"{key}: {text!a} holds half a character: retype it")
        return self


SettingsType = TypeVar("SettingsType", bound=Settings)


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
        raise UserError(
            [line for problem in error.errors() for line in describe_problem(kind, source, problem)]
        ) from None


def describe_problem(kind: type[Settings], source: str, problem: Any) -> list[str]:
    """The lines for one of pydantic's problems."""
    key = ".".join(str(part) for part in problem["loc"])[:100]
    if problem["type"] == "extra_forbidden":
        return [f"{source}: unknown key '{key}': {hint_for_key(kind, key)}"]
    if problem["type"] == "missing":
        return [f"{source}: '{key}' is missing: add a line `{key}: ...`"]
    if problem["type"] == "value_error":
        error = problem["ctx"]["error"]
        return [f"{source}: {text}" for text in getattr(error, "problems", [error])]
    if problem["type"] == "too_short":
        field = kind.model_fields[key]
        remedy = "name one" if field.is_required() else f"leave {key} out for {show(field.default)}"
        return [f"{source}: {key}: an empty list, but at least one is needed: {remedy}"]
    said = problem["msg"][0].lower() + problem["msg"][1:].replace("tuple", "list")
    return [f"{source}: {key}: {said}, not {reprlib.repr(problem['input'])}{hint_for_value(kind, problem)}"]


def hint_for_key(kind: type[Settings], key: str) -> str:
    """What to write in the place of a key that the settings do not have."""
    for other in Settings.__subclasses__():
        if other.home and key in other.model_fields:
            return f"it belongs to {other.home}"
    near = difflib.get_close_matches(key, kind.model_fields, n=1, cutoff=0.5)
    surely = difflib.get_close_matches(key, near, cutoff=0.8)
    choices = [f"{other}={key}" for other, field in kind.model_fields.items() if key in allowed_words(field.annotation)]
    parts = [other for other in kind.model_fields if key in other.split("_")]
    if guesses := surely or choices + parts or near:
        return f"did you mean {' or '.join(guesses)}?"
    return f"known keys: {', '.join(kind.model_fields)}"


def allowed_words(annotation: Any) -> set[str]:
    """The values that a key may have, where they are named, alone or in a list: `Literal["a", "b"]` -> {"a", "b"}."""
    if get_origin(annotation) is Literal:
        return {value for value in get_args(annotation) if isinstance(value, str)}
    return set().union(*(allowed_words(part) for part in get_args(annotation)))


def hint_for_value(kind: type[Settings], problem: Any) -> str:
    """`: did you mean adamw?` for what is near an allowed value, or meant as none of a list; empty for others."""
    if not problem["loc"]:  # the text as a whole
        return ""
    key, value = problem["loc"][0], problem["input"]
    if (
        key in kind.model_fields
        and kind.model_fields[key].default == ()
        and value in ("", "none", "None", "null", "off", "no", None, False)
    ):
        return f": to have none, leave {key} out, or write {key}=[]"
    if isinstance(value, str) and "," in value and isinstance(kind.model_fields[key].default, tuple):
        return f": write several as {key}=[{','.join(part.strip() for part in value.split(','))}]"
    if problem["type"] == "literal_error" and isinstance(value, str):
        allowed = re.findall("'([^']*)'", problem["ctx"]["expected"])
        near = difflib.get_close_matches(value.lower()[:100], allowed, n=1)
        return f": did you mean {near[0]}?" if near else ""
    return ""


def settings_to_yaml(settings: Settings) -> str:
    """All values as YAML that `read_yaml` reads back."""
    return yaml.dump(settings.model_dump(mode="json"), Dumper=StrictDumper, sort_keys=False, allow_unicode=True)


def difference(settings: Settings, other: Settings, but: Sequence[str] = ()) -> str:
    """`lr=0.001 epochs=3`: what `settings` has otherwise than `other`, leaving out the keys `but`; empty when equal."""
    mine, theirs = settings.model_dump(mode="json"), other.model_dump(mode="json")
    return " ".join(f"{key}={show(mine[key])}" for key in mine if mine[key] != theirs[key] and key not in but)


def show(value: object) -> str:
    """A value as it is written behind `key=`."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple | list) else str(value)
