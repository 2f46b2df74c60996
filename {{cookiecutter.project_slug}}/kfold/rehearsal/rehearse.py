"""The rehearsals by name, for train.py and report.py."""

from collections.abc import Callable

from kfold.rehearsal.assembled import ChosenFold
from kfold.rehearsal.augment_preview import augment_preview
from kfold.rehearsal.find_lr import find_lr
from kfold.rehearsal.overfit_batch import overfit_batch
from kfold.rehearsal.profile import profile
from kfold.training.memory import full_memory_named

REHEARSALS: dict[str, Callable[[ChosenFold], None]] = {
    "find_lr": find_lr,
    "overfit_batch": overfit_batch,
    "profile": profile,
    "augment_preview": augment_preview,
}


def rehearse(kind: str, chosen: ChosenFold) -> None:
    """Call one of REHEARSALS. Raises UserError with what is found to be wrong."""
    with chosen.stop.listening(), full_memory_named(chosen.name):
        REHEARSALS[kind](chosen)
