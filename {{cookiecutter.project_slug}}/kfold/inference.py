"""Predictions of a run, fold by fold, for predict.py: of held-out rows while it chooses, then of test rows."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from kfold.artifacts import ALL_DATA, Workspace
from kfold.config import Competition, Config
from kfold.data.augment import eval_transform
from kfold.data.folds import Folds
from kfold.data.images import image_paths
from kfold.data.loader import EpochOrder, Images, make_loader, read_batches
from kfold.data.targets import Targets
from kfold.data.workers import workers_for
from kfold.ensemble.blend import hill_climb
from kfold.ensemble.choice import Candidate
from kfold.ensemble.nested import nested_predictions
from kfold.ensemble.second_level import Rows
from kfold.ensemble.tta import make_views
from kfold.errors import UserError
from kfold.metrics import Metric
from kfold.model.weights import load_model
from kfold.setup.pixels import recorded_pixels
from kfold.training.precision import choose_device, choose_precision
from kfold.training.predicting import predict_logits, to_target_units

Shares = Mapping[str, float]  # weights files of a fold and their shares in the mean of probabilities


@dataclass
class Job:
    """What every prediction of a run needs, and the out-of-fold predictions that were made so far."""

    workspace: Workspace
    run: str
    facts: Competition
    config: Config
    folds: Folds
    targets: Targets
    metric: Metric
    numbers: list[int]  # trained folds
    manifests: dict[int, dict]
    done: dict[tuple[int, str, str], tuple[np.ndarray, float]] = field(default_factory=dict)
    workers: dict[str, int | str] = field(default_factory=dict)  # by folder of images; measured once

    @property
    def rows(self) -> np.ndarray:
        """Mask (N,): rows of a trained fold."""
        return np.isin(self.folds.fold, self.numbers)


def out_of_fold(job: Job, kind: str, view: str) -> Candidate:
    """Predictions (rows of trained folds, C) of a kind of weights under a set of views, and what an image costs."""
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


def shares_of(job: Job, kind: str, view: str, number: int) -> Shares:
    """The weights files of a fold that make up a kind.

    climbed: the snapshots by hill climbing, fitted without the rows of the fold, so that its score stays honest.
    """
    files = sorted(name for name in job.manifests[number]["files"] if name.startswith("snapshot"))
    files.sort(key=len)  # snapshot10 after snapshot9
    if kind == "snapshots":
        return dict.fromkeys(files, 1 / len(files))
    if kind == "best" and number == ALL_DATA:
        kind = "last"  # nothing was held out that could say which epoch is best
    if kind != "climbed":
        return {f"{kind}.safetensors": 1.0}
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
    key = (number, name, view)
    if key not in job.done:
        ids = job.folds.ids[job.folds.fold == number]
        started = time.perf_counter()
        values = predict_images(job, number, name, view, ids, job.facts.train_images)
        job.done[key] = values, 1000 * (time.perf_counter() - started) / len(ids)
    return job.done[key]


def predict_images(
    job: Job,
    number: int,
    name: str,
    view: str,
    ids: np.ndarray,
    image_dir_name: str,
    unreadable: dict[int, str] | None = None,
) -> np.ndarray:
    """The mean (n, C) over the views. Rows of unreadable images, and of ids that lead out of their folder, go into
    `unreadable`; without it they raise."""
    folder = job.workspace.fold_dir(job.run, number)
    model, card = load_model(folder / name)
    if (card.task, card.names) != (job.facts.task, job.targets.names):
        raise UserError(
            f"{folder}: trained for other targets than competition.yaml and train.csv now give: train again"
        )
    device = choose_device()
    views = make_views(view, card.image_size, bool(model.backbone.pretrained_cfg.get("fixed_input_size")))
    image_dir = job.workspace.data_path(job.facts, image_dir_name)
    paths, refused = image_paths(image_dir, ids, job.facts.image_suffix)
    if refused and unreadable is None:
        raise UserError(list(refused.values()))
    transform = eval_transform(card.image_size, card.center_crop)
    # Held-out rows lie in the cache that training made; one for test images pays when several models read them.
    times = len(job.numbers) if unreadable is not None else 1
    pixels = recorded_pixels(job.workspace, job.run, job.config, paths, times, lambda: None)
    images = Images(paths, np.zeros((len(ids), 0)), transform, card.image_size, read=pixels.reader(paths))
    order = EpochOrder(len(ids), 2 * job.config.batch_size, False)
    title = f"{image_dir_name} {folder.name} {name.split('.')[0]} {view}"
    if image_dir_name not in job.workers:
        job.workers[image_dir_name] = workers_for(images, order, job.config.workers, device)
    loader = make_loader(images, order, job.workers[image_dir_name], device)
    logits = predict_logits(
        model.to(device),
        tqdm(read_batches(loader), title, len(loader), disable=None, leave=False),
        views,
        card,
        device,
        choose_precision(job.config.precision, device),
        None if unreadable is None else unreadable.__setitem__,
    )
    if unreadable is not None:
        unreadable.update(refused)
    return to_target_units(logits, card).numpy().mean(axis=0)
