"""Other norms in place of BatchNorm, and residual blocks that start as the identity."""

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from kfold.errors import UserError
from kfold.model.build import build_model
from kfold.model.network import Architecture
from kfold.model.norms import InstanceBatchNorm, replace_norms, to_group_norm
from kfold.model.zero_gamma import is_residual, last_scales, set_zero_gamma

IMAGES = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def randomize(model):
    """Weights of norms as training leaves them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)
    return model


# GroupNorm


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])
def test_group_norm_leaves_no_batch_norm_and_sees_no_other_image(backbone):
    model = build_model(backbone, 3, 64, architecture=Architecture(norm="group"))
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    alone = torch.cat([model(image[None]) for image in IMAGES])
    assert torch.allclose(model(IMAGES), alone, atol=1e-4)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])
def test_group_norm_keeps_affine_weights_and_activations(backbone):
    before = randomize(timm.create_model(backbone, num_classes=0))
    after = randomize(timm.create_model(backbone, num_classes=0))
    after.load_state_dict(before.state_dict())
    replace_norms(after, backbone, "group")
    for name, norm in before.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            swapped = after.get_submodule(name)
            assert isinstance(swapped, nn.GroupNorm)
            assert torch.equal(swapped.weight, norm.weight)
            assert torch.equal(swapped.bias, norm.bias)
            if isinstance(norm, BatchNormAct2d):
                assert swapped.act.__class__ is norm.act.__class__


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (96, 32), (48, 24), (40, 20), (7, 7), (37, 1), (31, 31)])
def test_groups_are_32_or_the_largest_divisor_below(channels, groups):
    assert to_group_norm(nn.BatchNorm2d(channels)).num_groups == groups


def test_a_swapped_activation_is_applied_once():
    norm = BatchNormAct2d(8, act_layer=nn.SiLU)
    maps = torch.randn(2, 8, 5, 5)
    expected = nn.functional.silu(nn.functional.group_norm(maps, 8))
    assert torch.allclose(to_group_norm(norm)(maps), expected, atol=1e-5)


# IBN


def test_half_of_the_channels_see_their_own_image_and_half_the_batch():
    norm = randomize(nn.Sequential(nn.BatchNorm2d(7)))[0]
    maps = torch.randn(4, 7, 5, 5)
    ibn = InstanceBatchNorm(norm)
    found = ibn.train()(maps)
    weight, bias = norm.weight.detach(), norm.bias.detach()
    instance = nn.functional.instance_norm(maps[:, :3], weight=weight[:3], bias=bias[:3])
    batch = nn.functional.batch_norm(maps[:, 3:], None, None, weight[3:], bias[3:], training=True)
    assert torch.allclose(found, torch.cat([instance, batch], dim=1), atol=1e-5)
    again = InstanceBatchNorm(norm).eval()(maps)
    assert torch.allclose(again[:, 3:], norm.eval()(maps)[:, 3:], atol=1e-5)  # statistics came along


@pytest.mark.parametrize("backbone", ["test_resnet", "torchvision/resnet18"])
def test_ibn_is_the_first_norm_of_each_block_of_the_first_three_stages(backbone):
    model = build_model(backbone, 3, 64, architecture=Architecture(norm="ibn"))
    places = {name for name, module in model.named_modules() if isinstance(module, InstanceBatchNorm)}
    blocks = {name.rpartition(".")[0] for name in places}
    assert all(name.endswith(".bn1") for name in places)
    stages = [f"layer{number}" for number in (1, 2, 3)]
    wanted = {name for name, module in model.named_modules() if is_residual(module) and name.split(".")[-2] in stages}
    assert blocks == wanted
    assert model(IMAGES).shape == (4, 3)


def test_ibn_keeps_an_activation_in_the_norm():
    norm = BatchNormAct2d(6, act_layer=nn.ReLU)
    assert InstanceBatchNorm(norm)(torch.randn(3, 6, 4, 4)).min() == 0


@pytest.mark.parametrize(("backbone", "norm"), [("test_vit", "group"), ("test_convnext", "group")])
def test_a_backbone_without_batch_norm_is_refused(backbone, norm):
    with pytest.raises(UserError, match=f"norm={norm}: {backbone} has no BatchNorm"):
        build_model(backbone, 3, 64, architecture=Architecture(norm=norm))


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_vit", "torchvision/densenet121"])
def test_ibn_of_another_family_is_refused(backbone):
    with pytest.raises(UserError, match=f"norm=ibn: {backbone} is not built as a ResNet"):
        build_model(backbone, 3, 64, architecture=Architecture(norm="ibn"))


# Zero gamma


def residual_blocks(backbone):
    found = []
    for module in backbone.modules():
        if is_residual(module):
            module.register_forward_hook(lambda block, inputs, output: found.append((block, inputs[0], output)))
    return found


@pytest.mark.parametrize("backbone", ["test_resnet", "mobilenetv3_small_050", "torchvision/resnet18"])
@pytest.mark.parametrize("norm", ["default", "group"])
def test_with_zero_gamma_each_residual_block_is_the_identity_up_to_its_activation(backbone, norm):
    model = randomize(build_model(backbone, 3, 64, architecture=Architecture(norm=norm)))
    for name, bias in model.named_parameters():
        if name.endswith("bias"):
            bias.data.zero_()  # as norms start
    set_zero_gamma(model.backbone, backbone, "on")
    found = residual_blocks(model.backbone)
    images = IMAGES.clone()
    model.eval()(images)
    assert found
    for block, given, made in found:
        shortcut = block.downsample(given) if getattr(block, "downsample", None) else given
        rectified = shortcut if "mobilenet" in backbone else shortcut.relu()
        assert torch.allclose(made, rectified, atol=1e-5), block


def test_a_convnext_with_zero_gamma_has_blocks_that_are_the_identity():
    backbone = timm.create_model("test_convnext", num_classes=0).eval()
    set_zero_gamma(backbone, "test_convnext", "on")
    block = backbone.stages[1].blocks[0]
    maps = torch.randn(2, block.conv_dw.in_channels, 4, 4)
    assert torch.equal(block(maps), maps)


def test_off_is_1_and_default_is_what_the_library_gives():
    for backbone, start in (("test_resnet", 0.0), ("mobilenetv3_small_050", 1.0)):
        for choice, expected in (("default", start), ("off", 1.0), ("on", 0.0)):
            model = timm.create_model(backbone, num_classes=0)
            set_zero_gamma(model, backbone, choice)
            assert all((scale == expected).all() for scale in last_scales(model)), (backbone, choice)


def test_a_zero_that_an_activation_follows_would_never_learn_and_is_not_set():
    """ReLU has no slope at 0: a pre-activation ResNet keeps its norms."""
    with torch.device("meta"):
        backbone = timm.create_model("resnetv2_18", num_classes=0)
    with pytest.raises(UserError, match="zero_gamma=on: resnetv2_18 has no residual blocks"):
        set_zero_gamma(backbone, "resnetv2_18", "on")


@pytest.mark.parametrize("backbone", ["test_vit", "torchvision/vgg11"])
def test_a_backbone_without_known_blocks_is_refused(backbone):
    with torch.device("meta"):
        model = build_model(backbone, 3, 64)
    with pytest.raises(UserError, match=f"zero_gamma=off: {backbone} has no residual blocks"):
        set_zero_gamma(model.backbone, backbone, "off")
