"""The mean teacher: what it sees, how it answers, how much it counts, and its images without labels."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_terms import CPU, FLOAT32, Colour, make_card, make_step

from kfold.config import Config
from kfold.data.loader import EpochOrder
from kfold.setup.rows import TrainingRows
from kfold.setup.terms import make_terms
from kfold.setup.unlabelled import make_pairs
from kfold.training.averaging import make_ema
from kfold.training.state import Averages, Training
from kfold.training.terms import consistency, rampup

NUM_IMAGES, GREY = 7, 128


class Watched(Colour):
    """Notes what it is shown, and how."""

    def __init__(self, num_outputs, seed):
        super().__init__(num_outputs, seed)
        self.seen = []

    def forward(self, images):
        self.seen.append((images, self.training, torch.is_grad_enabled()))
        return super().forward(images)


def draw_pair(num_rows, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, 256, (num_rows, 8, 8, 3), generator=draw).byte() for _ in range(2))


def normal(pixels):
    return ((pixels.permute(0, 3, 1, 2) / 255) - 0.5) / 0.2


def test_student_and_teacher_see_a_view_each_and_the_teacher_answers_in_eval_mode_without_gradient():
    student, teacher = Watched(3, 0).train(), Watched(3, 1).train()
    pair = draw_pair(6)
    term = consistency(student, teacher, iter([pair]), make_card("multiclass"), 1.0, 0.0, CPU, FLOAT32)
    term(make_step(torch.zeros(6, 3)))
    (for_student, student_trains, student_learns), (for_teacher, teacher_trains, teacher_learns) = (
        student.seen[0], teacher.seen[0],
    )  # fmt: skip
    assert torch.allclose(for_student, normal(pair[0]), atol=1e-5)
    assert torch.allclose(for_teacher, normal(pair[1]), atol=1e-5)
    assert (student_trains, student_learns) == (True, True)
    assert (teacher_trains, teacher_learns) == (False, False)


@settings(max_examples=20)
@given(st.floats(0, 6), st.floats(0.5, 5), st.floats(0.1, 9), st.integers(0, 100))
def test_the_term_is_its_weight_times_the_ramp_times_the_mean_squared_distance(epochs_done, ramp, weight, seed):
    student, teacher, pair = Colour(3, 0), Colour(3, 1), draw_pair(5, seed)
    term = consistency(student, teacher, iter([pair]), make_card("multiclass"), weight, ramp, CPU, FLOAT32)
    given_now, wanted = (model(normal(side)).softmax(1) for model, side in zip((student, teacher), pair, strict=True))
    share = min(1, epochs_done / ramp)
    expected = weight * math.exp(-5 * (1 - share) ** 2) * (given_now - wanted).square().mean().item()
    assert term(replace(make_step(torch.zeros(5, 3)), epochs_done=epochs_done)).item() == pytest.approx(expected, 1e-3)


def test_the_ramp_at_its_corners():
    assert rampup(0.0, 4.0) == pytest.approx(math.exp(-5))
    assert rampup(2.0, 4.0) == pytest.approx(math.exp(-5 / 4))
    assert rampup(4.0, 4.0) == rampup(9.0, 4.0) == rampup(0.0, 0.0) == 1


# Images without labels


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Images of one colour each, none of them the grey of a hole."""
    folder = tmp_path_factory.mktemp("unlabelled")
    for number in range(NUM_IMAGES):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((16, 16, 3), 10 * number, np.uint8))
    return [folder / f"{number}.png" for number in range(NUM_IMAGES)]


def pairs_of(paths, first_step=0, **settings):
    """Of a training of 3 epochs of 5 batches, whereas the images make epochs of 3 batches."""
    values = {"augment": "none", "hflip": False, "cutout": 0.5, "image_size": 16, "batch_size": 2, "workers": 0}
    config = Config(epochs=3, ema_decay=0.9, consistency_weight=1.0, **{**values, **settings})
    return make_pairs(paths, config, 0, CPU, EpochOrder(10, 2, True), first_step)


def take(pairs, count):
    return [next(pairs) for _ in range(count)]


def colours(images):
    return images.amin(dim=(1, 2, 3)).tolist()


def has_hole(pair):
    return any(bool((images == GREY).any()) for images in pair)


def test_both_sides_show_the_same_rows_in_different_views(paths):
    found = take(pairs_of(paths, augment="heavy", cutout=0.0), 12)
    assert all(not torch.equal(*pair) for pair in found)
    assert all(colours(left) == colours(right) for left, right in take(pairs_of(paths), 12))


def test_plain_epochs_of_the_training_are_plain_for_images_without_labels_from_the_very_step(paths):
    """Step 10 of the training begins its last epoch, in the middle of an epoch of these images."""
    heavy, plain = take(pairs_of(paths, cutout=1.0), 18), take(pairs_of(paths, cutout=1.0, plain_epochs=1), 18)
    assert [has_hole(pair) for pair in heavy] == [True] * 18
    assert [has_hole(pair) for pair in plain] == [True] * 10 + [False] * 8
    for step, (one, other) in enumerate(zip(heavy, plain, strict=True)):
        assert colours(one[0]) == colours(other[0]), step  # the same rows, in the same order


def test_pairs_can_be_taken_up_at_any_step_before_and_after_the_plain_epochs_begin(paths):
    whole = take(pairs_of(paths, plain_epochs=1), 16)
    for first in range(15):
        for step, pair in enumerate(take(pairs_of(paths, first, plain_epochs=1), 2), start=first):
            assert all(torch.equal(one, other) for one, other in zip(pair, whole[step], strict=True)), (first, step)


def test_the_settings_reach_the_term_and_its_teacher_is_the_moving_average(paths):
    config = Config(
        ema_decay=0.9,
        consistency_weight=7.0,
        consistency_rampup_epochs=4.0,
        augment="none",
        image_size=16,
        batch_size=2,
    )
    model, teacher = Colour(3, 0), Colour(3, 1)
    averages = Averages(make_ema(model, 0.9))
    averages.ema.module.load_state_dict(teacher.state_dict())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    training = Training(model, torch.optim.SGD(model.parameters()), scaler, averages)
    none, card, order = np.array([]), make_card("multiclass", size=16), EpochOrder(10, 2, True)
    rows = TrainingRows(none, none, none, none, 0, none, none, np.array(paths))
    (term,) = make_terms(training, {}, rows, card, config, 0, CPU, FLOAT32, order, 3)
    pairs = make_pairs(paths, config, 0, CPU, order, 3)
    by_hand = consistency(model, teacher, pairs, card, 7.0, 4.0, CPU, FLOAT32)
    step = replace(make_step(torch.zeros(2, 3)), epochs_done=1.0)
    assert term(step).item() == pytest.approx(by_hand(step).item())
    assert term(step).item() > 0
