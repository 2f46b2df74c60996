"""Each key of the loss, from the settings to the step."""

import copy

import numpy as np
import pytest
import torch
from test_training import CPU, FLOAT32, Brightness, make_card
from torch import nn

from kfold.config import Config
from kfold.data.loader import Batch
from kfold.losses.center import add_centers
from kfold.model.build import build_model
from kfold.model.weights import copy_weights, load_model, weights_to_bytes
from kfold.setup.network import make_model
from kfold.setup.objective import labels_of, make_loss_terms, make_objective
from kfold.setup.rows import TrainingRows
from kfold.training.averaging import make_ema
from kfold.training.optimizers import make_optimizer
from kfold.training.precision import Precision
from kfold.training.state import Averages, Training, load_state, to_state
from kfold.training.step import Moment, take_step
from kfold.training.terms import Step

SWITCHES = {  # key=value words -> the task that they are tried with
    ("loss", ("focal",)): "multiclass",
    ("loss", ("lovasz",)): "multiclass",
    ("loss", ("soft_fbeta",)): "multilabel",
    ("loss", ("asymmetric",)): "multilabel",
    ("loss", ("mae",)): "regression",
    ("loss", ("cross_entropy", "focal")): "multiclass",
    ("loss_weights", (2.0,)): "multiclass",
    ("label_smoothing", 0.1): "multiclass",
    ("class_weights", "inverse_log"): "multiclass",
    ("class_weights", "effective_number"): "binary",
    ("head", "arcface"): "multiclass",
    ("head", "cosface"): "multiclass",
    ("ohem_share", 0.5): "multiclass",
    ("flooding", 5.0): "multilabel",
    ("focal_gamma", 1.0): "multiclass",
    ("asymmetric_gamma_positive", 2.0): "multilabel",
    ("asymmetric_gamma_negative", 1.0): "multilabel",
    ("asymmetric_clip", 0.3): "binary",
    ("fbeta", 2.0): "multiclass",
    ("effective_beta", 0.5): "multiclass",
    ("arcface_margin", 0.1): "multiclass",
    ("cosface_margin", 0.1): "multiclass",
    ("margin_scale", 10.0): "multiclass",
    ("margin_power", 0.5): "multiclass",
}
NEEDED = {  # key -> what it does nothing without
    "focal_gamma": {"loss": ("focal",)},
    "asymmetric_gamma_positive": {"loss": ("asymmetric",)},
    "asymmetric_gamma_negative": {"loss": ("asymmetric",)},
    "asymmetric_clip": {"loss": ("asymmetric",)},
    "fbeta": {"loss": ("soft_fbeta",)},
    "effective_beta": {"class_weights": "effective_number"},
    "arcface_margin": {"head": "arcface"},
    "cosface_margin": {"head": "cosface"},
    "margin_scale": {"head": "arcface"},
    "margin_power": {"head": "subcenter_arcface"},
}


def make_rows(task, num_pseudo=0):
    """24 real rows, of unlike classes, and pseudo-labelled ones of the last class."""
    classes = np.eye(3, dtype=np.float32)[np.repeat([0, 1, 2], [4, 8, 12])]
    pseudo = np.eye(3, dtype=np.float32)[[2] * num_pseudo]
    targets = np.concatenate([classes, pseudo])
    targets = targets[:, :1] if task == "binary" else targets
    none = np.array([])
    return TrainingRows(none, none, targets, np.ones_like(targets), 24, none, none, none)


def value(task, **settings):
    rows = make_rows(task)
    objective = make_objective(Config(**settings), task, [], False, rows)
    targets = torch.from_numpy(rows.train_targets)
    logits = 5 * torch.randn(targets.shape, generator=torch.Generator().manual_seed(0)).clamp(-5, 5)
    weights = objective.weigh(targets, torch.ones_like(targets))
    return objective.supervised(logits, targets, weights, weights).item()


@pytest.mark.parametrize(("key", "choice"), SWITCHES)
def test_every_switch_changes_the_loss_by_itself(key, choice):
    task, needed = SWITCHES[key, choice], NEEDED.get(key, {})
    before, after = value(task, **needed), value(task, **needed, **{key: choice})
    assert np.isfinite(after)
    assert after != pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize(
    ("task", "neutral"),
    [
        ("multiclass", {"loss": ("focal",), "focal_gamma": 0.0}),
        ("multiclass", {"head": "arcface", "arcface_margin": 0.0}),
        ("multiclass", {"head": "cosface", "cosface_margin": 0.0, "margin_power": 0.5}),
        ("multiclass", {"class_weights": "effective_number", "effective_beta": 0.0}),
        ("multiclass", {"loss": ("cross_entropy",), "loss_weights": (1.0,)}),
        (
            "multilabel",
            {
                "loss": ("asymmetric",),
                "asymmetric_gamma_positive": 0.0,
                "asymmetric_gamma_negative": 0.0,
                "asymmetric_clip": 0.0,
            },
        ),
    ],
)
def test_a_switch_at_its_neutral_point_is_the_default_loss(task, neutral):
    assert value(task, **neutral) == pytest.approx(value(task), rel=1e-5)


@pytest.mark.parametrize("settings", [{"class_weights": "inverse_log"}, {"head": "arcface", "margin_power": 0.5}])
def test_class_weights_and_margins_come_from_the_real_training_rows_alone(settings):
    found = []
    for num_pseudo in (0, 50):
        rows = make_rows("multiclass", num_pseudo)
        objective = make_objective(Config(**settings), "multiclass", [], False, rows)
        logits, targets = torch.ones(3, 3), torch.eye(3)
        found.append((objective.loss_function(logits, targets), objective.weigh(targets, torch.ones(3, 3))))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


# Terms


def make_step(features, targets, part=0, num_parts=1):
    return Step(torch.zeros(0), targets, features, targets, torch.ones_like(targets), 0, 0.0, part, num_parts)


def test_the_l1_penalty_pulls_each_weight_by_its_sign_and_leaves_biases_norms_and_frozen_weights_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2), nn.Linear(2, 2))
    model[3].requires_grad_(False)
    (term,) = make_loss_terms(Config(l1_penalty=0.1), model)
    loss = term(make_step(torch.zeros(2, 4), torch.eye(2)))
    loss.backward()
    assert loss.item() == pytest.approx(0.1 * (model[0].weight.abs().sum() + model[2].weight.abs().sum()).item())
    assert torch.allclose(model[2].weight.grad, 0.1 * model[2].weight.sign())
    assert model[1].weight.grad is model[0].bias.grad is model[3].weight.grad is None


def test_columns_and_single_outputs_become_classes():
    assert labels_of(torch.eye(3)[[2, 0]]).tolist() == [2, 0]
    assert labels_of(torch.tensor([[0.0], [1.0]])).tolist() == [0, 1]


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_centers_are_of_every_class_and_every_feature_and_leave_batch_norm_alone(num_outputs):
    config = Config(backbone="test_resnet", pretrained=False, image_size=32, center_weight=0.1)
    task, targets = "binary" if num_outputs == 1 else "multiclass", np.zeros((4, num_outputs), np.float32)
    model = make_model(config, task, 0, targets)
    plain = make_model(config.model_copy(update={"center_weight": 0.0}), task, 0, targets)
    assert model.centers.shape == (max(num_outputs, 2), model.head.in_features)
    assert "centers" in model.state_dict()  # so the state carries them
    assert model.training
    for name, buffer in plain.named_buffers():
        assert torch.equal(dict(model.named_buffers())[name], buffer)


def test_the_weights_file_of_a_model_with_centers_is_rebuilt_without_them(tmp_path):
    model = build_model("test_resnet", 2, 32)
    add_centers(model, 2, 32)
    card = make_card()
    (tmp_path / "last.safetensors").write_bytes(weights_to_bytes(copy_weights(model), card))
    rebuilt, _ = load_model(tmp_path / "last.safetensors")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(rebuilt(images), model.eval()(images))


def make_training(config, num_classes=2):
    torch.manual_seed(0)
    model = Brightness(num_classes)
    model.register_buffer("centers", torch.zeros(num_classes, 3))
    scaler, averages = torch.amp.GradScaler("cpu", enabled=False), Averages(make_ema(model, 0.9))
    return Training(model, make_optimizer("adam", model, 0.1, 0.0), scaler, averages, config.accumulate)


def step_on(training, config, targets, seed=0, precision=FLOAT32):
    images = torch.randint(0, 256, (len(targets), 8, 8, 3), generator=torch.Generator().manual_seed(seed)).byte()
    batch = Batch(images, targets, torch.ones_like(targets), torch.arange(len(targets)), [])
    terms = make_loss_terms(config, training.model)
    objective = make_objective(config, "multiclass", terms, False, make_rows("multiclass"))
    take_step(
        training, make_card(num_outputs=targets.shape[1]), objective, batch, Moment(0, 0, 0.0, 0.1, 7), CPU, precision
    )


CENTERS = Config(center_weight=0.5, triplet_weight=1.0, l1_penalty=1e-3, accumulate=2, batch_size=8)


def test_a_batch_that_is_not_finite_leaves_no_trace_in_the_centers():
    training, targets = make_training(CENTERS), torch.eye(2)[[0, 0, 1, 1, 0, 0, 1, 1]]
    step_on(training, CENTERS, targets)
    before = training.model.centers.clone()
    assert before.any()
    broken = targets.clone()
    broken[7, 1] = torch.inf
    step_on(training, CENTERS, broken, seed=1)
    assert training.skipped == 1
    assert torch.equal(training.model.centers, before)
    step_on(training, CENTERS, targets, seed=1)
    assert not torch.equal(training.model.centers, before)


def test_class_weights_reach_the_step_and_its_parts_add_up():
    targets, losses = torch.eye(3)[[0, 1, 2, 2, 1, 2, 2, 2]], []
    for settings in ({}, {"class_weights": "inverse_log"}, {"class_weights": "inverse_log", "accumulate": 2}):
        config = Config(**settings)
        training = make_training(config, 3)
        training.model.drop.p = 0.0  # its masks are of a part
        step_on(training, config, targets)
        losses.append(float(training.total_loss))
    assert losses[1] != pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("precision", [FLOAT32, Precision(torch.bfloat16, "test")], ids=["float32", "bfloat16"])
def test_centers_come_back_with_the_state_to_the_last_bit(precision):
    targets = torch.eye(2)[[0, 0, 1, 1, 0, 0, 1, 1]]
    whole, again = make_training(CENTERS), make_training(CENTERS)
    step_on(whole, CENTERS, targets, 0, precision)
    load_state(again, copy.deepcopy(to_state(whole, {})))  # as from a file: nothing is shared
    for training in (whole, again):
        step_on(training, CENTERS, targets, 1, precision)
    for one, other in ((whole.model, again.model), (whole.averages.ema, again.averages.ema)):
        states = one.state_dict(), other.state_dict()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        assert any("centers" in name for name in states[0])
