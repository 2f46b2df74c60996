"""The rehearsals by name, for train.py."""

from collections.abc import Callable

from kfold.errors import UserError
from kfold.rehearsal.assembled import ChosenFold
from kfold.rehearsal.find_lr import find_lr
from kfold.rehearsal.overfit_batch import overfit_batch
from kfold.rehearsal.profile import profile
from kfold.training.memory import is_full_memory

REHEARSALS: dict[str, Callable[[ChosenFold], None]] = {
    "find_lr": find_lr,
    "overfit_batch": overfit_batch,
    "profile": profile,
}


def rehearse(kind: str, chosen: ChosenFold) -> None:
    """Call one of REHEARSALS. Raises UserError with what is found to be wrong."""
    try:
        with chosen.stop.listening():
            REHEARSALS[kind](chosen)
    except RuntimeError as error:  # a batch that is too large is split; here even the model was
        if not is_full_memory(error):
            raise
        raise UserError(f"{chosen.name}: the GPU's memory is full: free it, or take a smaller backbone") from None
