"""The trial of ways to predict, on a clock and a device of our own: fast, and never further away than allowed."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from kfold.engines.inference import Inference, candidates
from kfold.engines.ready import EXACT
from kfold.engines.trial import COMPILE_SECONDS, Race, choose_inference, describe
from kfold.errors import UserError

FLOAT32, FOLDED, HALF = (
    Inference(),
    Inference(channels_last=True, fold_batchnorm=True),
    Inference("bfloat16", channels_last=True, fold_batchnorm=True),
)
WAYS = [FLOAT32, FOLDED, HALF]
TOLERANCE = 0.01


class Machine:
    """seconds: of a batch; errors: of each of three models, NaN where the way does not run; by way."""

    def __init__(self, seconds, errors, num_batches=1000, compile_seconds=20.0, num_shapes=1):
        self.seconds, self.errors, self.now, self.num_shapes = seconds, errors, 0.0, num_shapes
        self.num_batches, self.compile_seconds, self.compiled = num_batches, compile_seconds, []

    def run_of(self, way, place):
        is_cold = way.compiled

        def run():
            nonlocal is_cold
            self.now += self.seconds[way] + is_cold * self.compile_seconds
            if way.compiled and is_cold:
                self.compiled.append(way)
            is_cold = False
            if self.errors[way][place] is None:
                raise RuntimeError("no kernel")
            return torch.tensor([self.errors[way][place]])

        return run

    def choose(self, ways=WAYS):
        def limit_of(way):
            return EXACT if way.dtype == "float32" else TOLERANCE

        def difference(logits, others):
            return float((logits - others).abs().nan_to_num(float("inf")))

        race = Race(self.run_of, difference, limit_of, 3, self.num_batches, self.num_shapes, lambda: self.now)
        return choose_inference(ways, race)


COSTS = st.floats(0.001, 1)
ERRORS = st.lists(st.sampled_from([0.0, 5e-5, 0.005, 0.02, float("nan"), None]), min_size=3, max_size=3)


@given(st.tuples(COSTS, COSTS, COSTS), ERRORS, ERRORS)
def test_the_fastest_way_that_is_near_enough_for_all_models_is_taken(costs, folded, half):
    # 50 batches of at most a second are too few to compile for.
    errors = {FLOAT32: [0.0] * 3, FOLDED: folded, HALF: half}
    machine = Machine(dict(zip(WAYS, costs, strict=True)), errors, num_batches=50)
    chosen, tried = machine.choose()
    limits = {FLOAT32: EXACT, FOLDED: EXACT, HALF: TOLERANCE}
    near = [way for way in WAYS if all(error is not None and error <= limits[way] for error in errors[way])]
    assert machine.seconds[chosen] == pytest.approx(min(machine.seconds[way] for way in near))
    assert chosen in near
    assert [one.inference for one in tried] == WAYS
    assert str(chosen) in describe(tried, chosen, 64, "probability")[1]


@example(cost=1.0, factor=0.9, seconds=100.0, num_batches=1000, shapes=3)  # two more compilations would not repay
@given(st.floats(0.001, 1), st.floats(0.1, 1.5), st.floats(0, 200), st.integers(1, 20_000), st.integers(1, 3))
def test_compiling_is_tried_and_taken_only_where_the_batches_repay_it(cost, factor, seconds, num_batches, shapes):
    compiled = replace(FLOAT32, compiled=True)
    errors = {FLOAT32: [0.0] * 3, compiled: [0.0] * 3}
    machine = Machine({FLOAT32: cost, compiled: cost * factor}, errors, num_batches, seconds, shapes)
    chosen, _ = machine.choose([FLOAT32])
    is_tried = num_batches * cost / 2 > shapes * COMPILE_SECONDS
    assert bool(machine.compiled) == is_tried
    # One shape is paid for by the trial. What is measured is a first run, with the compilation in it.
    spent = (shapes - 1) * (seconds + cost * factor) + num_batches * cost * factor
    if is_tried and abs(spent - num_batches * cost) > 1e-6 * spent:
        assert chosen.compiled == (spent < num_batches * cost)
    if not is_tried:
        assert chosen == FLOAT32


def test_a_compiler_that_fails_or_gives_other_numbers_leaves_the_plain_way():
    compiled = replace(FLOAT32, compiled=True)
    for error in (None, 0.5, float("nan")):
        errors = {FLOAT32: [0.0] * 3, compiled: [error] * 3}
        machine = Machine({FLOAT32: 1.0, compiled: 0.01}, errors, 10_000)
        assert machine.choose([FLOAT32])[0] == FLOAT32


def test_a_slow_moment_falls_on_all_ways():
    """The machine is ten times slower for the first round: the order stays."""
    machine = Machine({FLOAT32: 1.0, FOLDED: 0.9, HALF: 2.0}, {way: [0.0] * 3 for way in WAYS}, 10)
    plain_run_of, calls = machine.run_of, []

    def run_of(way, place):
        run = plain_run_of(way, place)

        def slow():
            calls.append(way)
            machine.now += 10 * machine.seconds[way] * (4 <= len(calls) < 7)
            return run()

        return slow

    machine.run_of = run_of
    assert machine.choose()[0] == FOLDED


def test_where_no_way_is_near_enough_the_remedy_is_told():
    way = Inference("bfloat16", engine="openvino")
    machine = Machine({FLOAT32: 1.0, way: 0.1}, {FLOAT32: [0.0] * 3, way: [0.03] * 3})
    with pytest.raises(UserError, match=r"0\.03 away from float32's at most, allowed is 0\.01: give --engine torch"):
        machine.choose([way])


def test_a_number_format_that_was_asked_for_is_the_only_one():
    for device in ("cpu", "cuda"):
        assert {way.dtype for way in candidates("torch", torch.device(device), "bfloat16")} == {"bfloat16"}
    assert {way.dtype for way in candidates("torch", torch.device("cuda"), "auto")} == {
        "float32", "bfloat16", "float16"
    }  # fmt: skip
    with pytest.raises(UserError, match="--engine onnxruntime: does not calculate in bfloat16"):
        candidates("onnxruntime", torch.device("cpu"), "bfloat16")
