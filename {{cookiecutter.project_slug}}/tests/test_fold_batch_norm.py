"""Folding BatchNorm into convolutions changes no prediction, and leaves alone what cannot be folded."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional as F

from kfold.engines.fold_batch_norm import fold_batch_norm
from kfold.engines.ready import EXACT, difference, folded_or_same
from kfold.model.build import build_model
from kfold.model.network import Architecture

CHANNELS = 4


class Block(nn.Module):
    """Convolutions and norms that the forward of a subclass puts together: (B, 4, H, W) -> the same."""

    folds = 0

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(CHANNELS)


class Plain(Block):
    folds = 1

    def forward(self, maps):
        return self.norm(self.conv(maps)).relu_()


class GroupedWithBias(Block):
    folds = 1

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding="same", groups=2)
        self.norm = BatchNormAct2d(CHANNELS, act_layer=nn.SiLU)

    def forward(self, maps):
        return self.norm(self.conv(maps))


class NormFirst(Block):
    def forward(self, maps):
        return self.conv(self.norm(maps).relu())


class SharedConvolution(Block):
    def forward(self, maps):
        return self.norm(self.conv(self.conv(maps)))


class SharedNorm(Block):
    def __init__(self):
        super().__init__()
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, maps):
        return self.norm(self.second(self.norm(self.conv(maps))))


class UsedTwice(Block):
    def forward(self, maps):
        found = self.conv(maps)
        return self.norm(found) + found


class ChangedInPlace(Block):
    def forward(self, maps):
        return self.norm(self.conv(maps).relu_())


class WeightsThatAreCalculated(Block):
    def forward(self, maps):
        return self.norm(F.conv2d(maps, self.conv.weight / self.conv.weight.std(), padding=1))


KINDS = (Plain, GroupedWithBias, NormFirst, SharedConvolution, SharedNorm, UsedTwice, ChangedInPlace)


def shake(model: nn.Module, seed: int) -> nn.Module:
    """Statistics and weights of BatchNorm as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values, low, high in ((norm.running_mean, -1, 1), (norm.running_var, 0.5, 2), (norm.weight, 0.5, 1.5)):
                values.data.uniform_(low, high, generator=generator)
    return model.eval()


@settings(max_examples=40, deadline=None)
@given(kinds=st.lists(st.sampled_from([*KINDS, WeightsThatAreCalculated]), min_size=1, max_size=4), seed=st.integers(0))
def test_exactly_what_can_be_folded_is_and_the_output_stays(kinds, seed):
    torch.manual_seed(seed % 2**32)
    # Without a layer between them, a block that ends in a convolution folds with one that begins with a norm.
    model = shake(nn.Sequential(*(layer for kind in kinds for layer in (kind(), nn.Tanh()))), seed % 2**32)
    images = torch.randn(3, CHANNELS, 8, 8)
    with torch.inference_mode():
        expected = model(images)
        assert fold_batch_norm(model, images[:2]) == sum(kind.folds for kind in kinds)
        assert torch.allclose(model(images), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("backbone", "architecture", "folded", "left"),
    [
        ("test_resnet", Architecture(), 15, 0),
        ("test_resnet", Architecture(norm="ibn", neck="bnneck", pooling="gem"), 12, 4),
        ("test_efficientnet", Architecture(head="arcface"), 13, 0),
        ("test_vit", Architecture(), 0, 0),
    ],
)
def test_backbones_fold_and_predict_the_same(backbone, architecture, folded, left):
    torch.manual_seed(0)
    model = shake(build_model(backbone, 3, 32, architecture=architecture), 0)
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        expected = model(images)
        assert fold_batch_norm(model, images[:2]) == folded
        assert difference(model(images), expected, "multiclass") < EXACT
    assert sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()) == left


class BiasThatIsIgnored(nn.Conv2d):
    def forward(self, maps):
        return F.conv2d(maps, self.weight, None, padding=1)


def test_a_network_that_folding_would_change_stays_as_it_is():
    class Network(Plain):
        def forward(self, maps):
            return super().forward(maps).mean(dim=(2, 3))

    model = Network()
    model.conv = BiasThatIsIgnored(CHANNELS, CHANNELS, 3, bias=False)
    shake(model, 0)
    wrong, images = copy.deepcopy(model), torch.randn(4, CHANNELS, 8, 8)
    assert fold_batch_norm(wrong, images) == 1
    with torch.inference_mode():
        assert difference(wrong(images), model(images), "multiclass") > EXACT
    assert folded_or_same(model, "multiclass", images) is model


def test_no_number_is_near_nothing():
    nothing = torch.full((1, 2), float("nan"))
    for task in ("multiclass", "regression"):
        assert difference(nothing, torch.zeros(1, 2), task) > 1
