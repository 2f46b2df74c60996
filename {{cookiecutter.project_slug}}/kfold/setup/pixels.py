"""Which pixels a run works on, and whether a cache keeps them: the key `cache`.

The pixels belong to the run, not to the machine: pixels.json of the run says what was chosen at its first start. Every
later start, and predict.py, takes the same ones, from a cache or without.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kfold.artifacts import Workspace
from kfold.config import Config
from kfold.data.augment import least_share
from kfold.data.cache import Pixels
from kfold.data.cache_build import Check, fill, forecast, free_bytes, look_up, waiting_lock
from kfold.data.cache_index import Entry
from kfold.data.reduce import FORMATS, Rule, side_for
from kfold.errors import UserError
from kfold.seals import refuse_broken_seal, write_sealed
from kfold.setup.batches import largest_size, make_augmentation

SHARE_OF_FREE = 0.5  # of the disk, that `auto` may fill: states, weights and other caches need room, too


def open_pixels(
    workspace: Workspace, config: Config, paths: Sequence[Path], times: int, check: Check, run: str = ""
) -> Pixels:
    """The pixels of a run's images, each read about so many times; prints one line on the cache.

    Without a run nothing is kept: a rehearsal. Raises UserError where a cache that is asked for cannot be made.
    """
    names = [str(Path(path).absolute()) for path in paths]
    if not run:
        rule = choose_rule(workspace, config, names, times, check)
    else:
        with waiting_lock(workspace.run_dir(run) / ".pixels.lock", check):  # folds may start side by side
            rule = read_record(workspace, run)
            if rule is None:
                rule = choose_rule(workspace, config, names, times, check)
                write_sealed(workspace.pixels_path(run), json.dumps(rule._asdict()) + "\n")
    return with_cache(workspace, config, rule, names, times, check, print)


def recorded_pixels(
    workspace: Workspace, run: str, config: Config, paths: Sequence[Path], times: int, check: Check
) -> Pixels:
    """The pixels that a finished run was trained on; a run without pixels.json saw the files as they are.

    Prints nothing but that a cache is made.
    """
    rule = read_record(workspace, run)
    if rule is None:
        return Pixels()
    return with_cache(workspace, config, rule, [str(Path(path).absolute()) for path in paths], times, check)


def cached_pixels(workspace: Workspace, run: str, config: Config, paths: Sequence[Path]) -> Pixels:
    """What the cache of a finished run holds of these images, looked up once; without those that it lacks."""
    rule = read_record(workspace, run)
    if rule is None or config.cache == "off":
        return Pixels(rule)
    folder = workspace.cache_dir(config.cache_folder) / rule.name
    return Pixels(rule, folder, look_up(folder, rule, [str(Path(path).absolute()) for path in paths])[0])


def read_record(workspace: Workspace, run: str) -> Rule | None:
    path = workspace.pixels_path(run)
    refuse_broken_seal(path)
    if not path.exists():
        return None
    try:
        rule = Rule(**json.loads(path.read_text(encoding="utf-8")))
        if rule.format in FORMATS and isinstance(rule.side, int) and rule.side > 0:
            return rule
    except (TypeError, ValueError):
        pass
    raise UserError(f"{path}: damaged: train the run anew (train.py --overwrite)")


def rule_side(config: Config) -> int:
    """The side that the crops and the validation images of an experiment need."""
    share = least_share(make_augmentation(config))
    return side_for(largest_size(config), share, math.ceil(config.image_size / config.center_crop))


def choose_rule(workspace: Workspace, config: Config, names: Sequence[str], times: int, check: Check) -> Rule:
    """jpeg where it is asked for, or where auto has room for nothing else; the pixels of raw need no cache."""
    side = rule_side(config)
    raw, jpeg = Rule(side, "raw"), Rule(side, "jpeg")
    if config.cache != "auto" or times <= 1:
        return jpeg if config.cache == "jpeg" else raw
    rooms = [Room.of(workspace, config, rule, names, check) for rule in (raw, jpeg)]
    if rooms[0].is_ample or not rooms[1].is_ample:
        return raw
    print(f"  cache: {rooms[0].text}: JPEG instead")
    return jpeg


@dataclass(frozen=True)
class Room:
    """What a cache has and still needs, and what its disk has free (bytes)."""

    rule: Rule
    folder: Path
    found: Mapping[str, Entry]
    num_lacking: int
    there: int
    needed: int
    free: int

    @classmethod
    def of(cls, workspace: Workspace, config: Config, rule: Rule, names: Sequence[str], check: Check) -> "Room":
        folder = workspace.cache_dir(config.cache_folder) / rule.name
        found, lacking = look_up(folder, rule, names)
        there = sum(entry.num_bytes for entry in found.values())
        needed = forecast(lacking, rule, check) if lacking else 0
        return cls(rule, folder, found, len(lacking), there, needed, free_bytes(folder))

    @property
    def is_ample(self) -> bool:
        """As if nothing were there yet: what a run works on must not depend on which runs came before."""
        return self.there + self.needed <= SHARE_OF_FREE * (self.there + self.free)

    @property
    def text(self) -> str:
        return f"{self.rule.format} needs {size(self.needed)} of {size(self.free)} free in {self.folder.parent}"


def with_cache(
    workspace: Workspace,
    config: Config,
    rule: Rule,
    names: Sequence[str],
    times: int,
    check: Check,
    say: Callable[[str], object] = lambda text: None,
) -> Pixels:
    """The pixels by the rule, from the cache where there is, or may be, one; `say` gets one line on which."""
    if config.cache == "off":
        return Pixels(rule)
    room, is_free_choice = Room.of(workspace, config, rule, names, check), config.cache == "auto"
    if not room.num_lacking:
        say(f"  cache: {len(names)} images from {room.folder}")
        return Pixels(rule, room.folder, room.found)
    if is_free_choice and times <= 1:
        say("  cache: none, as each image is read once")
        return Pixels(rule)
    if room.needed > room.free and not is_free_choice:
        raise UserError(f"cache={config.cache}: {room.text}: cache_folder=<larger disk>, cache=jpeg, or cache=off")
    if is_free_choice and not room.is_ample:
        say(f"  cache: none, as {room.text}: every image is decoded each time")
        return Pixels(rule)
    print(f"  cache: {room.num_lacking} images to make, {room.text}")
    try:
        return Pixels(rule, room.folder, fill(room.folder, rule, names, f"cache {rule.name}", check))
    except UserError as error:
        if not is_free_choice:
            raise
        print(f"  cache: none ({error}): every image is decoded each time")
        return Pixels(rule)


def size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:.2f} MB"
