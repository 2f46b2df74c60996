import builtins
import io

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.optim import param_groups_layer_decay
from torch import nn

from kfold.config import Config
from kfold.errors import UserError
from kfold.forecast import bytes_needed
from kfold.model.build import build_model
from kfold.model.freeze import freeze
from kfold.training.optimizers import NUM_MOMENTS, OPTIMIZERS, make_optimizer
from kfold.training.parameter_groups import parameter_groups, restart_idle_counters
from kfold.training.state import Averages

BACKBONES = ("test_resnet", "test_efficientnet", "test_vit")
BY_GROUP = ("lamb", "adan", "adabound")  # count steps by group


def of_names(model, groups):
    """name -> the settings of its group."""
    names = {weight: name for name, weight in model.named_parameters()}
    return {names[weight]: group for group in groups for weight in group["params"]}


@pytest.fixture(scope="module")
def models():
    return {name: build_model(name, 3, 32) for name in BACKBONES}


# Parameter groups


@settings(max_examples=40)
@given(
    st.sampled_from(BACKBONES),
    st.sampled_from([0.0, 0.01]),
    st.booleans(),
    st.sampled_from([(1.0, 1.0), (0.1, 1.0), (1.0, 0.7)]),
)
def test_every_parameter_is_in_one_group_with_its_decay_and_its_share_of_the_rate(
    models, backbone, weight_decay, decay_all, factors
):
    model = models[backbone]
    groups = parameter_groups(model, weight_decay, decay_all, *factors)
    placed = [weight for group in groups for weight in group["params"]]
    assert sorted(map(id, placed)) == sorted(map(id, model.parameters()))
    spared = getattr(model.backbone, "no_weight_decay", set)()
    for name, group in of_names(model, groups).items():
        weight = model.get_parameter(name)
        is_spared = not decay_all and (weight.ndim <= 1 or name.removeprefix("backbone.") in spared)
        assert group["weight_decay"] == (0 if is_spared else weight_decay), name
        if name.startswith("head."):
            assert group.get("lr_scale", 1.0) == 1
        elif factors[1] == 1:
            assert group.get("lr_scale", 1.0) == factors[0]
        else:
            assert 0 < group["lr_scale"] <= 1


def test_a_new_part_of_the_network_counts_as_head():
    model = build_model("test_resnet", 3, 32)
    model.neck, model.scale = nn.BatchNorm1d(4), nn.Parameter(torch.ones(()))
    groups = of_names(model, parameter_groups(model, 0.1, backbone_lr=0.1))
    assert set(groups) == {name for name, _ in model.named_parameters()}
    assert {groups[name].get("lr_scale", 1.0) for name in ("neck.weight", "scale", "head.weight")} == {1.0}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_layer_decay_is_timms_own_on_the_model_with_its_head(models, backbone):
    whole = timm.create_model(backbone, num_classes=3, img_size=32) if "vit" in backbone else None
    whole = whole or timm.create_model(backbone, num_classes=3)
    expected = of_names(whole, param_groups_layer_decay(whole, layer_decay=0.5))
    found = of_names(models[backbone], parameter_groups(models[backbone], 0.1, layer_decay=0.5))
    ours = {name: group["lr_scale"] for name, group in found.items() if name.startswith("backbone.")}
    assert ours == {name: expected[name.removeprefix("backbone.")]["lr_scale"] for name in ours}
    assert len(set(ours.values())) > 2
    assert max(ours.values()) == 0.5


def test_layer_decay_of_a_backbone_without_an_order_of_layers_is_refused():
    model = nn.Module()
    model.backbone, model.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
    with pytest.raises(UserError, match=r"layer_decay=0\.5: Conv2d does not tell the order.*backbone_lr"):
        parameter_groups(model, 0.0, layer_decay=0.5)
    assert len(parameter_groups(model, 0.0, backbone_lr=0.1)) == 4


def test_the_rate_is_scaled_with_the_batch_and_the_least_one_is_not():
    assert Config(lr=0.1, batch_size=64).peak_lr == 0.1
    assert Config(lr=0.1, batch_size=64, scale_lr=True).peak_lr == 0.025
    assert Config(lr=0.1, batch_size=512, scale_lr=True).peak_lr == 0.2
    assert Config(lr=0.1, batch_size=512, scale_lr=True, min_lr=0.01).min_lr == 0.01
    with pytest.raises(ValueError, match="min_lr=0.05 is above lr=0.1 x batch_size=64 / 256"):
        Config(lr=0.1, batch_size=64, scale_lr=True, min_lr=0.05)


# Optimizers


def tiny_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 18), nn.Tanh(), nn.Linear(18, 3))


def learn(model, optimizer, num_steps, lr, scaler=None):
    """Steps towards random targets, as step.py makes them; the loss before each."""
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    draw = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(32, 20, generator=draw), torch.randn(32, 3, generator=draw)
    losses = []
    for _ in range(num_steps):
        optimizer.zero_grad(set_to_none=True)
        loss = ((model(inputs) - targets) ** 2).mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses


def weights_of(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_there_is_an_optimizer_and_a_count_of_moments_for_every_name():
    names = Config.model_fields["optimizer"].annotation.__args__
    assert set(OPTIMIZERS) == set(NUM_MOMENTS) == set(names)


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_lower_a_loss(name, weight_decay):
    model = tiny_model()
    lr = {"lars": 1.0, "sgd": 0.05, "sgd_nesterov": 0.05, "radam": 0.02}.get(name, 0.003)
    losses = learn(model, make_optimizer(name, model, lr, weight_decay), 40, lr)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_rate_of_zero_moves_nothing_so_the_schedule_is_what_counts(name):
    model = tiny_model()
    before = weights_of(model)
    learn(model, make_optimizer(name, model, 0.1, 0.01), 3, 0.0)
    assert torch.allclose(weights_of(model), before, rtol=0, atol=1e-3 if name == "madgrad" else 0)  # its own 1e-6


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_grow_with_the_rate(name):
    """The second of two steps, twice as far at twice the rate."""
    moves = []
    for lr in (1e-3, 2e-3):
        model = tiny_model()
        optimizer = make_optimizer(name, model, 0.1, 0.0)
        learn(model, optimizer, 1, 0.0)
        before = weights_of(model)
        learn(model, optimizer, 1, lr)
        moves.append(weights_of(model) - before)
    assert moves[0].norm() > 0
    power = 2 / 3 if name == "madgrad" else 1  # its rate is inside a cube root
    assert moves[1].norm() / moves[0].norm() == pytest.approx(2**power, rel=0.05)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_saved_optimizer_goes_on_with_the_same_bytes(name):
    first, second = tiny_model(), tiny_model()
    optimizer = make_optimizer(name, first, 0.01, 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    learn(first, optimizer, 5, 0.01, scaler)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    other = make_optimizer(name, second, 0.01, 0.01)
    second.load_state_dict(state["model"])
    other.load_state_dict(state["optimizer"])
    learn(first, optimizer, 5, 0.003, scaler)
    learn(second, other, 5, 0.003, torch.amp.GradScaler("cpu", init_scale=128.0))
    assert torch.equal(weights_of(first), weights_of(second))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_weights_stay_and_have_no_state_and_learn_later_as_from_the_start(name):
    """Later: the first step of the part that was frozen is the one that it would have made at first."""
    moves = []
    for frozen_steps in (0, 30):
        model = nn.Module()
        torch.manual_seed(0)
        model.backbone, model.head = nn.Linear(20, 18), nn.Linear(18, 3, bias=False)
        model.forward = lambda inputs, model=model: model.head(model.backbone(inputs))
        optimizer = make_optimizer(name, model, 0.01, 0.0)
        model.backbone.requires_grad_(False)
        before = weights_of(model.backbone)
        head = model.head.weight.detach().clone()
        learn(model, optimizer, frozen_steps, 0.01)
        assert torch.equal(weights_of(model.backbone), before)
        assert not any(weight in optimizer.state for weight in model.backbone.parameters())
        with torch.no_grad():
            model.head.weight.copy_(head)  # for the same gradients
        model.backbone.requires_grad_(True)
        restart_idle_counters(optimizer)
        learn(model, optimizer, 1, 0.01)
        moves.append(weights_of(model.backbone) - before)
    assert torch.allclose(*moves, atol=1e-7)


def test_a_counter_that_is_in_use_is_kept():
    model = tiny_model()
    for name in BY_GROUP:
        optimizer = make_optimizer(name, model, 0.01, 0.0)
        learn(model, optimizer, 3, 0.01)
        restart_idle_counters(optimizer)
        assert all(int(group["step"]) == 3 for group in optimizer.param_groups)


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"lamb", "lars"}))
def test_a_step_is_as_long_for_large_weights_as_for_small_ones(name):
    moves = []
    for factor in (1.0, 8.0):
        model = tiny_model()
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(factor)
                weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
        before = weights_of(model)
        make_optimizer(name, model, 0.01, 0.0).step()
        moves.append(weights_of(model) - before)
    assert moves[0].abs().max() > 1e-3
    assert torch.allclose(*moves, atol=1e-5)


@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_layers_adapt_without_weight_decay_too(name):
    """A trust ratio makes the step of a matrix as long as the matrix, whatever the size of its gradient."""
    optimizer = make_optimizer(name, tiny_model(), 0.1, 0.0)
    adapts = {group["params"][0].ndim > 1: group["always_adapt"] for group in optimizer.param_groups}
    assert adapts == {True: True, False: False}


@pytest.mark.parametrize("settings", [{}, {"decay_all": True}, {"layer_decay": 0.7}], ids=str)
@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_what_a_backbone_spares_from_decay_does_not_make_the_vectors_beside_it_adapt(models, name, settings):
    model = models["test_vit"]  # its position embeddings share a group with the biases
    optimizer = make_optimizer(name, model, 0.1, 0.0, **settings)
    groups = of_names(model, optimizer.param_groups)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(groups)
    assert all(group["always_adapt"] == (model.get_parameter(name).ndim > 1) for name, group in groups.items())


def test_adabound_without_its_package_is_refused_with_the_remedy_and_the_others_do_without_it(monkeypatch):
    imported = builtins.__import__

    def absent(name, *arguments, **options):
        if name.startswith("pytorch_optimizer"):
            raise ImportError(name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match="optimizer=adabound .* pip install pytorch_optimizer"):
        make_optimizer("adabound", tiny_model(), 0.1, 0.0)
    for name in set(OPTIMIZERS) - {"adabound"}:
        make_optimizer(name, tiny_model(), 0.1, 0.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_forecast_counts_what_an_optimizer_keeps(models, name, tmp_path):
    kept, size = 0, 0
    for model in models.values():
        optimizer = make_optimizer(name, model, 1e-9, 0.0)
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        kept += sum(tensor.numel() for tensor in tensors if tensor.ndim)
        size += sum(weight.numel() for weight in model.parameters())
    assert kept / size <= NUM_MOMENTS[name] + 0.01
    assert name == "adafactor" or kept / size == pytest.approx(NUM_MOMENTS[name], abs=0.01)
    model = models["test_vit"]  # no buffers
    bytes_of_model = 4 * sum(weight.numel() for weight in model.parameters())
    needed = bytes_needed(model, NUM_MOMENTS[name], Averages(), 0, 1, tmp_path)
    assert needed == pytest.approx(bytes_of_model * (2 + 3 * (2 + NUM_MOMENTS[name])), rel=1e-6)


def test_freezing_leaves_no_parameter_out_of_the_optimizer():
    """Groups are made before anything is frozen: what is set free later must be in one."""
    model = build_model("test_resnet", 3, 32)
    optimizer = make_optimizer("adam", model, 0.1, 0.0)
    freeze(model, 0, False, True)
    freeze(model, 0, False, False)
    assert all(weight.requires_grad for group in optimizer.param_groups for weight in group["params"])
