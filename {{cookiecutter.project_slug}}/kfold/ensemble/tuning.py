"""The last thing that is fitted on out-of-fold predictions: thresholds, cuts between grades, or a temperature.

Few numbers, chosen for the metric at hand, and still enough to fool oneself: the score that counts is nested (fitted on
the other folds, applied to the held-out one), and without a gain beyond noise the neutral tuning is kept. (Predictions
of a stack are themselves fitted on other folds' targets; for so few numbers that is a leak too small to measure.)
"""

from collections.abc import Sequence

import numpy as np
from pydantic import ValidationError, model_validator
from tqdm import tqdm

from kfold.config import Task
from kfold.ensemble.tuners import TUNERS, Tuning
from kfold.errors import UserError
from kfold.intervals import is_gain, paired_difference
from kfold.metrics import Metric
from kfold.seeds import seed_of
from kfold.settings import Settings, describe_problem

# A fit looks at so many cells, and at so many rows at least. On one core one takes 1 s, or 10 s for an F1 of all labels
# together: 20 thresholds are then tried 24 times each, some passes long.
NUM_CELLS, LEAST_ROWS = 50_000, 2_000


class Tuned(Settings):
    """What tuning gave, as it is stored beside a run: neutral where nothing fits the metric, or nothing was gained.

    names: of the C columns. tried: a name of TUNERS, "" if none suits the metric. Scores: untuned; nested (fitted on
    the other folds); gain = nested - untuned with its 95% interval low to high; optimistic (fitted on the rows it is
    scored on). A score that is undefined is None.
    """

    task: Task
    names: tuple[str, ...]
    metric: str = ""
    tried: str = ""
    tuning: Tuning = Tuning()
    untuned: float | None = None
    nested: float | None = None
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    optimistic: float | None = None

    @model_validator(mode="after")
    def check_columns(self) -> "Tuned":
        tuning, num_columns = self.tuning, len(self.names)
        expected = 1 if tuning.kind == "cuts" and self.task == "multiclass" else num_columns
        found = {"thresholds": len(tuning.thresholds), "cuts": len(tuning.cuts)}.get(tuning.kind, expected)
        if found != expected:
            raise ValueError(f"its {tuning.kind} do not fit {num_columns} columns")
        return self

    @property
    def is_neutral(self) -> bool:
        return self.tuning.kind == "none"

    def apply(self, predictions: np.ndarray) -> np.ndarray:
        """Predictions (N, C), columns as in `names`, changed so that `decide` finds the tuned labels in them."""
        if self.is_neutral:
            return predictions
        return TUNERS[self.tuning.kind].apply(self.task, self.tuning, predictions)

    def describe(self) -> str:
        """One line: what was tried, what it gains nested, and the optimistic score last."""
        if not self.tried:
            return f"no tuning applies to {self.metric}"
        verdict = "beyond noise, adopted" if not self.is_neutral else "within noise or worse, not adopted"
        cells = [self.nested, self.gain, self.low, self.high, self.optimistic]
        nested, gain, low, high, optimistic = (float("nan") if cell is None else cell for cell in cells)
        return (
            f"tuning by {self.tried}, nested: {self.metric} {nested:.5f}, difference {gain:+.5f}, 95% interval "
            f"{low:+.5f} to {high:+.5f}: {verdict}; optimistic {optimistic:.5f}"
        )


def tune(
    task: Task,
    metric: Metric,
    predictions: np.ndarray,
    targets: np.ndarray,
    fold: np.ndarray,
    groups: np.ndarray | None = None,
    names: Sequence[str] = (),
) -> Tuned:
    """Fit what suits the metric on out-of-fold predictions (N, C); keep it if its nested gain is beyond noise.

    fold: (N,) int. names: of the columns (default: their numbers).
    """
    names = names or [str(column) for column in range(predictions.shape[1])]
    kind = next((name for name, tuner in TUNERS.items() if tuner.suits(task, metric)), "")
    untuned = metric.function(targets, predictions)
    if not kind:
        return Tuned(task=task, names=tuple(names), metric=metric.name, untuned=finite(untuned))
    tuner = TUNERS[kind]
    nested = np.empty(predictions.shape, np.float32)
    for number in tqdm(np.unique(fold), desc=f"tuning {kind}", unit="fold", leave=False, disable=None):
        held_out = fold == number
        tuning = tuner.fit(task, metric, *thin_out(predictions[~held_out], targets[~held_out]))
        nested[held_out] = tuner.apply(task, tuning, predictions[held_out])
    tuning = tuner.fit(task, metric, *thin_out(predictions, targets))
    difference = paired_difference(metric, targets, nested, predictions, groups)
    return Tuned(
        task=task,
        names=tuple(names),
        metric=metric.name,
        tried=kind,
        tuning=tuning if is_gain(metric, difference) else Tuning(),
        untuned=finite(untuned),
        nested=finite(metric.function(targets, nested)),
        **dict(zip(("gain", "low", "high"), map(finite, difference), strict=True)),
        optimistic=finite(metric.function(targets, tuner.apply(task, tuning, predictions))),
    )


def thin_out(predictions: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that a fit looks at, the same whatever they hold."""
    num_rows = max(LEAST_ROWS, NUM_CELLS // targets.shape[1])
    if len(targets) <= num_rows:
        return predictions, targets
    rows = np.random.default_rng(seed_of("tuning", len(targets))).choice(len(targets), num_rows, replace=False)
    return predictions[rows], targets[rows]


def finite(score: float) -> float | None:
    return float(score) if np.isfinite(score) else None


def read_tuned(text: str, source: str) -> Tuned:
    """What `Tuned.model_dump_json` wrote. Raises UserError, one line a problem, when it is anything else."""
    try:
        return Tuned.model_validate_json(text)
    except ValidationError as error:
        problems = [line for problem in error.errors() for line in describe_problem(Tuned, source, problem)]
        raise UserError(f"{'; '.join(problems)}: run stack.py --overwrite again") from None
