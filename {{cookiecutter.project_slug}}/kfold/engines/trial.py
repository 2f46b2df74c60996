"""Which way to predict: the fastest on this machine of those whose predictions stay near float32's."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from kfold.engines.inference import Inference
from kfold.engines.ready import EXACT
from kfold.errors import UserError

ROUNDS = 3
COMPILE_SECONDS = 30  # to decide whether to try at all; then it is measured. One compilation serves all folds' models

Run = Callable[[], torch.Tensor]  # the logits (B, C) of the batch that ways are tried with


@dataclass(frozen=True)
class Tried:
    inference: Inference
    seconds: float  # a batch, median of ROUNDS; infinite where it does not run
    error: float  # largest difference from float32, as ready.difference measures it
    limit: float  # that is allowed


@dataclass(frozen=True)
class Race:
    """What a trial needs.

    run_of: (way, place of a model) -> what runs it. difference: of two logits. limit_of: how far a way may be away from
    float32. num_models: of one run, one a fold. num_batches: all that is to be done, views and models counted.
    num_shapes: different sizes of images among the views, each of which is compiled by itself.
    """

    run_of: Callable[[Inference, int], Run]
    difference: Callable[[torch.Tensor, torch.Tensor], float]
    limit_of: Callable[[Inference], float]
    num_models: int
    num_batches: int
    num_shapes: int = 1
    clock: Callable[[], float] = time.perf_counter


def choose_inference(ways: Sequence[Inference], race: Race) -> tuple[Inference, list[Tried]]:
    """The fastest way that is near enough for every model, and all that were tried.

    The race is run with the first model. Raises UserError where no way is near enough.
    """
    runs: dict[Inference, Run] = {}
    reference = race.run_of(Inference(), 0)()
    tried = [try_way(way, race, reference, runs) for way in ways]
    tried = measure(tried, race, runs)
    for best in sorted(tried, key=lambda one: one.seconds):
        if best.error <= best.limit and is_near_for_all(best, race):
            break
    else:
        nearest = min(tried, key=lambda one: one.error)
        raise UserError(
            f"{nearest.inference}: its predictions are {nearest.error:.2g} away from float32's at most, allowed is "
            f"{nearest.limit:.2g}: give --engine torch, or a larger --tolerance"
        )
    cost = race.num_shapes * COMPILE_SECONDS
    if best.inference.engine != "torch" or not repays(best.seconds / 2, cost, best.seconds, race):
        return best.inference, tried
    started = race.clock()
    compiled = try_way(replace(best.inference, compiled=True), race, reference, runs)
    cost = (race.num_shapes - 1) * (race.clock() - started)  # what is still to be paid
    again, compiled = measure([best, compiled], race, runs)
    tried = [*(one for one in tried if one is not best), again, compiled]
    is_better = compiled.error <= compiled.limit and repays(compiled.seconds, cost, again.seconds, race)
    return (compiled if is_better else again).inference, tried


def try_way(way: Inference, race: Race, reference: torch.Tensor, runs: dict[Inference, Run]) -> Tried:
    """A first run, without its time; what runs it goes into `runs`."""
    try:
        run = race.run_of(way, 0)
        error = race.difference(run(), reference)
    except RuntimeError:  # no kernel for it, no compiler, no memory
        return Tried(way, float("inf"), float("inf"), race.limit_of(way))
    runs[way] = run
    return Tried(way, float("inf"), error, race.limit_of(way))


def measure(tried: Sequence[Tried], race: Race, runs: dict[Inference, Run]) -> list[Tried]:
    """The same with times of ROUNDS rounds, one after the other in each, so that a slow moment falls on all."""
    seconds: dict[Inference, list[float]] = {one.inference: [] for one in tried if one.inference in runs}
    for _ in range(ROUNDS):
        for way in seconds:
            started = race.clock()
            runs[way]()
            seconds[way].append(race.clock() - started)
    return [
        replace(one, seconds=statistics.median(seconds[one.inference])) if one.inference in seconds else one
        for one in tried
    ]


def is_near_for_all(best: Tried, race: Race) -> bool:
    """Whether the other models agree with float32, too."""
    if best.inference == Inference():
        return True
    try:
        return all(
            race.difference(race.run_of(best.inference, place)(), race.run_of(Inference(), place)()) <= best.limit
            for place in range(1, race.num_models)
        )
    except RuntimeError:
        return False


def repays(seconds: float, cost: float, seconds_now: float, race: Race) -> bool:
    """Whether `cost` seconds at once and then `seconds` a batch are less than `seconds_now` a batch."""
    return cost + race.num_batches * seconds < race.num_batches * seconds_now


def describe(tried: Sequence[Tried], chosen: Inference, batch_size: int, what: str) -> list[str]:
    """Lines for a person. what: differences are of, such as `probability`."""
    limits = sorted({one.limit for one in tried if one.inference.dtype != "float32" and not one.inference.is_plain})
    allowed = f"{EXACT:.0e}" + "".join(f", of less than float32 {limit:.2g}" for limit in limits)
    parts = [
        f"{one.inference} {1000 * one.seconds:.1f} ({one.error:.1e})" if one.seconds < float("inf") else
        f"{one.inference} does not run"
        for one in tried
    ]  # fmt: skip
    return [
        f"ms a batch of {batch_size} images (largest difference of a {what} from float32; allowed {allowed}):",
        f"{'; '.join(parts)}; taken: {chosen}",
    ]
