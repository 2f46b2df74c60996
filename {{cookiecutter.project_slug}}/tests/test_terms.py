from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kfold.data.augment import eval_transform
from kfold.data.loader import EpochOrder, Images, make_loader
from kfold.model.weights import ModelCard
from kfold.training.losses import choose_loss, to_probabilities
from kfold.training.precision import Precision
from kfold.training.terms import Step, consistency, distillation, divergence, endless_pairs, rampup

CPU = torch.device("cpu")
FLOAT32 = Precision(torch.float32, "test")
TASKS = ("multiclass", "binary", "multilabel", "regression")


class Colour(nn.Module):
    """Logits from the mean colour."""

    def __init__(self, num_outputs, seed):
        super().__init__()
        self.head = nn.Linear(3, num_outputs)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(num_outputs, 3, generator=generator))

    def forward(self, images):
        return self.head(images.mean((2, 3)))


def make_card(task, num_outputs=3, size=8, offset=0.0, scale=1.0):
    names = tuple("abc"[:num_outputs])
    return ModelCard("-", size, task, names, (0.5,) * 3, (0.2,) * 3, (offset,) * num_outputs, (scale,) * num_outputs)


def make_step(logits, seed=0):
    pixels = torch.randint(0, 256, (len(logits), 8, 8, 3), generator=torch.Generator().manual_seed(seed)).byte()
    return Step(pixels, logits, logits, logits, torch.ones_like(logits), 0, 0.0)


def answer(teacher, step):
    return teacher(((step.pixels.permute(0, 3, 1, 2) / 255) - 0.5) / 0.2)


def distill(teachers, task, temperature=2.0, weight=1.0, student_card=None):
    card = student_card or make_card(task)
    return distillation(teachers, card, choose_loss("auto", task), temperature, weight, CPU, FLOAT32)


# Distillation


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_student_that_equals_its_teacher_has_no_distillation_loss_and_no_gradient(task, temperature):
    teacher = Colour(3, 0)
    step = make_step(torch.zeros(6, 3))
    logits = answer(teacher, step).detach().requires_grad_()
    loss = distill([(teacher, make_card(task))], task, temperature)(replace(step, logits=logits))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert logits.grad.abs().max() < 1e-5


@pytest.mark.parametrize("task", TASKS)
def test_following_the_distillation_gradient_leads_to_the_mean_of_the_teachers(task):
    teachers = [(Colour(3, seed), make_card(task)) for seed in (0, 1)]
    step = make_step(torch.zeros(6, 3))
    term = distill(teachers, task, temperature=1.0)
    logits = torch.zeros(6, 3, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        term(replace(step, logits=logits)).backward()
        optimizer.step()
    answers = [answer(teacher, step) for teacher, _ in teachers]
    if task == "regression":
        wanted, given_now = torch.stack(answers).mean(0), logits
    else:
        wanted = torch.stack([to_probabilities(one, task) for one in answers]).mean(0)
        given_now = to_probabilities(logits, task)
    assert torch.allclose(given_now, wanted, atol=0.02)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.sampled_from(TASKS[:3]))
def test_the_divergence_is_never_negative_and_equals_the_sum_over_classes_by_hand(seed, task):
    torch.manual_seed(seed)
    logits, probabilities = torch.randn(4, 3), to_probabilities(torch.randn(4, 3), task)
    student = to_probabilities(logits, task)
    if task == "multiclass":
        by_hand = (probabilities * (probabilities / student).log()).sum(1).mean()
    else:
        cells = [(probabilities, student), (1 - probabilities, 1 - student)]
        by_hand = sum((true * (true / guess).log()) for true, guess in cells).mean()
    assert divergence(logits, probabilities, task).item() == pytest.approx(by_hand.item(), abs=1e-5)
    assert by_hand > -1e-6


def test_the_temperature_keeps_the_size_of_the_gradients():
    """For logits near 0 the gradient does not depend on the temperature (section 2 of the paper)."""
    teacher = Colour(3, 0)
    with torch.no_grad():
        teacher.head.weight.mul_(0.01)
        teacher.head.bias.zero_()
    norms = []
    for temperature in (1.0, 2.0, 8.0):
        step = make_step(torch.zeros(5, 3))
        logits = torch.zeros(5, 3, requires_grad=True)
        distill([(teacher, make_card("multiclass"))], "multiclass", temperature)(
            replace(step, logits=logits)
        ).backward()
        norms.append(logits.grad.norm().item())
    assert max(norms) < 1.05 * min(norms)


def test_teachers_of_regression_answer_in_their_own_units_and_teach_in_the_students():
    teacher, step = Colour(3, 0), make_step(torch.zeros(6, 3))
    values = 10 * answer(teacher, step) + 100  # the teacher's card says so
    student_card = make_card("regression", offset=50.0, scale=5.0)
    logits = ((values - 50) / 5).detach()
    term = distill(
        [(teacher, make_card("regression", offset=100.0, scale=10.0))], "regression", student_card=student_card
    )
    assert term(replace(step, logits=logits)).item() == pytest.approx(0, abs=1e-6)


def test_a_teacher_sees_images_of_its_own_size():
    seen = []

    class Watcher(Colour):
        def forward(self, images):
            seen.append(images.shape)
            return super().forward(images)

    distill([(Watcher(3, 0), make_card("multiclass", size=12))], "multiclass")(make_step(torch.zeros(6, 3)))
    assert seen == [(6, 3, 12, 12)]


# Mean teacher


@pytest.mark.parametrize("task", TASKS)
def test_consistency_is_nothing_where_student_and_teacher_agree_and_teaches_the_student_alone(task):
    student, teacher, other = Colour(3, 0), Colour(3, 0), Colour(3, 1)
    teacher.load_state_dict(student.state_dict())
    pixels = torch.randint(0, 256, (6, 8, 8, 3)).byte()
    pairs = iter([(pixels, pixels)] * 2)
    step = replace(make_step(torch.zeros(6, 3)), epochs_done=5.0)
    agreed = consistency(student, teacher, pairs, make_card(task), 1.0, 2.0, CPU, FLOAT32)(step)
    assert agreed.item() == 0
    loss = consistency(student, other, pairs, make_card(task), 1.0, 2.0, CPU, FLOAT32)(step)
    loss.backward()
    assert loss.item() > 0
    assert student.head.weight.grad.abs().sum() > 0
    assert other.head.weight.grad is None


@given(st.floats(0, 10), st.floats(0.1, 10))
def test_the_weight_ramps_up_to_one(epochs_done, rampup_epochs):
    assert np.exp(-5) - 1e-6 <= rampup(epochs_done, rampup_epochs) <= 1
    assert rampup(rampup_epochs, rampup_epochs) == 1
    assert rampup(0.0, 0.0) == 1


def test_pairs_show_the_same_rows_and_can_be_taken_up_at_any_batch(tmp_path):
    for number in range(7):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((8, 8, 3), number, np.uint8))
    paths = [tmp_path / f"{number}.png" for number in range(7)]

    def pairs(first):
        loaders = [
            make_loader(Images(paths, np.zeros((7, 0)), eval_transform(8), 8), EpochOrder(7, 3, True, 0, 0), 0, CPU)
            for _ in range(2)
        ]
        return endless_pairs(*loaders, first)

    whole = pairs(0)
    shown = [next(whole) for _ in range(7)]
    assert all(torch.equal(left, right) for left, right in shown)
    assert len({tuple(left[:, 0, 0, 0].tolist()) for left, _ in shown}) > 4  # epochs differ
    for first in range(6):
        assert torch.equal(next(pairs(first))[0], shown[first][0])
