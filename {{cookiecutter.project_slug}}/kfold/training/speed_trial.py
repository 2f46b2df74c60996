"""Real training steps on a copy of the model, to time ways to compute them, and to see that they compute the same.

A way to compute is sane where a step on 16 random images has a finite loss within 5% of float32's, and a gradient that
is within a quarter as long and points the same way: a cosine of 0.7 or more. Measured between bfloat16 and float32 on
10 networks with random weights: loss within 1.5%, length within 2%, cosine 0.98 to 1.00. Of tf_efficientnet_lite0 with
ImageNet's weights the cosine is 0.77 to 0.87, where gradients of two batches have 0.0 to 0.1, and it learns as well:
on photographs, three seeds of two folds, bfloat16 changed the accuracy of 0.624 by -0.002 (-0.037 to +0.033). A
compiled step is compared with the same step before compiling.
"""

import contextlib
import io
import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from kfold.data.loader import Batch
from kfold.errors import UserError
from kfold.model.weights import ModelCard
from kfold.training.compiling import compiled_forward, first_line
from kfold.training.freed_memory import keep_freed_memory
from kfold.training.objective import Objective
from kfold.training.profiling import synchronize
from kfold.training.rewind import generators_kept
from kfold.training.speed import Speed, arrange, set_depthwise
from kfold.training.speed_search import Unfit
from kfold.training.state import Training
from kfold.training.step import Moment
from kfold.training.trial import trial_step

NUM_SANE_IMAGES = 16  # with 4, BatchNorm lets rounding turn the gradient of a small network by 25 degrees
LOSS_WITHIN, LENGTH_WITHIN, LEAST_COSINE = 0.05, 0.25, 0.7
TURN_SECONDS, MAX_STEPS = 0.05, 10  # a turn lasts so long, or so many steps
GUESSES = 3

Gradient = tuple[float, torch.Tensor]  # loss, and the gradient of all weights in one


@dataclass(frozen=True)
class Rig:
    """What a trial makes its copies from.

    make_optimizer: (model, fused) -> its optimizer. make_objective: model -> what its steps minimise. start: sets the
    modes of a model as in training. accumulate: parts that a batch is split into.
    """

    model: nn.Module
    make_optimizer: Callable[[nn.Module, bool], torch.optim.Optimizer]
    make_objective: Callable[[nn.Module, Speed], Objective]
    start: Callable[[nn.Module], None]
    card: ModelCard
    device: torch.device
    accumulate: int = 1
    clip_grad: float = 0.0


@dataclass
class Bench:
    """Steps on a batch, one way or another. Memory: a copy of the model for each layout, an optimizer for each kind."""

    rig: Rig
    batch: Batch  # that is timed
    sample: Batch  # that gradients are compared on
    now: Callable[[], float] = time.perf_counter
    models: dict[bool, nn.Module] = field(default_factory=dict)  # by channels_last
    optimizers: dict[tuple[bool, bool], torch.optim.Optimizer] = field(default_factory=dict)  # and by fused
    trainings: dict[Speed, tuple[Training, Objective]] = field(default_factory=dict)
    steps_a_turn: dict[Speed, int] = field(default_factory=dict)
    reference: Gradient | None = None  # float32's, of the sample
    is_keeping: bool = False  # freed memory

    def prepare(self, speed: Speed) -> float:
        """Check that it is sane, and warm up; seconds of compiling. Raises Unfit."""
        try:
            compile_seconds = self.check_compiled(speed) if speed.compiled else self.check(speed)
            if len(self.batch.images) != len(self.sample.images):  # else the check has warmed it up
                self.seconds_of(speed, 1)
            seconds = self.seconds_of(speed, 1)
        except (UserError, RuntimeError) as error:  # full memory, a network that cannot take the layout, no compiler
            raise Unfit(first_line(error)) from None
        self.steps_a_turn[speed] = min(MAX_STEPS, math.ceil(TURN_SECONDS / max(seconds, 1e-6)))
        return max(0.0, compile_seconds - seconds)

    def check(self, speed: Speed) -> float:
        """Raises Unfit; 0 seconds of compiling."""
        if self.reference is None:
            self.reference = self.gradient(Speed(), self.sample, False)
        refuse_insane(self.gradient(speed, self.sample, False), self.reference)
        return 0.0

    def check_compiled(self, speed: Speed) -> float:
        """The same, on the very batch: another shape, or dropout switched off, would be compiled, too."""
        wanted = self.gradient(replace(speed, compiled=False), self.batch)
        started = self.now()
        found = self.gradient(speed, self.batch)
        seconds = self.now() - started
        refuse_insane(found, wanted)
        return seconds

    def seconds_an_image(self, speed: Speed) -> float:
        """A first guess, from the sample: the fastest of three steps, after one that warms up."""
        self.gradient(speed, self.sample)
        seconds = []
        for _ in range(GUESSES):  # of a single one, a busy machine made minutes of timing for a demo of minutes
            started = self.now()
            self.gradient(speed, self.sample)
            seconds.append(self.now() - started)
        return min(seconds) / len(self.sample.images)

    def turn(self, speed: Speed) -> float:
        """Seconds a step; without the first one after a change of kept memory, whose pages are fresh."""
        if speed.keep_memory != self.is_keeping:
            self.seconds_of(speed, 1)
        num_steps = self.steps_a_turn[speed]
        return self.seconds_of(speed, num_steps) / num_steps

    def seconds_of(self, speed: Speed, num_steps: int) -> float:
        training, objective = self.training_of(speed)
        synchronize(self.rig.device)
        started = self.now()
        for _ in range(num_steps):
            self.step(speed, training, objective, self.batch)
        synchronize(self.rig.device)
        return self.now() - started

    def gradient(self, speed: Speed, batch: Batch, with_dropout: bool = True) -> Gradient:
        """Of the loss of logits alone; dropout draws other numbers in another format."""
        training, objective = self.training_of(speed)
        plain = replace(objective, terms=(), ohem_share=1.0, flooding=0.0)
        with contextlib.nullcontext() if with_dropout else without_dropout(training.model):
            loss = self.step(speed, training, plain, batch)
        parts = [weight.grad.float().flatten() for weight in training.model.parameters() if weight.grad is not None]
        return loss, torch.cat(parts)

    def step(self, speed: Speed, training: Training, objective: Objective, batch: Batch) -> float:
        """The loss. The rate is 0, so that weights stay those of the model. Raises Unfit where memory is too small."""
        rig, moment = self.rig, Moment(0, 0, 0.0, 0.0, 0, self.rig.clip_grad)
        with contextlib.redirect_stdout(io.StringIO()):  # a batch that is split says so: none of the run's is
            loss = trial_step(training, rig.card, objective, batch, moment, rig.device, speed.precision("trial"))
        if training.accumulate != rig.accumulate:
            raise Unfit("the memory is too small for a batch in one piece")
        return loss

    def training_of(self, speed: Speed) -> tuple[Training, Objective]:
        """What `speed` computes with, arranged for it."""
        model = self.models.get(speed.channels_last)
        if model is None:
            model = self.models[speed.channels_last] = deepcopy(self.rig.model)
            arrange(model, speed)
            self.rig.start(model)
        if (speed.channels_last, speed.fused) not in self.optimizers:
            self.optimizers[speed.channels_last, speed.fused] = self.rig.make_optimizer(model, speed.fused)
        if speed not in self.trainings:
            training = Training(
                model,
                self.optimizers[speed.channels_last, speed.fused],
                torch.amp.GradScaler(self.rig.device.type, enabled=speed.dtype == "float16"),
                accumulate=self.rig.accumulate,
                forward=compiled_forward(model) if speed.compiled else None,
            )
            self.trainings[speed] = training, self.rig.make_objective(model, speed)
        set_depthwise(model, speed.depthwise_float32)
        if speed.keep_memory != self.is_keeping:
            keep_freed_memory(speed.keep_memory)
            self.is_keeping = speed.keep_memory
        return self.trainings[speed]


def refuse_insane(found: Gradient, wanted: Gradient) -> None:
    """Raise Unfit by the rule at the head of this file."""
    (loss, gradient), (wanted_loss, wanted_gradient) = found, wanted
    if not math.isfinite(loss) or not bool(gradient.isfinite().all()):
        raise Unfit("its loss or gradient is not finite")
    if abs(loss - wanted_loss) > LOSS_WITHIN * abs(wanted_loss):
        raise Unfit(f"its loss is {loss:.4g}, float32's is {wanted_loss:.4g}")
    lengths = gradient.double().norm().item(), wanted_gradient.double().norm().item()
    if 0 in lengths:
        raise Unfit("its gradient is 0") if lengths[0] != lengths[1] else None
    cosine = torch.dot(gradient.double(), wanted_gradient.double()).item() / (lengths[0] * lengths[1])
    if cosine < LEAST_COSINE:
        raise Unfit(f"its gradient points elsewhere than float32's (cosine {cosine:.2f})")
    if abs(lengths[0] / lengths[1] - 1) > LENGTH_WITHIN:
        raise Unfit(f"its gradient is {lengths[0] / lengths[1]:.2f} times as long as float32's")


@contextlib.contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Dropout and drop path switched off."""
    kinds = (nn.Dropout, nn.Dropout2d)
    drops = [module for module in model.modules() if isinstance(module, kinds) or hasattr(module, "drop_prob")]
    modes = [module.training for module in drops]
    for module in drops:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(drops, modes, strict=True):
            module.training = mode


def random_batch(size: int, targets: torch.Tensor, weights: torch.Tensor) -> Batch:
    """Images of noise, (B, size, size, 3) uint8, with targets and weights (B, C)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(targets), size, size, 3), dtype=torch.uint8, generator=generator)
    return Batch(images, targets, weights, torch.arange(len(targets)), [])


@contextlib.contextmanager
def trial_of(rig: Rig, batch: Batch, sample: Batch) -> Iterator[Bench]:
    """A bench; afterwards generators and allocator are as before it. The model itself is never touched."""
    bench = Bench(rig, batch, sample)
    with generators_kept():
        try:
            yield bench
        finally:
            if bench.is_keeping:
                keep_freed_memory(False)
            for made in (bench.models, bench.optimizers, bench.trainings):
                made.clear()
            if rig.device.type == "cuda":
                torch.cuda.empty_cache()
