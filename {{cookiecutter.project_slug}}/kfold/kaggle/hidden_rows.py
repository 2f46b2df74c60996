"""Predictions of test rows by runs that were chosen, and scored out of fold, elsewhere.

Nothing is chosen again: weights, shares and views are those of the manifests. How models are computed is settled for
this machine, and no image is cached, because each is read once.
"""

import time

import numpy as np

from kfold import artifacts
from kfold.artifacts import ALL_DATA, Workspace
from kfold.config import Competition, load_config
from kfold.data.folds import Folds, take_rows
from kfold.data.targets import Targets
from kfold.engines.held import Held
from kfold.ensemble.tta import make_views
from kfold.inference import Pending
from kfold.inference_choice import NO_WISH, settle_inference
from kfold.kaggle.budget import Cost
from kfold.kaggle.contents import weights_of
from kfold.metrics import Metric
from kfold.prediction_job import Job, Wanted, predict_rows
from kfold.predictions import Predictions, write_predictions

NUM_TIMED = 256  # test images that a run's speed is measured on; fewer are just predicted


def open_run(
    workspace: Workspace,
    run: str,
    facts: Competition,
    folds: Folds,
    targets: Targets,
    metric: Metric,
    test_ids: np.ndarray,
    held: Held,
    all_data: bool = False,
) -> Job:
    """The run, ready to predict. Raises UserError for other folds or settings, or weights that are damaged."""
    config = load_config(workspace.run_config_path(run)).model_copy(update={"cache": "off", "workers": "auto"})
    if config.limit:
        folds = take_rows(folds, config.limit)
    manifests = {}
    for number in [ALL_DATA] if all_data else workspace.trained_folds(run):
        folder = workspace.fold_dir(run, number)
        artifacts.is_done(workspace, run, number, folds.stamp)
        manifests[number] = artifacts.read_manifest(folder)
        artifacts.verify_files(folder, manifests[number], weights_of(manifests[number]))
    # No fold is held out: nothing is predicted but test rows.
    job = Job(workspace, run, facts, config, folds, targets, metric, [], manifests, test_ids, held)
    kind, view = (next(iter(manifests.values()))["predicted"][key] for key in ("weights", "tta"))
    job.inference = settle_inference(job, NO_WISH, None, [kind], [view])
    return job


def view_of(job: Job) -> str:
    """The set of views that the run was predicted with."""
    return next(iter(job.manifests.values()))["predicted"]["tta"]


def measure(job: Job) -> Cost:
    """Seconds an image, reading and all folds included, by the first test images."""
    view, ids = view_of(job), job.test_ids[:NUM_TIMED]
    plain = seconds_an_image(job, "none", ids)
    is_plain = len(make_views(view, job.config.image_size)) == 1
    cost = Cost(plain if is_plain else seconds_an_image(job, view, ids), plain)
    job.workers.clear()  # so many images may want others than so few
    return cost


def seconds_an_image(job: Job, view: str, ids: np.ndarray) -> float:
    wanted = [
        Wanted(job, number, name, view) for number, manifest in job.manifests.items() for name in manifest["weights"]
    ]
    predict_rows(wanted, ids[: job.batch_size], job.facts.test_images, {})  # loads the models, and starts the device
    started = time.perf_counter()
    predict_rows(wanted, ids, job.facts.test_images, {})
    return (time.perf_counter() - started) / len(ids)


def to_predict(job: Job, with_views: bool) -> list[Pending]:
    """Every fold of the run, as predict.py leaves them to `predict_test`."""
    view, found = view_of(job) if with_views else "none", []
    for number, manifest in job.manifests.items():
        request = {**manifest["predicted"], "tta": view}
        found.append(Pending(job, number, manifest["kind"], view, manifest["weights"], request))
    return found


def write_test(fold: Pending, test: np.ndarray) -> None:
    """The fold's test.parquet, and its place in the manifest."""
    job, folder = fold.job, fold.job.workspace.fold_dir(fold.job.run, fold.number)
    path = job.workspace.predictions_path(job.run, fold.number, "test")
    facts = artifacts.read_manifest(folder)
    files = {name: entry for name, entry in facts.pop("files").items() if name != path.name}
    stamps = artifacts.stamps(
        job.folds.stamp, job.config, job.facts.task, facts["weights_sha256"], fold.kind, fold.view
    )
    write_predictions(path, Predictions(job.test_ids, test, job.targets.names, stamps))
    artifacts.write_manifest(folder, facts | {"predicted": dict(fold.request)}, [path.name], files)
