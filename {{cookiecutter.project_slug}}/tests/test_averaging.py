import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kfold.training.averaging import ema_decay, make_ema, make_swa, refresh_batch_norm


def make_net(norm=True):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)] if norm else [nn.Conv2d(3, 4, 3), nn.GroupNorm(1, 4)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 2))


def shake(model, seed):
    """Give every parameter and every running statistic a new value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator))
            else:
                tensor.fill_(seed)


def walk(model, average, num_steps):
    """The states of a training run, each shown to the average."""
    states = []
    for step in range(num_steps):
        shake(model, step)
        average.update_parameters(model)
        states.append(copy.deepcopy(model.state_dict()))
    return states


@given(st.integers(1, 10_000), st.floats(0, 0.9999))
def test_the_decay_grows_to_its_final_value_and_never_beyond(num_averaged, decay):
    assert ema_decay(num_averaged, decay) <= ema_decay(num_averaged + 1, decay) <= decay
    assert ema_decay(10**9, decay) == decay


@settings(max_examples=20)
@given(st.integers(1, 12), st.floats(0, 0.99))
def test_ema_is_the_sum_of_all_states_with_the_weights_of_its_formula(num_steps, decay):
    model = make_net()
    ema = make_ema(model, decay)
    states = walk(model, ema, num_steps)
    shares = [1.0]  # of each state in the average
    for step in range(1, num_steps):
        kept = min(decay, (1 + step) / (10 + step))
        shares = [share * kept for share in shares] + [1 - kept]
    assert sum(shares) == pytest.approx(1)
    for name, tensor in ema.module.state_dict().items():
        if tensor.is_floating_point():
            by_hand = sum(share * state[name].double() for share, state in zip(shares, states, strict=True))
            assert torch.allclose(tensor.double(), by_hand, atol=1e-5), name
        else:
            assert tensor == states[-1][name]


def test_ema_of_a_model_that_stands_still_is_the_model():
    model = make_net()
    ema = make_ema(model, 0.9)
    for _ in range(5):
        ema.update_parameters(model)
    for name, tensor in ema.module.state_dict().items():
        assert torch.allclose(tensor, model.state_dict()[name])


@settings(max_examples=10)
@given(st.integers(1, 8))
def test_swa_is_the_equal_mean_of_the_parameters_by_hand(num_states):
    model = make_net()
    swa = make_swa(model)
    states = walk(model, swa, num_states)
    for name, parameter in swa.module.named_parameters():
        by_hand = torch.stack([state[name].double() for state in states]).mean(dim=0)
        assert torch.allclose(parameter.double(), by_hand, atol=1e-6), name


def test_averages_need_no_gradient_and_leave_the_model_alone():
    model = make_net()
    before = copy.deepcopy(model.state_dict())
    for average in (make_ema(model, 0.9), make_swa(model)):
        average.update_parameters(model)
        assert not any(parameter.requires_grad for parameter in average.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_refreshed_batch_norm_statistics_are_the_means_over_the_batches():
    model = make_net()
    shake(model, 3)
    batches = [torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    refresh_batch_norm(model, batches)
    activations = [model[0](batch) for batch in batches]
    means = torch.stack([values.mean((0, 2, 3)) for values in activations]).mean(0)
    variances = torch.stack([values.var((0, 2, 3)) for values in activations]).mean(0)
    assert torch.allclose(model[1].running_mean, means, atol=1e-5)
    assert torch.allclose(model[1].running_var, variances, atol=1e-5)


def test_a_model_without_batch_norm_has_nothing_to_refresh():
    model = make_net(norm=False)
    before = copy.deepcopy(model.state_dict())

    def no_batches():
        raise AssertionError("a batch was read for nothing")
        yield

    refresh_batch_norm(model, no_batches())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
