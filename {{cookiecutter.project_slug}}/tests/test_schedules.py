import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kfold.training.schedules import (
    SCHEDULES,
    WITHOUT_WARMUP,
    Curve,
    cycle_ends,
    learning_rate,
    make_timetable,
    num_plateaus,
)

WITH_WARMUP = sorted(set(SCHEDULES) - set(WITHOUT_WARMUP))


def rates_of(schedule, epochs, num_batches, warmup_epochs, peak, least, curve=None, num_cycles=1, losses=()):
    """The rate of every step; losses: of each epoch."""
    times = make_timetable(schedule, range(0, epochs * num_batches + 1, num_batches), num_cycles, warmup_epochs)
    return [
        learning_rate(schedule, step, times, peak, least, curve or Curve(), losses[: step // num_batches])
        for step in range(epochs * num_batches)
    ]


# Every schedule


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(1, 12),
    st.integers(1, 9),
    st.floats(0, 20),
    st.floats(1e-6, 10),
    st.floats(0, 1),
    st.data(),
)
def test_after_warmup_no_rate_is_above_the_peak_or_below_the_least(
    schedule, epochs, num_batches, warmup, peak, least_share, data
):
    least = peak * least_share
    num_cycles = data.draw(st.integers(1, epochs)) if schedule == "cosine_cycles" else 1
    losses = data.draw(st.lists(st.floats(allow_nan=True), min_size=epochs, max_size=epochs))
    curve = Curve(
        sorted(data.draw(st.sets(st.integers(1, epochs)))),
        data.draw(st.floats(0.01, 0.99)),
        data.draw(st.integers(0, 3)),
        data.draw(st.floats(0.01, 0.99)),
        data.draw(st.floats(0.1, 5)),
        data.draw(st.floats(0.01, 50)),
    )
    rates = rates_of(schedule, epochs, num_batches, warmup, peak, least, curve, num_cycles, losses)
    times = make_timetable(schedule, range(0, epochs * num_batches + 1, num_batches), num_cycles, warmup)
    assert times.num_warmup_steps <= times.ends[0] // 2
    after = rates[times.num_warmup_steps :]
    assert all(least <= rate <= peak for rate in after)
    assert all(0 < rate <= peak for rate in rates[: times.num_warmup_steps])
    if schedule not in ("cosine_cycles", "one_cycle"):
        assert after == sorted(after, reverse=True)
    if schedule not in ("one_cycle", "step", "plateau"):  # which may fall while they still rise
        assert after[0] == pytest.approx(peak)


@pytest.mark.parametrize("schedule", WITH_WARMUP)
def test_warmup_rises_linearly_to_the_peak(schedule):
    assert rates_of(schedule, 5, 4, 1.0, 2.0, 0.0)[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates_of(schedule, 5, 4, 0.5, 2.0, 0.0)[:3] == [1.0, 2.0, 2.0]


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_a_rate_does_not_depend_on_the_rates_that_were_asked_for_before(schedule):
    """What a resume needs: no schedule counts its calls."""
    losses = [1.0, 1.0, 0.5, 0.6, 0.7]
    times = make_timetable(schedule, range(0, 16, 3), 1, 1.0)
    curve = Curve((2, 4), plateau_patience=0)
    forward = rates_of(schedule, 5, 3, 1.0, 1.0, 1e-3, curve, 1, losses)
    backward = [learning_rate(schedule, n, times, 1.0, 1e-3, curve, losses[: n // 3]) for n in reversed(range(15))]
    assert forward == backward[::-1]


# Closed forms


def test_cosine_is_half_way_down_in_the_middle_and_falls_all_the_way_to_the_least_rate():
    rates = rates_of("cosine", 1, 101, 0, 1.0, 0.2)
    assert rates[50] == pytest.approx(0.6)
    assert (rates[0], rates[100]) == (1.0, pytest.approx(0.2))


@settings(max_examples=30)
@given(st.integers(1, 30), st.data(), st.integers(2, 9), st.integers(0, 6))
def test_each_cycle_starts_at_the_peak_falls_and_ends_at_the_least_rate(epochs, data, num_batches, num_warmup):
    num_cycles = data.draw(st.integers(1, epochs))
    ends = cycle_ends(epochs, num_cycles)
    assert ends[-1] == epochs
    assert len(set(ends)) == num_cycles
    lengths = np.diff([0, *ends])
    assert lengths.max() - lengths.min() <= 1
    steps = [end * num_batches for end in ends]
    rates = rates_of("cosine_cycles", epochs, num_batches, num_warmup / num_batches, 0.1, 1e-6, num_cycles=num_cycles)
    num_warmup = min(num_warmup, steps[0] // 2)
    for start, end in zip([num_warmup, *steps[:-1]], steps, strict=True):
        assert rates[end - 1] == pytest.approx(1e-6 if end - start > 1 else 0.1)
        assert rates[start] == pytest.approx(0.1)
        assert rates[start:end] == sorted(rates[start:end], reverse=True)


def test_one_cycle_starts_at_a_25th_peaks_after_30_percent_and_ends_at_the_least_rate_whatever_the_warmup():
    rates = rates_of("one_cycle", 1, 101, 0, 1.0, 1e-3)
    assert (rates[0], rates[15], rates[30]) == (0.04, pytest.approx(0.52), 1.0)
    assert (rates[65], rates[100]) == (pytest.approx(0.5005), pytest.approx(1e-3))
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)
    assert rates_of("one_cycle", 1, 101, 3.0, 1.0, 1e-3) == rates


def test_one_cycle_is_that_of_torch():
    """Which peaks at the step pct_start x steps - 1: asked for so, it peaks at the same one, the 33rd of 110."""
    num_steps = 111
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no step of the optimizer in between
        reference = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 1.0, num_steps, pct_start=34 / 111, final_div_factor=40, cycle_momentum=False
        )
        theirs = []
        for _ in range(num_steps):
            theirs.append(optimizer.param_groups[0]["lr"])
            if len(theirs) < num_steps:
                reference.step()
    assert rates_of("one_cycle", 1, num_steps, 0, 1.0, 0.001) == pytest.approx(theirs, abs=1e-9)


def test_step_falls_at_the_end_of_each_of_its_epochs():
    rates = rates_of("step", 6, 2, 1.0, 1.0, 0.02, Curve((2, 3, 5), 0.1))
    assert rates == pytest.approx([0.5, 1, 1, 1, 0.1, 0.1, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02])


def test_polynomial_is_a_power_of_what_is_left():
    rates = rates_of("polynomial", 1, 11, 0, 2.0, 1.0, Curve(polynomial_power=2.0))
    assert rates == pytest.approx([1 + (1 - step / 10) ** 2 for step in range(11)])


@pytest.mark.parametrize(
    ("schedule", "form"), [("exponential", lambda x: math.exp(-x)), ("inverse_time", lambda x: 1 / (1 + x))]
)
def test_decay_by_epochs_since_warmup_has_its_closed_form_down_to_the_least_rate(schedule, form):
    rates = rates_of(schedule, 5, 4, 1.0, 2.0, 0.9, Curve(decay_rate=0.3))
    assert rates[4:] == pytest.approx([max(0.9, 2 * form(0.3 * (step - 4) / 4)) for step in range(4, 20)])


def test_epochs_of_unequal_length_count_one_each():
    """Those of the cool-down have no pseudo-labelled batches."""
    times = make_timetable("exponential", [0, 10, 20, 24, 28], 1, 0.0)
    curve = Curve(decay_rate=1.0)
    rates = [learning_rate("exponential", step, times, 1.0, 0.0, curve) for step in (0, 5, 10, 20, 22, 24)]
    assert rates == pytest.approx([math.exp(-epochs) for epochs in (0, 0.5, 1, 2, 2.5, 3)])


def test_constant_stays():
    assert set(rates_of("constant", 3, 4, 0.0, 0.1, 1e-6)) == {0.1}


# Plateau


@settings(max_examples=80)
@given(
    st.lists(st.sampled_from([1.0, 0.9, 0.89995, 0.5, 0.4999, math.nan, math.inf, 0.0]), max_size=30),
    st.integers(0, 4),
    st.sampled_from([0.1, 0.5]),
)
def test_plateau_is_reduce_lr_on_plateau_of_torch(losses, patience, factor):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=factor, patience=patience, min_lr=1e-3, eps=0
    )
    for loss in losses:
        reference.step(loss)
    rates = rates_of(
        "plateau", len(losses) + 1, 2, 0, 1.0, 1e-3, Curve(plateau_patience=patience, plateau_factor=factor), 1, losses
    )
    assert rates[-1] == pytest.approx(optimizer.param_groups[0]["lr"])


@settings(max_examples=30)
@given(st.lists(st.floats(0, 2), max_size=20), st.integers(0, 3))
def test_later_losses_never_take_a_plateau_back(losses, patience):
    counts = [num_plateaus(losses[:length], patience) for length in range(len(losses) + 1)]
    assert counts == sorted(counts)
    assert counts[-1] <= len(losses) // (patience + 1)
