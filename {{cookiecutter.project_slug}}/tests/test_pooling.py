"""Pooling: its limits, and every layout of features that backbones give."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kfold.errors import UserError
from kfold.model.build import build_model
from kfold.model.network import Architecture
from kfold.model.pooling import POOLINGS, GeM, Pooling, cell_averages

BACKBONES = {"test_resnet": 96, "test_convnext": 64, "test_vit": 64, "test_mambaout": 256}  # and D: maps, tokens, NHWC


def make_maps(seed=0, shape=(2, 5, 6, 7)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def gem(power):
    pool = GeM(power)
    return lambda maps: pool(maps).detach()


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_gem_is_the_average_at_1_and_the_maximum_far_out_and_grows_between(seed):
    maps = make_maps(seed)
    assert torch.allclose(gem(1.0)(maps), maps.mean((2, 3)), rtol=1e-4)
    assert torch.allclose(gem(500.0)(maps), maps.amax((2, 3)), rtol=1e-2)
    assert torch.allclose(gem(3.0)(maps), maps.pow(3).mean((2, 3)).pow(1 / 3), rtol=1e-4)
    steps = [gem(power)(maps) for power in (1.0, 2.0, 4.0, 50.0)]
    assert all((low < high).all() for low, high in zip(steps, steps[1:], strict=False))


@pytest.mark.parametrize("value", [0.0, -3.0, 1e4])
def test_gem_has_a_gradient_where_a_map_is_all_alike(value):
    maps = torch.full((1, 2, 3, 3), value, requires_grad=True)
    pool = GeM(20.0)  # 1e4 to the power of 20 is beyond float32
    pool(maps).sum().backward()
    assert torch.isfinite(maps.grad).all()
    assert torch.isfinite(pool.power.grad).all()


def test_concat_is_average_and_maximum_side_by_side_and_avg_max_their_mean():
    maps = make_maps()
    average, maximum = Pooling("avg")(maps), Pooling("max")(maps)
    assert torch.equal(Pooling("concat")(maps), torch.cat([average, maximum], dim=1))
    assert torch.allclose(Pooling("avg_max")(maps), (average + maximum) / 2)


@pytest.mark.parametrize("side", [1, 3, 4, 7])
def test_the_pyramid_is_torchs_adaptive_average_at_every_level(side):
    maps = make_maps(shape=(2, 5, side, side + 1))
    for cells in (1, 2, 4):
        expected = torch.nn.functional.adaptive_avg_pool2d(maps, cells)
        assert torch.allclose(cell_averages(maps, cells), expected, atol=1e-6)
    assert torch.allclose(Pooling("spp")(maps)[:, :5], Pooling("avg")(maps), atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_pooling_takes_every_layout(backbone, pooling):
    model = build_model(backbone, 3, 64, architecture=Architecture(pooling=pooling)).eval()
    logits, features = model(torch.rand(2, 3, 64, 64), with_features=True)
    assert logits.shape == (2, 3)
    assert features.shape == (2, BACKBONES[backbone] * Pooling(pooling).width)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "test_mambaout"])
def test_average_pooling_is_the_convolutional_backbones_own(backbone):
    torch.manual_seed(3)
    model = build_model(backbone, 3, 64).eval()
    pooled = build_model(backbone, 3, 64, architecture=Architecture(pooling="avg")).eval()
    pooled.load_state_dict(model.state_dict())
    images = torch.rand(2, 3, 64, 64)
    if backbone == "test_resnet":  # the others have a norm after their own pooling, and before ours
        assert torch.allclose(pooled(images), model(images), atol=1e-6)
    assert pooled(images).shape == model(images).shape


def test_class_tokens_are_left_out():
    tokens = torch.cat([torch.full((1, 1, 3), 100.0), make_maps(shape=(1, 4, 3))], dim=1)
    assert torch.allclose(Pooling("avg", num_prefix_tokens=1)(tokens), tokens[:, 1:].mean(1))
    with pytest.raises(ValueError, match="no map"):
        Pooling("avg")(tokens)


def test_pooling_is_of_float32_under_autocast():
    maps = make_maps(shape=(1, 2, 40, 40)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        for name in POOLINGS:
            assert Pooling(name)(maps).dtype == torch.float32, name


def test_a_backbone_without_a_map_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"pooling=gem: crossvit_tiny_240 has no pooling to replace"):
        build_model("crossvit_tiny_240", 3, 240, architecture=Architecture(pooling="gem"))
