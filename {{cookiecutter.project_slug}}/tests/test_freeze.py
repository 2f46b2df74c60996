"""Frozen parts do not move through a step, and unfrozen ones do again."""

import copy

import pytest
import torch

from kfold.errors import UserError
from kfold.model.build import build_model
from kfold.model.freeze import batch_norms, freeze
from kfold.model.network import Architecture
from kfold.model.stages import refuse_too_many_stages, stages_of

IMAGES = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
BACKBONES = ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "torchvision/shufflenet_v2_x0_5"]


def moved(model, stages=0, batch_norm=False, whole_backbone=False):
    """Names in the state that an epoch of one step changes, in a copy of the model."""
    model = copy.deepcopy(model).train()
    freeze(model, stages, batch_norm, whole_backbone)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    model(IMAGES).square().sum().backward()
    optimizer.step()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.fixture(params=BACKBONES)
def model(request):
    torch.manual_seed(0)
    model = build_model(request.param, 3, 64, architecture=Architecture(neck="bnneck"))
    torch.nn.init.normal_(model.head.weight)
    return model


def in_backbone(names):
    return {name for name in names if name.startswith("backbone.")}


def test_everything_learns_but_what_is_frozen(model):
    everything = moved(model)
    stages = stages_of(model.backbone)
    frozen = {f"backbone.{name}" for stage in stages[:2] for name in stage}
    places = {name.rpartition(".")[0] for name in frozen}
    kept = {name for name in everything if name in frozen or name.rpartition(".")[0] in places}
    assert kept
    assert moved(model, stages=2) == everything - kept
    assert moved(model, whole_backbone=True) == everything - in_backbone(everything)
    norms = {f"backbone.{place}" for place in batch_norms(model.backbone)}
    assert moved(model, batch_norm=True) == {name for name in everything if name.rpartition(".")[0] not in norms}
    freeze(model.train(), 2, True, True)
    assert moved(model) == everything  # the next epoch may learn again


def test_the_neck_and_the_head_learn_over_a_frozen_backbone(model):
    names = moved(model, whole_backbone=True)
    assert {"head.weight", "head.bias", "neck.weight", "neck.running_mean"} <= names
    assert "neck.bias" not in names


def test_a_frozen_backbone_computes_what_predictions_see(model):
    expected = model.eval()(IMAGES, with_features=True)[1]
    model.train()
    freeze(model, 0, False, True)
    assert torch.equal(model(IMAGES, with_features=True)[1], expected)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"])
def test_drop_path_and_dropout_are_off_in_frozen_stages_and_on_in_the_others(backbone):
    model = build_model(backbone, 3, 64, drop_path_rate=0.9)
    stages = stages_of(model.backbone)
    for num_frozen in (len(stages) - 2, len(stages)):
        freeze(model.train(), num_frozen, False, False)
        learning = {name.rpartition(".")[0] for stage in stages[num_frozen:] for name in stage}
        for name, module in model.backbone.named_modules():
            if "drop" in name and "." in name:  # those of a block
                block = name.rpartition(".")[0]
                assert module.training == any(f"{place}.".startswith(f"{block}.") for place in learning), name
    twice = [model(IMAGES, with_features=True)[1] for _ in range(2)]
    assert torch.equal(*twice)
    assert torch.equal(twice[0], model.eval()(IMAGES, with_features=True)[1])


def test_stages_cover_every_parameter_once_and_too_many_are_refused(model):
    stages = stages_of(model.backbone)
    names = [name for stage in stages for name in stage]
    assert sorted(names) == sorted(name for name, _ in model.backbone.named_parameters())
    refuse_too_many_stages(model.backbone, "it", len(stages))
    with pytest.raises(UserError, match=f"it has {len(stages)} stages, the stem counted"):
        refuse_too_many_stages(model.backbone, "it", len(stages) + 1)


@pytest.mark.parametrize("backbone", ["test_resnet", "torchvision/resnet18"])
def test_a_resnet_has_the_stem_and_four_stages(backbone):
    with torch.device("meta"):
        stages = stages_of(build_model(backbone, 3, 64).backbone)
    parts = [{name.removeprefix("network.").split(".")[0] for name in stage} for stage in stages]
    assert parts == [{"conv1", "bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]


def test_what_a_backbone_never_trains_stays_so():
    model = build_model("test_vit", 3, 64)
    model.backbone.pos_embed.requires_grad_(False)
    again = type(model)(model.backbone, model.head)
    freeze(again, 0, False, True)
    freeze(again, 0, False, False)
    assert not model.backbone.pos_embed.requires_grad
    assert model.backbone.cls_token.requires_grad
    with pytest.raises(UserError, match="nobody tells the stages of Identity"):
        stages_of(torch.nn.Identity())
