"""Ways to compute a step: what was measured (runs/speed_choices.json), what a run chose (runs/<name>/speed.json).

The choice decides the last digits of a run, so it is made once for a kind of device and kept. Rules:
- A fold that is begun goes on as its state says, on a device of the same name. On another one it takes that one's
  choice, and says that its bytes are not those without the interruption.
- A fold that is not begun takes the choice in speed.json for this kind of device. Where there is none, it is made anew:
  by what was measured for the same model, size, batch, device and torch before, or by measuring.
- A damaged file is named and made anew.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from kfold.artifacts import Workspace
from kfold.errors import UserError
from kfold.seals import refuse_broken_seal, write_sealed
from kfold.training.speed import Speed, parse_speed
from kfold.training.speed_search import Trial
from kfold.training.state import read_state


def read_choice(workspace: Workspace, run: str, kind: str, key: str = "") -> Speed | None:
    """What the run chose for a kind of device; None where it did not, or (with a key) for another model."""
    entry = read_entries(workspace.speed_path(run)).get(kind)
    return parse_speed(entry["speed"]) if entry and key in ("", entry["key"]) else None


def write_choice(workspace: Workspace, run: str, kind: str, key: str, speed: Speed, trials: Sequence[Trial]) -> None:
    entry = {"speed": str(speed), "key": key, "trials": to_json(trials)}
    write_entry(workspace.speed_path(run), kind, entry)


def read_trials(workspace: Workspace, key: str) -> tuple[list[Trial], bool, int]:
    """What was measured before (nothing: empty), and what `write_trials` was told of it."""
    entry = read_entries(workspace.speed_choices_path).get(key)
    return (from_json(entry["trials"]), entry["is_complete"], entry["num_steps"]) if entry else ([], False, 0)


def write_trials(workspace: Workspace, key: str, trials: Sequence[Trial], is_complete: bool, num_steps: int) -> None:
    """num_steps: of the whole training, which allowed so much time. is_complete: more time would not say more."""
    entry = {"is_complete": is_complete, "num_steps": num_steps, "trials": to_json(trials)}
    write_entry(workspace.speed_choices_path, key, entry)


def choice_of_state(workspace: Workspace, run: str, number: int, device: str) -> Speed | None:
    """How the saved state of a fold was computed; None where it was on another device, or no state is whole."""
    for path in (workspace.state_path(run, number), workspace.previous_state_path(run, number)):
        try:
            identity = read_state(path)["identity"]
            return parse_speed(identity["speed"]) if identity["device"] == device else None
        except (UserError, KeyError, ValueError):
            continue  # the saver names it
    return None


# The files: entries by kind of device, or by key


def read_entries(path: Path) -> dict[str, dict]:
    """Empty where the file is missing or damaged, which is said."""
    if not path.exists():
        return {}
    try:
        refuse_broken_seal(path)
        entries = json.loads(path.read_text(encoding="utf-8"))
        for entry in entries.values():
            parse_speed(entry.get("speed", "float32"))
            from_json(entry["trials"])
        return entries
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = error if isinstance(error, UserError) else f"{path}: damaged or changed by hand"
        print(f"warning: {what}; what is fastest is chosen anew", file=sys.stderr)
        return {}


def write_entry(path: Path, name: str, entry: Mapping) -> None:
    write_sealed(path, json.dumps({**read_entries(path), name: entry}, indent=1) + "\n")


def to_json(trials: Sequence[Trial]) -> list[dict]:
    return [{**asdict(trial), "speed": str(trial.speed)} for trial in trials]


def from_json(trials: Sequence[Mapping]) -> list[Trial]:
    """Raises ValueError or TypeError for what `to_json` would not have written."""
    return [Trial(**{**trial, "speed": parse_speed(trial["speed"])}) for trial in trials]
