"""A batch that is taken in parts is the same batch: its loss, its gradient, and the statistics of SWA."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_mean_teacher import draw_pair
from test_optimisation import CARD, CPU, FLOAT32, Colours
from torch import nn

from kfold.config import Config
from kfold.data.loader import Batch
from kfold.finish import refresh_statistics
from kfold.model.build import build_model
from kfold.setup.objective import make_loss_terms
from kfold.setup.training import make_recipe
from kfold.training.losses import choose_loss
from kfold.training.memory import split_rows
from kfold.training.objective import Objective
from kfold.training.state import Training
from kfold.training.step import Moment, take_step
from kfold.training.terms import consistency, distillation

NUM_ROWS = 10  # 3 parts of it have 3, 4 and 3 rows


def features_squared(step):
    return step.logits.square().mean() + step.features.square().mean()


TERMS = {
    "any mean over rows": lambda model: features_squared,
    "distillation": lambda model: distillation(
        [(Colours(), CARD)], CARD, choose_loss("auto", "multiclass"), 2.0, 3.0, CPU, FLOAT32
    ),
    "mean teacher": lambda model: consistency(
        model, Colours(), iter([draw_pair(NUM_ROWS)]), CARD, 50.0, 0.0, CPU, FLOAT32
    ),
    "l1": lambda model: make_loss_terms(Config(l1_penalty=0.5), model)[0],
}


def step_with(make_term, accumulate):
    """The loss of one step of plain descent at rate 1, and how far it moves the weights."""
    model = Colours()
    with torch.no_grad():
        model.head.weight.mul_(9)  # far from what the teachers answer
    before = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    training = Training(model, torch.optim.SGD(model.parameters(), lr=1.0), scaler, accumulate=accumulate)
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (NUM_ROWS, 8, 8, 3), dtype=torch.uint8, generator=draw)
    targets = nn.functional.one_hot(torch.arange(NUM_ROWS) % 3, 3).float()
    weights = torch.rand(NUM_ROWS, 1, generator=draw).expand(NUM_ROWS, 3)
    batch = Batch(pixels, targets, weights, torch.arange(NUM_ROWS), [])
    terms = [make_term(model)] if make_term else []
    objective = Objective(choose_loss("auto", "multiclass"), terms=terms)
    take_step(training, CARD, objective, batch, Moment(0, 0, 0.0, 1.0, 7), CPU, FLOAT32)
    after = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    return float(training.total_loss) / NUM_ROWS, before - after


@pytest.mark.parametrize("name", TERMS)
def test_parts_weighted_by_their_rows_give_a_term_the_loss_and_gradient_of_the_whole_batch(name):
    loss, gradient = step_with(TERMS[name], 1)
    without, _ = step_with(None, 1)
    assert abs(loss - without) > 0.01  # so that the term counts
    for accumulate in (2, 3):
        of_parts, its_gradient = step_with(TERMS[name], accumulate)
        assert of_parts == pytest.approx(loss, rel=1e-5), accumulate
        assert torch.allclose(its_gradient, gradient, atol=1e-5), accumulate


# The statistics of averaged weights


class Batches:
    """Two batches of images, in the order of a loader."""

    def __init__(self, num_rows):
        draw = torch.Generator().manual_seed(3)
        self.batches = [
            SimpleNamespace(images=torch.randint(0, 256, (num_rows, 32, 32, 3), generator=draw).byte())
            for _ in range(2)
        ]
        self.batch_sampler = SimpleNamespace()

    def __iter__(self):
        return iter(self.batches)


def refreshed(accumulate, num_rows=8, **settings):
    """The backbone after the refresh, its first BatchNorm, and what that was shown."""
    torch.manual_seed(0)
    model, shown = build_model("test_resnet", 3, 32), []
    norm = model.backbone.conv1[1]  # the first
    norm.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
    recipe = make_recipe(Config(epochs=4, **settings), 0)
    refresh_statistics(model, Batches(num_rows), CARD, recipe, accumulate, CPU, lambda: None)
    return model.backbone, norm, shown


@pytest.mark.parametrize(("accumulate", "num_rows"), [(1, 8), (2, 8), (4, 8), (3, 10)])
def test_statistics_are_refreshed_in_the_parts_of_training_each_counting_alike(accumulate, num_rows):
    _, norm, shown = refreshed(accumulate, num_rows)
    sizes = [rows.stop - rows.start for rows in split_rows(num_rows, accumulate)]
    assert [len(images) for images in shown] == sizes * 2
    means, variances = (
        torch.stack([of(images) for images in shown]).mean(0)
        for of in (lambda images: images.mean((0, 2, 3)), lambda images: images.var((0, 2, 3)))
    )
    assert torch.allclose(norm.running_mean, means, atol=1e-5)
    assert torch.allclose(norm.running_var, variances, atol=1e-5)
    if len(set(sizes)) == 1:
        assert torch.allclose(norm.running_mean, refreshed(1, num_rows)[1].running_mean, atol=1e-5)


def test_a_backbone_that_was_frozen_in_the_first_epochs_is_refreshed_like_one_that_never_was():
    plain, freed = (dict(refreshed(1, **settings)[0].named_buffers()) for settings in ({}, {"freeze_epochs": 2}))
    means = [name for name in plain if name.endswith("running_mean")]
    untouched = dict(build_model("test_resnet", 3, 32).backbone.named_buffers())
    assert means
    for name in means:
        assert not torch.equal(plain[name], untouched[name])
        assert np.array_equal(plain[name], freed[name]), name
