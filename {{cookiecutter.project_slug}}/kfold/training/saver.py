"""Saving a fold's training now and then, and finding it again."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kfold.distributed import any_of, by_first, is_first, raise_together, reason_of
from kfold.errors import Interrupted, UserError
from kfold.files import file_sha256
from kfold.stopping import Stop
from kfold.training.state import Training, load_state, read_state, to_state, write_state

# Else it is another training.
MUST_AGREE = ("run", "fold", "config_hash", "fold_stamp", "rows_sha256", "pixels", "teachers")


@dataclass
class Saver:
    """Two generations of a training's state; `between_batches` saves when it is time to, and stops when it has to.

    Of several processes the first one saves, for all; they stop together.
    identity: what the state belongs to, by name, as text. weights_path: where a kind of weights lies.
    """

    training: Training
    path: Path
    previous_path: Path
    identity: Mapping[str, str]
    weights_path: Callable[[str], Path]
    stop: Stop
    minutes: float  # between saves
    batches: int  # between saves; 0: by time alone
    saved_at: float = field(default_factory=time.monotonic)
    unsaved: int = 0  # batches
    accumulate: int = field(init=False)  # as it was saved

    def __post_init__(self) -> None:
        self.accumulate = self.training.accumulate

    def restore(self) -> str:
        """Put the newest whole state into the training; what to tell the person about it, "" when there is none.

        A damaged state is named and the older one taken. Raises UserError for a state of another training.
        """
        problems = []
        for path in (self.path, self.previous_path):
            if not path.exists():
                continue
            try:
                state = read_state(path)
                self.refuse_damaged_snapshots(path, state)
            except UserError as error:
                problems += error.problems
                continue
            self.refuse_foreign(path, state["identity"])
            try:
                load_state(self.training, state)
            except (KeyError, RuntimeError, TypeError, ValueError):
                raise UserError(f"{path}: saved by other code or versions, it does not fit: --overwrite") from None
            note = self.differences(state["identity"])
            for problem in problems:
                print(f"warning: {problem}: the state of before is used", file=sys.stderr)
            if path == self.previous_path:
                self.path.unlink(missing_ok=True)  # else the next save would keep the damaged one in place of this one
            self.accumulate = self.training.accumulate
            return f"goes on from epoch {self.training.epoch + 1}, batch {self.training.batch + 1} ({path.name}){note}"
        for problem in problems:
            print(f"warning: {problem}", file=sys.stderr)
        return "starts anew: no saved state is whole" if problems else ""

    def refuse_damaged_snapshots(self, path: Path, state: Mapping) -> None:
        """The state vouches for what earlier epochs left in files and it cannot make again."""
        for kind, digest in state["snapshots"].items():
            weights_path = self.weights_path(kind)
            if not weights_path.exists() or file_sha256(weights_path) != digest:
                raise UserError(f"{weights_path}: missing or damaged, but {path.name} counts on it")

    def refuse_foreign(self, path: Path, identity: Mapping[str, str]) -> None:
        differing = [key for key in MUST_AGREE if identity.get(key) != self.identity[key]]
        if differing:
            raise UserError(
                f"{path}: an unfinished training with another {', '.join(differing)}: take back the change, "
                f"give the new run a name (--name), or start anew (--overwrite)"
            )

    def differences(self, identity: Mapping[str, str]) -> str:
        """What else is not as it was when the state was saved: machine and versions."""
        changes = [
            f"{key} {identity.get(key, 'unknown')} -> {value}"
            for key, value in self.identity.items()
            if key not in MUST_AGREE and identity.get(key) != value
        ]
        return f"; not byte for byte as without the interruption: {', '.join(changes)}" if changes else ""

    def between_batches(self) -> None:
        """Save when it is time to. Raises Interrupted, after saving, when it is time to stop."""
        self.unsaved += 1
        is_long = time.monotonic() - self.saved_at >= 60 * self.minutes
        is_many = 0 < self.batches <= self.unsaved
        is_split = self.training.accumulate != self.accumulate  # the memory was full: not to find that out again
        if any_of(self.stop.is_due):
            by_first(self.save)
            where = f"epoch {self.training.epoch + 1}, after batch {self.training.batch}"
            raise_together(Interrupted(f"{reason_of(self.stop)}, saved at {where}"))
        if is_long or is_many or is_split:
            self.save()

    def save(self) -> None:
        if is_first():
            write_state(self.path, self.previous_path, to_state(self.training, self.identity))
        self.saved_at, self.unsaved, self.accumulate = time.monotonic(), 0, self.training.accumulate
