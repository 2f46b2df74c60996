"""Which way a run is predicted, held-out and test rows alike: asked for, kept from before, or found by a trial."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from kfold.engines.inference import PLAIN, Inference, candidates, device_of
from kfold.engines.ready import EXACT, difference
from kfold.engines.trial import Race, Run, choose_inference, describe
from kfold.ensemble.tta import make_views
from kfold.errors import UserError
from kfold.inference import files_of
from kfold.prediction_job import Job, Wanted, load_ready, normalized_probe, way_of
from kfold.training.precision import choose_device
from kfold.training.speed import fallback

FEW_BATCHES = 200  # below, a trial (about 25 batches) would hardly repay itself


@dataclass(frozen=True)
class Wish:
    """What the person asks of predict.py; empty: nothing.

    speed: auto (the fastest way by trial) or plain. tolerance: how far a number format of less than float32 may move a
    probability, or a value in standard deviations of the targets, where a trial takes it.
    """

    speed: str = ""
    engine: str = ""
    tolerance: float = 0.01

    def agrees(self, inference: Inference) -> bool:
        right_speed = not self.speed or (self.speed == "plain") == inference.is_plain
        return right_speed and self.engine in ("", inference.engine)


NO_WISH = Wish()


def settle_inference(
    job: Job, wish: Wish, earlier: Inference | None, kinds: Sequence[str], views: Sequence[str]
) -> Inference:
    """The way for all predictions of the run. earlier: that of folds which are done.

    Raises UserError where no way of the engine is near enough to float32.
    """
    engine, device = wish.engine or "torch", choose_device()
    if earlier is None and not wish.speed and job.config.speed == "plain" and engine == "torch":
        wish = replace(wish, speed="plain")  # as it was trained
    if engine != "torch" and wish.speed == "plain":
        raise UserError(f"--speed plain --engine {engine}: plain is PyTorch as it was trained: give one of the two")
    if earlier is not None and wish.agrees(earlier) and (earlier.is_plain or runs_here(job, earlier, kinds)):
        return earlier
    if engine == "torch" and wish.speed == "plain":
        return PLAIN
    ways = candidates(engine, device, job.config.precision)
    if engine == "torch":
        if not wish.speed and count_batches(job, kinds, views) < FEW_BATCHES:
            return PLAIN
        is_exact = all(way_of(job, number, PLAIN) == Inference() for number in job.manifests)
        ways = [PLAIN, *([] if is_exact or job.config.precision != "auto" else [Inference()]), *ways]
    chosen, tried = choose_inference(ways, make_race(job, wish, kinds, views))
    what = "standardised value" if job.facts.task == "regression" else "probability"
    for line in describe(tried, chosen, len(job.probe), what):
        print(f"run {job.run}: {line}")
    return chosen


def say_fallbacks(job: Job) -> None:
    """Name the folds that this machine cannot predict as they were trained."""
    folds: dict[str, list[str]] = {}
    for number, manifest in job.manifests.items():
        if told := fallback(manifest, job.config.precision, choose_device()):
            folds.setdefault(told, []).append(job.workspace.fold_dir(job.run, number).name)
    for told, names in folds.items():
        print(f"run {job.run}: {', '.join(names)}: {told}")


def run_of(job: Job, kind: str, inference: Inference, place: int) -> Run:
    """One batch through the model of a fold, the `place`-th."""
    number = list(job.manifests)[place]
    ready = load_ready(Wanted(job, number, files_of(job, kind, number)[0], "none"), inference)
    images = normalized_probe(job, ready.card).to(device_of(inference.engine, choose_device()))

    @torch.inference_mode()
    def run() -> torch.Tensor:
        return ready.forward(images).cpu()

    return run


def runs_here(job: Job, inference: Inference, kinds: Sequence[str]) -> bool:
    """Whether this machine can go a way that another one may have chosen."""
    try:
        run_of(job, kinds[0], inference, 0)()
    except RuntimeError:  # no kernel, or no compiler
        return False
    return True


def make_race(job: Job, wish: Wish, kinds: Sequence[str], views: Sequence[str]) -> Race:
    def limit_of(inference: Inference) -> float:
        if inference.dtype == "float32":
            return EXACT
        is_as_trained = inference.is_plain or job.config.precision == inference.dtype
        return float("inf") if is_as_trained else wish.tolerance

    probe = torch.zeros(1, 3, job.config.image_size, job.config.image_size)
    return Race(
        partial(run_of, job, kinds[0]),
        lambda logits, others: difference(logits, others, job.facts.task),
        limit_of,
        len(job.manifests),
        count_batches(job, kinds, views),
        len({view(probe).shape for name in views for view in make_views(name, job.config.image_size)}),
    )


def count_batches(job: Job, kinds: Sequence[str], views: Sequence[str]) -> int:
    """How many batches models will see: held-out rows for each kind and view, test rows for the most views."""
    num_views = [len(make_views(view, job.config.image_size)) for view in views]
    held_out = sum(-(-len(job.held_out_ids(number)) // job.batch_size) for number in job.numbers)
    tests = len(job.manifests) * -(-len(job.test_ids) // job.batch_size)
    return held_out * (len(kinds) - 1 + sum(num_views)) + tests * max(num_views)
