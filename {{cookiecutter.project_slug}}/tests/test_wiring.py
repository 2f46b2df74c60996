"""Settings reach the blocks that they are for, and the blocks reach the step."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from kfold.config import Config
from kfold.model.heads import OrdinalHead
from kfold.setup.objective import make_mixer, make_objective
from kfold.setup.rows import TrainingRows
from kfold.training.optimizers import make_optimizer

NONE = np.array([])


def rows_of(targets: np.ndarray) -> TrainingRows:
    return TrainingRows(NONE, NONE, targets, np.ones_like(targets), len(targets), NONE, NONE, NONE)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "ricap"])
def test_a_larger_beta_mixes_more_evenly_and_a_mixture_is_of_several_images(name):
    key = {"mixup": "mixup_alpha", "cutmix": "cutmix_alpha", "ricap": "ricap_beta"}[name]
    targets, pixels = torch.eye(4), torch.zeros(4, 16, 16, 3, dtype=torch.uint8)

    def greatest_share(beta: float) -> float:
        mix, found = make_mixer(Config(mixing=name, **{key: beta})), []
        for seed in range(40):
            torch.manual_seed(seed)
            found.append(mix(0, pixels, targets, torch.ones(4, 4))[1].amax(dim=1).mean().item())
        return float(np.mean(found))

    assert greatest_share(0.05) > greatest_share(20.0) + 0.1
    assert greatest_share(20.0) < 0.8


@pytest.mark.parametrize(("has_teachers", "weight"), [(False, 1.0), (True, 0.7)])
def test_teachers_take_their_weight_from_the_labels(has_teachers, weight):
    config = Config(distill_from="teacher", distill_weight=0.3)
    objective = make_objective(config, "multiclass", [], has_teachers, rows_of(np.eye(3, dtype=np.float32)))
    assert objective.label_weight == pytest.approx(weight)


def test_the_ordinal_head_is_float32_under_autocast():
    head = OrdinalHead(8, 5)
    features = torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(features)
    assert logits.dtype == torch.float32
    expected = head.log_probabilities(features @ head.score.weight.T)
    assert torch.allclose(logits, expected, atol=1e-6)


def test_nesterov_looks_ahead_and_plain_momentum_does_not():
    for name, nesterov in (("sgd", False), ("sgd_nesterov", True)):
        ours, theirs = nn.Linear(2, 1), nn.Linear(2, 1)
        theirs.load_state_dict(ours.state_dict())
        optimizers = (
            make_optimizer(name, ours, 0.1, 0.0),
            torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9, nesterov=nesterov),
        )
        for _ in range(3):
            for model, optimizer in zip((ours, theirs), optimizers, strict=True):
                optimizer.zero_grad()
                model(torch.ones(1, 2)).square().sum().backward()
                optimizer.step()
        assert torch.allclose(ours.weight, theirs.weight, atol=1e-7), name


def test_lamb_leaves_clipping_to_clip_grad():
    model = nn.Linear(2, 1)
    assert all(group["max_grad_norm"] is None for group in make_optimizer("lamb", model, 0.1, 0.0).param_groups)


def test_smoothing_and_class_weights_reach_the_loss():
    targets = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 2]]
    logits, chosen = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    plain = make_objective(Config(), "multiclass", [], False, rows_of(targets))
    smooth = make_objective(Config(label_smoothing=0.3), "multiclass", [], False, rows_of(targets))
    assert plain.loss_function(logits, chosen).item() == pytest.approx(math.log(math.exp(2) + 2))
    assert smooth.loss_function(logits, chosen).item() < plain.loss_function(logits, chosen).item()
    weighted = make_objective(Config(class_weights="inverse_log"), "multiclass", [], False, rows_of(targets))
    rare, common = (weighted.weigh(torch.eye(3)[[place]], torch.ones(1, 3)).max().item() for place in (1, 0))
    assert rare > common
