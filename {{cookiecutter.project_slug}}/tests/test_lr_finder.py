import hashlib
import io
import random
from contextlib import suppress

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kfold.errors import UserError
from kfold.model.network import Network
from kfold.rehearsal.find_lr import curve_table
from kfold.report.rehearsal_pictures import lr_picture
from kfold.training.averaging import make_ema
from kfold.training.lr_finder import EXPLODED, Curve, growing_rates, make_curve, range_test, smooth, suggest
from kfold.training.optimizers import make_optimizer
from kfold.training.rewind import rewound
from kfold.training.state import Averages, Training, to_state


def noisy_quadratic(curvature, seed):
    """Gradient descent on curvature / 2 x |w|^2 with noise of the gradient: stable below the rate 2 / curvature."""
    generator, weights = np.random.default_rng(seed), np.ones(4)

    def step(number, rate):
        nonlocal weights
        loss = curvature / 2 * float((weights**2).sum())
        weights = weights - rate * curvature * (weights + 0.2 * generator.normal(size=4))
        return loss

    return step


# The curve


@settings(max_examples=30)
@given(st.floats(1, 1e4), st.integers(0, 1000))
def test_the_largest_rate_of_a_noisy_quadratic_is_where_it_stops_being_stable(curvature, seed):
    suggestion = suggest(range_test(noisy_quadratic(curvature, seed), growing_rates()))
    assert 0.3 < suggestion.largest / (2 / curvature) < 2
    assert suggestion.careful == pytest.approx(suggestion.largest / 10)


def test_a_rate_is_judged_by_the_loss_that_its_own_step_leads_to():
    seen = []

    def step(number, rate):
        seen.append(rate)
        return float(10 - number)

    curve = range_test(step, [0.1, 0.2, 0.3])
    assert seen == [0.1, 0.2, 0.3, 0.3]  # one more, whose loss shows what 0.3 did
    assert (curve.rates, curve.losses) == ((0.1, 0.2, 0.3), (9.0, 8.0, 7.0))


@settings(max_examples=50)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_smoothing_starts_at_the_first_loss_and_stays_between_the_extremes(losses):
    smoothed = smooth(losses)
    assert smoothed[0] == pytest.approx(losses[0])
    assert all(min(losses) - 1e-9 <= value <= max(losses) + 1e-9 for value in smoothed)
    assert smooth([losses[0]] * 9) == pytest.approx([losses[0]] * 9)


def test_rates_grow_by_the_same_factor_from_first_to_last():
    rates = growing_rates()
    assert (rates[0], rates[-1], len(rates)) == (pytest.approx(1e-7), pytest.approx(10), 100)
    assert np.allclose(np.diff(np.log(rates)), np.log(1e8) / 99)


def test_it_stops_when_the_smoothed_loss_is_four_times_its_least():
    curve = range_test(lambda number, rate: 1.0 if number < 30 else 1e3, growing_rates())
    assert len(curve.rates) < 40
    assert curve.smoothed[-1] > EXPLODED * min(curve.smoothed)
    assert max(curve.smoothed[:-1]) <= EXPLODED * min(curve.smoothed)
    assert "4 times" in curve.end


# Curves that say little


def test_a_loss_that_never_falls_suggests_nothing_however_noisy():
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(2.3, 0.1, 101)
        curve = range_test(lambda number, rate, noise=noise: noise[number], growing_rates())
        with pytest.raises(UserError, match="the loss never falls below the noise of its start.*--overfit-batch"):
            suggest(curve)


def test_a_loss_that_is_nan_at_once_suggests_nothing():
    curve = range_test(lambda number, rate: float("nan"), growing_rates())
    assert curve.losses == ()
    with pytest.raises(UserError, match="not finite any more after 0 steps"):
        suggest(curve)


def test_a_loss_that_is_nan_in_the_end_suggests_what_came_before():
    curve = range_test(lambda number, rate: 2 - number / 50 if number < 50 else float("inf"), growing_rates())
    assert np.isfinite(curve.losses).all()
    assert suggest(curve).largest == growing_rates()[48]


def test_a_loss_that_still_falls_at_the_last_rate_is_said():
    assert "still falls" in suggest(range_test(lambda number, rate: 2 - number / 200, growing_rates())).note
    assert suggest(range_test(noisy_quadratic(100, 0), growing_rates())).note == ""


# What is left behind


def make_training(option):
    torch.manual_seed(0)
    model = Network(timm.create_model("test_resnet", num_classes=0), torch.nn.Linear(96, 3), 0.3)
    if option == "frozen":
        model.backbone.requires_grad_(False)
        model.backbone.bn1.eval()
    optimizer = make_optimizer("sgd_nesterov" if option == "sgd" else "adamw", model, 0.1, 0.01)
    for group in optimizer.param_groups:
        group["lr_scale"] = 0.5
    scaler = torch.amp.GradScaler("cpu", enabled=option == "scaler", init_scale=1024.0)
    ema = make_ema(model, 0.9) if option == "ema" else None
    return Training(model, optimizer, scaler, Averages(ema), accumulate=2)


def work(training):
    """A step that moves everything that a step can move."""
    random.random(), np.random.rand()
    training.model.train()
    loss = training.model(torch.randn(4, 3, 32, 32)).square().sum()
    training.scaler.scale(loss).backward()
    training.scaler.step(training.optimizer)
    training.scaler.update(512.0 if training.scaler.is_enabled() else None)
    for group in training.optimizer.param_groups:
        group["lr"] *= 2
    if training.averages.ema is not None:
        training.averages.ema.update_parameters(training.model)
    training.num_images, training.accumulate = training.num_images + 4, 4


def digest(training):
    """sha256 of state, gradients, modes and generators."""
    file = io.BytesIO()
    gradients = [weight.grad for weight in training.model.parameters()]
    modes = [module.training for module in training.model.modules()]
    trained = [weight.requires_grad for weight in training.model.parameters()]
    generators = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()]
    torch.save([to_state(training, {}), gradients, modes, trained, generators], file)
    return hashlib.sha256(file.getvalue()).hexdigest()


@pytest.mark.parametrize("option", ["adamw", "sgd", "ema", "scaler", "frozen"])
@pytest.mark.parametrize("num_before", [0, 2])
@pytest.mark.parametrize("fails", [False, True])
def test_after_a_try_every_bit_is_what_it_was(option, num_before, fails):
    training = make_training(option)
    for _ in range(num_before):
        work(training)
    before = digest(training)
    with suppress(ArithmeticError), rewound(training):
        work(training)
        training.model.requires_grad_(False)
        work_digest = digest(training)
        if fails:
            raise ArithmeticError
    assert work_digest != before
    assert digest(training) == before


def test_training_goes_on_after_a_try_as_without_it():
    digests = []
    for is_tried in (False, True):
        training = make_training("ema")
        work(training)
        if is_tried:
            with rewound(training):
                work(training)
        torch.manual_seed(1)
        work(training)
        digests.append(list(training.model.state_dict().values()))
    assert all(torch.equal(one, other) for one, other in zip(*digests, strict=True))


# Files


@pytest.mark.parametrize("losses", [(), (2.0,), (0.0, 0.0), tuple(2 - number / 50 for number in range(90))])
def test_the_picture_of_any_curve_is_a_png_and_the_table_has_a_row_a_rate(losses):
    curve = make_curve(growing_rates(), losses, "over")
    suggestion = suggest(curve) if len(losses) > 20 else None
    assert lr_picture(curve, suggestion, "a $title").startswith(b"\x89PNG\r\n")
    table = curve_table(curve)
    assert list(table.columns) == ["learning_rate", "batch_loss", "smoothed_loss"]
    assert len(table) == len(losses)


def test_the_same_curve_makes_the_same_picture():
    curve = Curve((0.1, 0.2), (2.0, 1.0), (2.0, 1.5), "over")
    assert lr_picture(curve, None, "") == lr_picture(curve, None, "")
