"""What config.yaml of a stack holds, in the place of an experiment's settings."""

from typing import Annotated

from pydantic import Field

from kfold.settings import Settings


class StackSettings(Settings):
    """runs/<name>/config.yaml of a stack. A file with the key stack_of is one."""

    stack_of: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]  # the runs
    method: str  # the one that was chosen, a name of METHODS in nested.py, or best_single
    asked: str = "auto"  # what the command named
    features: Annotated[tuple[str, ...], Field(strict=False)] = ()  # of LightGBM
    limit: int = Field(0, ge=0)  # rows of folds.csv; always 0: a stack is made of runs on all rows
