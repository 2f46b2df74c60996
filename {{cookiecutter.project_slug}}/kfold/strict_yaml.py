"""Settings text: YAML without surprises, and every problem of it as one line that says where."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from kfold.errors import UserError

LONGEST_YAML = 100_000  # characters; PyYAML reads about this much a second


class StrictLoader(yaml.SafeLoader):
    """YAML without surprises: `1e-3` and `1_000` are numbers, `no`, `010`, `1_0` and `12:30` are text.

    A key given twice is refused. So are anchors, aliases and tags: ten lines of aliases can stand for more text than a
    computer can hold.
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
    ("int", r"[-+]?(0|[1-9][0-9]{0,30}|[1-9][0-9]{0,2}(_[0-9]{3}){1,10})", list("-+0123456789")),
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
