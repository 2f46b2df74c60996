import pickle
import time

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from kfold.errors import UserError
from kfold.model.build import build_model, input_statistics
from kfold.model.weights import ModelCard, copy_weights, load_model, normalize, weights_to_bytes


@pytest.fixture(scope="module")
def local_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    torch.manual_seed(5)
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


def make_card(**changes):
    values = {
        "backbone": "test_resnet",
        "image_size": 32,
        "task": "multiclass",
        "names": ("a", "b", "c"),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "offset": (0.0, 0.0, 0.0),
        "scale": (1.0, 1.0, 1.0),
    }
    return ModelCard(**{**values, **changes})


def test_weights_that_this_repository_trained_are_no_pretrained_weights(tmp_path):
    """Fold 1's model saw fold 0: with its weights to start from, random labels scored an AUC of 0.83."""
    path = tmp_path / "last.safetensors"
    path.write_bytes(weights_to_bytes(copy_weights(build_model("test_resnet", 3, 32)), make_card()))
    with pytest.raises(UserError, match=r"last\.safetensors': trained by this repository.*distill_from"):
        build_model("test_resnet", 3, 32, pretrained=True, pretrained_path=str(path))


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "test_vit"])
def test_logits_have_one_column_per_output_at_any_configured_size(backbone):
    model = build_model(backbone, 7, image_size=48)
    assert model(torch.zeros(2, 3, 48, 48)).shape == (2, 7)


def test_local_weights_fill_the_backbone_and_leave_the_head_fresh(local_weights):
    model = build_model("test_resnet", 3, 32, pretrained=True, pretrained_path=str(local_weights))
    stored = load_file(local_weights)
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, stored[name]), name
    assert 0 < model.head.weight.std() < 0.02
    assert model.head.bias.abs().sum() == 0


def test_a_transformers_positions_are_resampled_from_local_weights(tmp_path):
    path = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    model = build_model("test_vit", 3, 64, pretrained=True, pretrained_path=str(path))
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_weights_of_another_model_are_refused_not_half_loaded(local_weights):
    with pytest.raises(UserError, match=r"tensors of test_efficientnet are not in it"):
        build_model("test_efficientnet", 3, 32, pretrained=True, pretrained_path=str(local_weights))


def test_a_file_that_lacks_one_backbone_parameter_is_refused_by_its_name(local_weights, tmp_path):
    state = load_file(local_weights)
    del state["layer1.0.conv1.weight"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"1 of \d+ .*layer1\.0\.conv1\.weight"):
        build_model("test_resnet", 3, 32, pretrained=True, pretrained_path=str(tmp_path / "part.safetensors"))


class Payload:
    """Unpickling it would create the file `canary` in the working directory."""

    def __reduce__(self):
        return (open, ("canary", "w"))


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", pickle.dumps({"a": Payload()})], ids=["empty", "nonsense", "pickle with code"]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_unreadable_or_unsafe_weights_are_refused_in_one_line_and_never_run(tmp_path, content, suffix, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="pretrained_path") as caught:
        build_model("test_resnet", 3, 32, pretrained=True, pretrained_path=str(path))
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "canary").exists()


def test_a_larger_sibling_and_another_shape_are_refused(local_weights, tmp_path):
    state = load_file(local_weights)
    save_file({**state, "layer1.7.conv1.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(UserError, match=r"1 of .* of it are none of the model's, the first is layer1\.7\.conv1"):
        build_model("test_resnet", 3, 32, pretrained=True, pretrained_path=str(tmp_path / "more.safetensors"))
    save_file({**state, "layer1.0.conv1.weight": torch.zeros(2, 3, 3, 3)}, tmp_path / "shape.safetensors")
    with pytest.raises(UserError, match="does not fit test_resnet") as caught:
        build_model("test_resnet", 3, 32, pretrained=True, pretrained_path=str(tmp_path / "shape.safetensors"))
    assert len(str(caught.value).splitlines()) == 1


def test_missing_batchnorm_statistics_are_refused(local_weights, tmp_path):
    state = {name: value for name, value in load_file(local_weights).items() if "running" not in name}
    save_file(state, tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match="running_mean"):
        build_model("test_resnet", 3, 32, pretrained=True, pretrained_path=str(tmp_path / "bare.safetensors"))


def test_a_missing_weights_file_and_an_unknown_backbone_are_named():
    with pytest.raises(UserError, match=r"'nowhere.safetensors': no such file"):
        build_model("test_resnet", 3, 32, pretrained=True, pretrained_path="nowhere.safetensors")
    with pytest.raises(UserError, match=r"backbone 'nowhere'.*see timm.list_models"):
        build_model("nowhere", 3, 32)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("resnet81", "resnet18"),
        ("RESNET18", "resnet18"),
        ("efficientnetb0", "efficientnet_b0"),
        ("vit_small", "vit_small_patch8_224"),
        ("torchvision/resnet81", "torchvision/resnet18"),
    ],
)
def test_a_misspelt_backbone_names_the_one_that_may_be_meant(typed, meant):
    with pytest.raises(UserError, match=rf"backbone '{typed}'.*did you mean (.*, )?{meant}[,?]"):
        build_model(typed, 3, 32)


def test_pretrained_without_a_network_stops_with_the_remedies(monkeypatch):
    def no_network(*_arguments, **_options):
        raise OSError("Name or service not known")

    monkeypatch.setattr("kfold.model.build.hub_answers", lambda: True)
    monkeypatch.setattr("timm.models._builder.load_pretrained", no_network)
    with pytest.raises(UserError, match=r"Name or service not known.*pretrained_path=FILE.*pretrained=false"):
        build_model("test_resnet", 3, 32, pretrained=True)


def test_an_unreachable_hub_is_noticed_at_once_not_retried(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"cannot be downloaded.*pretrained=false"):
        build_model("resnet18", 3, 32, pretrained=True)
    assert time.monotonic() - started < 20


def test_a_weights_file_rebuilds_the_same_model(tmp_path):
    model = build_model("test_efficientnet", 3, 32).eval()
    (tmp_path / "last.safetensors").write_bytes(
        weights_to_bytes(copy_weights(model), make_card(backbone="test_efficientnet"))
    )
    again, card = load_model(tmp_path / "last.safetensors")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(images), model(images))
    assert card == make_card(backbone="test_efficientnet")


def test_a_cut_weights_file_is_named(tmp_path):
    content = weights_to_bytes(copy_weights(build_model("test_resnet", 3, 32)), make_card())
    (tmp_path / "last.safetensors").write_bytes(content[:-100])
    with pytest.raises(UserError, match=r"last\.safetensors: damaged"):
        load_model(tmp_path / "last.safetensors")


def test_normalize_is_mean_and_std_on_the_0_to_1_scale():
    images = torch.randint(0, 256, (2, 5, 4, 3), dtype=torch.uint8)
    mean, std = input_statistics(timm.create_model("resnet18"))
    expected = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(normalize(images, mean, std), expected, atol=1e-5)
