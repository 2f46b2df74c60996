"""A run that is being predicted, and the pass over images that serves many of its models, or several runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from kfold.artifacts import Workspace
from kfold.config import Competition, Config
from kfold.data.augment import eval_transform
from kfold.data.cache import Pixels
from kfold.data.folds import Folds
from kfold.data.images import image_paths
from kfold.data.loader import EpochOrder, Images, ThreadLoader, make_loader, read_batches
from kfold.data.progress import with_bar
from kfold.data.targets import Targets
from kfold.data.workers import workers_for
from kfold.engines.held import Held
from kfold.engines.inference import PLAIN, Inference, device_of
from kfold.engines.one_pass import Look, Seen, look_at_all
from kfold.engines.ready import Ready, make_ready
from kfold.ensemble.tta import make_views
from kfold.errors import UserError
from kfold.metrics import Metric
from kfold.model.build import has_fixed_input
from kfold.model.weights import ModelCard, load_model, normalize
from kfold.setup.pixels import cached_pixels, read_record, recorded_pixels
from kfold.training.precision import choose_device
from kfold.training.speed import prediction_speed


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
    test_ids: np.ndarray
    held: Held[Ready]
    inference: Inference = PLAIN
    workers: dict[str, int | str] = field(default_factory=dict)  # that get the images of a folder ready
    done: dict[tuple[int, str, str], tuple[np.ndarray, float]] = field(default_factory=dict)

    @property
    def rows(self) -> np.ndarray:
        """Mask (N,): rows of a trained fold."""
        return np.isin(self.folds.fold, self.numbers)

    @property
    def device(self) -> torch.device:
        return device_of(self.inference.engine, choose_device())

    @property
    def batch_size(self) -> int:
        return 2 * self.config.batch_size

    @property
    def reading(self) -> tuple[object, ...]:
        """Runs that agree in it can share a pass; the batch's size counts, because sums depend on it in their last
        digit: a run has the same predictions alone and in company."""
        rule = read_record(self.workspace, self.run)  # of the pixels
        return self.config.image_size, self.config.center_crop, self.batch_size, self.device.type, rule

    def held_out_ids(self, number: int) -> np.ndarray:
        return self.folds.ids[self.folds.fold == number]

    @cached_property
    def probe(self) -> torch.Tensor:
        """One batch (B, H, W, 3) uint8 of held-out images, or of test images where none is held out; black ones for
        what cannot be read."""
        ids, name = self.test_ids, self.facts.test_images
        if self.numbers:
            ids, name = self.held_out_ids(self.numbers[0]), self.facts.train_images
        images = self.images(ids[: self.batch_size], name)[0]
        return images.__getitems__([(0, row) for row in range(len(images))]).images

    @cached_property
    def cached(self) -> Pixels:
        """What a cache holds of all the run's images: its index is as long for one fold as for all."""
        facts, paths = self.facts, []
        for name, ids in ((facts.train_images, self.folds.ids), (facts.test_images, self.test_ids)):
            paths += image_paths(self.workspace.data_path(facts, name), ids, facts.image_suffix)[0]
        return cached_pixels(self.workspace, self.run, self.config, paths)

    def images(self, ids: np.ndarray, image_dir_name: str, times: int = 1) -> tuple[Images, dict[int, str]]:
        """The images as the run's models see them, and the rows whose id leads out of the folder, with what is wrong.

        times: that they are going to be read.
        """
        image_dir, size = self.workspace.data_path(self.facts, image_dir_name), self.config.image_size
        paths, refused = image_paths(image_dir, ids, self.facts.image_suffix)
        pixels = self.cached
        if not pixels.holds(paths):
            pixels = recorded_pixels(self.workspace, self.run, self.config, paths, times, lambda: None)
        transform = eval_transform(size, self.config.center_crop)
        return Images(paths, np.zeros((len(paths), 0)), transform, size, read=pixels.reader(paths)), refused

    def batches(self, images: Images, image_dir_name: str) -> DataLoader | ThreadLoader:
        order = EpochOrder(len(images), self.batch_size, False)
        if image_dir_name not in self.workers:
            self.workers[image_dir_name] = workers_for(images, order, self.config.workers, self.device)
        return make_loader(images, order, self.workers[image_dir_name], self.device)


@dataclass(frozen=True)
class Wanted:
    """Predictions of one weights file under a set of views."""

    job: Job
    number: int
    name: str
    view: str

    @property
    def path(self) -> Path:
        return self.job.workspace.fold_dir(self.job.run, self.number) / self.name


def num_bytes(path: Path, inference: Inference) -> int:
    """What a model of that weights file takes; an engine keeps weights of its own beside PyTorch's."""
    return path.stat().st_size * (1 if inference.engine == "torch" else 2)


def way_of(job: Job, number: int, inference: Inference) -> Inference:
    """PLAIN said in full for a fold: how it was trained, so that its test rows are computed as its held-out ones."""
    if not inference.is_plain:
        return inference
    speed = prediction_speed(job.manifests[number], job.config.precision, choose_device())
    return Inference(speed.dtype, speed.channels_last, speed.depthwise_float32)


def load_ready(wanted: Wanted, inference: Inference) -> Ready:
    """The model of a weights file, made ready in that way. Raises UserError where it is one of other targets."""
    job, path, way = wanted.job, wanted.path, way_of(wanted.job, wanted.number, inference)
    model, card = load_model(path)
    if (card.task, card.names) != (job.facts.task, job.targets.names):
        raise UserError(
            f"{path.parent}: trained for other targets than competition.yaml and train.csv now give: train again"
        )
    probe = normalized_probe(job, card) if way.fold_batchnorm else torch.empty(0)
    return make_ready(model, card, way, device_of(way.engine, choose_device()), job.batch_size, probe)


def normalized_probe(job: Job, card: ModelCard) -> torch.Tensor:
    """(B, 3, S, S) float32 on the CPU."""
    return normalize(job.probe, card.mean, card.std)


def make_look(wanted: Wanted) -> Look:
    job, path = wanted.job, wanted.path
    key, size = (path, job.inference), num_bytes(path, job.inference)
    ready = job.held.get(key, size, lambda: load_ready(wanted, job.inference))
    views = make_views(wanted.view, job.config.image_size, has_fixed_input(ready.card.backbone))
    return Look(ready, wanted.view, views)


def predict_rows(
    wanted: Sequence[Wanted],
    ids: np.ndarray,
    image_dir_name: str,
    unreadable: dict[int, str] | None = None,
    timed: bool = False,
    times: int = 1,
) -> list[Seen]:
    """One pass, of so many `times`, over the images for all that is wanted, whose jobs agree in `reading`.

    Rows of unreadable images, and of ids that lead out of their folder, go into `unreadable`; without it they raise.
    """
    job = wanted[0].job
    looks = [make_look(one) for one in wanted]
    images, refused = job.images(ids, image_dir_name, times)
    if refused and unreadable is None:
        raise UserError(list(refused.values()))
    loader = job.batches(images, image_dir_name)
    folds = sorted({one.path.parent.name for one in wanted})
    title = f"{image_dir_name} {' '.join(folds)} x {sum(len(look.views) for look in looks) // len(folds)}"
    batches = with_bar(read_batches(loader), title, len(ids))
    on_problem = None if unreadable is None else unreadable.__setitem__
    seen = look_at_all(looks, batches, len(ids), job.device, on_problem, timed)
    if unreadable is not None:
        unreadable.update(refused)
    return seen
