"""Predictions of runs for predict.py: of held-out rows while it chooses, then of test rows, all folds in one pass."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kfold.artifacts import ALL_DATA
from kfold.engines.held import groups_that_fit
from kfold.ensemble.blend import hill_climb
from kfold.ensemble.choice import Candidate
from kfold.ensemble.nested import nested_predictions
from kfold.ensemble.second_level import Rows
from kfold.prediction_job import Job, Wanted, num_bytes, predict_rows

Shares = Mapping[str, float]  # weights files of a fold and their shares in the mean of probabilities


def out_of_fold(job: Job, pairs: Sequence[tuple[str, str]]) -> list[Candidate]:
    """Of each pair (a kind of weights, a set of views): predictions (rows of trained folds, C), and an image's cost."""
    for number in job.numbers:
        names = [(name, view) for kind, view in pairs for name in files_of(job, kind, number)]
        predict_held_out(job, number, list(dict.fromkeys(names)))
    return [one_out_of_fold(job, kind, view) for kind, view in pairs]


def one_out_of_fold(job: Job, kind: str, view: str) -> Candidate:
    merged = np.zeros(job.targets.values.shape, np.float32)
    milliseconds = []
    for number in job.numbers:
        shares = shares_of(job, kind, view, number)
        parts = [fold_predictions(job, number, name, view) for name in shares]
        merged[job.folds.fold == number] = mix([values for values, _ in parts], shares)
        milliseconds.append(sum(cost for _, cost in parts))
    return Candidate(merged[job.rows], float(np.median(milliseconds)))


def mix(parts: Sequence[np.ndarray], shares: Shares) -> np.ndarray:
    """The mean (N, C) of several weights' predictions, by their shares."""
    return np.average(np.array(parts, np.float64), axis=0, weights=list(shares.values())).astype(np.float32)


def files_of(job: Job, kind: str, number: int) -> list[str]:
    """The weights files of a fold that a kind is made of, or chosen among."""
    if kind in ("snapshots", "climbed"):
        files = sorted(name for name in job.manifests[number]["files"] if name.startswith("snapshot"))
        return sorted(files, key=len)  # snapshot10 after snapshot9
    if kind == "best" and number == ALL_DATA:
        kind = "last"  # nothing was held out that could say which epoch is best
    return [f"{kind}.safetensors"]


def shares_of(job: Job, kind: str, view: str, number: int) -> Shares:
    """The weights files of a fold that make up a kind.

    climbed: the snapshots by hill climbing, fitted without the rows of the fold, so that its score stays honest.
    """
    files = files_of(job, kind, number)
    if kind != "climbed":
        return dict.fromkeys(files, 1 / len(files))
    rows = job.rows
    snapshots = np.zeros((len(files), *job.targets.values.shape), np.float32)
    for fold in job.numbers:
        for position, name in enumerate(files):
            snapshots[position, job.folds.fold == fold] = fold_predictions(job, fold, name, view)[0]
    second_level = Rows(snapshots[:, rows], job.folds.fold[rows])
    _, fitted = nested_predictions(hill_climb, second_level, job.targets.values[rows], job.facts.task, job.metric)
    shares = fitted[number].model if number in fitted else np.mean([fit.model for fit in fitted.values()], axis=0)
    return {name: float(share) for name, share in zip(files, shares, strict=True) if share > 0}


def fold_predictions(job: Job, number: int, name: str, view: str) -> tuple[np.ndarray, float]:
    """Out-of-fold predictions (n, C) of one weights file under a set of views, and milliseconds an image."""
    predict_held_out(job, number, [(name, view)])
    return job.done[number, name, view]


def predict_held_out(job: Job, number: int, names: Sequence[tuple[str, str]]) -> None:
    """What is not in `job.done` yet of (weights file, set of views): the images are read once for as many as fit."""
    ids = job.held_out_ids(number)
    wanted = [Wanted(job, number, name, view) for name, view in names if (number, name, view) not in job.done]
    sizes = [num_bytes(one.path, job.inference) for one in wanted]
    for places in groups_that_fit(sizes, job.held.budget):
        group = [wanted[place] for place in places]
        for one, seen in zip(group, predict_rows(group, ids, job.facts.train_images, timed=True), strict=True):
            job.done[number, one.name, one.view] = seen.values, 1000 * seen.seconds / len(ids)


@dataclass(frozen=True)
class Pending:
    """A fold whose predictions are to be written. request: what its manifest will say that they were made with."""

    job: Job
    number: int
    kind: str
    view: str
    shares: Shares
    request: Mapping[str, object]

    @property
    def folder(self) -> Path:
        return self.job.workspace.fold_dir(self.job.run, self.number)

    @property
    def wanted(self) -> list[Wanted]:
        return [Wanted(self.job, self.number, name, self.view) for name in self.shares]

    @property
    def num_bytes(self) -> int:
        return sum(num_bytes(one.path, self.job.inference) for one in self.wanted)


def predict_test(pending: Sequence[Pending]) -> Iterator[tuple[Pending, np.ndarray, dict[int, str]]]:
    """Each fold with its shard's test predictions (N, C), and the rows of images that cannot be read, with the reason.

    The test images are read once for all folds of all runs that agree in `Job.reading` and fit into memory together.
    """
    readings: dict[tuple, list[Pending]] = {}
    for fold in pending:
        readings.setdefault(fold.job.reading, []).append(fold)
    for folds in readings.values():
        if not len(folds[0].job.ids_to_predict):  # more shards than batches
            yield from [(fold, np.zeros((0, len(fold.job.targets.names)), np.float32), {}) for fold in folds]
            continue
        groups = groups_that_fit([fold.num_bytes for fold in folds], folds[0].job.held.budget)
        if len(groups) > 1:
            print(f"the memory holds the models of {len(groups[0])} folds of {len(folds)}: {len(groups)} passes")
        for places in groups:
            group = [folds[place] for place in places]
            wanted = [one for fold in group for one in fold.wanted]
            unreadable: dict[int, str] = {}
            job = group[0].job
            ids = job.ids_to_predict
            seen = iter(predict_rows(wanted, ids, job.facts.test_images, unreadable, times=len(groups)))
            for fold in group:
                yield fold, mix([next(seen).values for _ in fold.shares], fold.shares), unreadable
