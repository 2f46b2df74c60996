"""Every architecture: its weights file rebuilds it, training and predictions run with it, and what cannot be is refused
before a run begins."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import save_file
from test_pipeline import prepare

import embed
import predict
import train
from kfold.artifacts import Workspace
from kfold.config import Config
from kfold.errors import UserError
from kfold.model.build import build_model, has_fixed_input, input_statistics, refuse_unknown_backbone
from kfold.model.network import Architecture
from kfold.model.torchvision_backbone import known_names
from kfold.model.weights import ModelCard, copy_weights, load_model, weights_to_bytes
from kfold.setup.network import make_card, make_model

SHUFFLENET = "torchvision/shufflenet_v2_x0_5"
CARD = ("multiclass", ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3, (0.0,) * 3, (1.0,) * 3)
IMAGES = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))

ARCHITECTURES = [
    ("test_resnet", Architecture(pooling="gem", neck="bnneck", head="arcface", margin_scale=12.0)),
    ("test_resnet", Architecture(pooling="concat", head="subcenter_arcface", num_subcenters=2, norm="ibn")),
    ("test_efficientnet", Architecture(pooling="spp", head="cosface", norm="group")),
    ("test_vit", Architecture(pooling="avg_max", head="ordinal")),
    ("test_convnext", Architecture(pooling="max", neck="bnneck")),
    (SHUFFLENET, Architecture(neck="bnneck", head="ordinal", norm="group")),
    ("torchvision/googlenet", Architecture()),
    ("torchvision/regnet_y_400mf", Architecture()),
]


def perturb(model):
    """Every tensor away from where it starts."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.02 * torch.rand_like(tensor))
    return model.eval()


@pytest.mark.parametrize(("backbone", "architecture"), ARCHITECTURES)
def test_a_weights_file_rebuilds_every_architecture(backbone, architecture, tmp_path):
    model = perturb(build_model(backbone, 3, 64, drop_rate=0.5, architecture=architecture, multi_sample_dropout=3))
    card = ModelCard(backbone, 64, *CARD, architecture, 0.875)
    path = tmp_path / "last.safetensors"
    path.write_bytes(weights_to_bytes(copy_weights(model), card))
    again, its_card = load_model(path)
    assert its_card == card
    with torch.inference_mode():
        assert torch.equal(again(IMAGES), model(IMAGES))


def test_a_weights_file_of_before_has_the_plain_architecture(tmp_path):
    model = build_model("test_resnet", 3, 32)
    content = save_with_metadata(
        tmp_path, model, lambda values: (values.pop("architecture"), values.pop("center_crop"))
    )
    _, card = load_model(content)
    assert (card.architecture, card.center_crop) == (Architecture(), 1.0)


def test_a_card_of_a_later_version_is_named_not_a_traceback(tmp_path):
    model = build_model("test_resnet", 3, 32)
    path = save_with_metadata(tmp_path, model, lambda values: values["architecture"].update(mystery=1))
    with pytest.raises(UserError, match="last.safetensors: damaged or not a weights file"):
        load_model(path)


def save_with_metadata(folder, model, change):
    path = folder / "last.safetensors"
    path.write_bytes(weights_to_bytes(copy_weights(model), ModelCard("test_resnet", 32, *CARD)))
    with safe_open(path, "pt") as file:
        values = json.loads(file.metadata()["kfold"])
    change(values)
    save_file(copy_weights(model), path, {"kfold": json.dumps(values)})
    return path


# Drop path


def test_drop_path_0_is_the_plain_network_and_more_leaves_out_blocks_in_training_alone():
    plain, dropped = (build_model("test_convnext", 3, 64, drop_path_rate=rate) for rate in (0.0, 0.9))
    perturb(plain)
    dropped.load_state_dict(plain.state_dict())
    assert torch.equal(dropped.eval()(IMAGES), plain(IMAGES))
    assert torch.equal(plain.train()(IMAGES), plain.eval()(IMAGES))
    outputs = [dropped.train()(IMAGES) for _ in range(3)]
    assert not torch.equal(outputs[0], outputs[1]) or not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("backbone", ["densenet121", "ghostnet_100"])
def test_a_backbone_that_leaves_out_no_blocks_is_refused(backbone):
    with pytest.raises(UserError, match=f"drop_path_rate=0.1: {backbone} cannot leave out blocks"):
        build_model(backbone, 3, 64, drop_path_rate=0.1)


# Torchvision


def local_weights(folder, name="shufflenet_v2_x0_5", change=lambda state: None):
    torch.manual_seed(4)
    state = torchvision.models.get_model(name).state_dict()
    change(state)
    torch.save(state, folder / "weights.pth")
    return str(folder / "weights.pth")


def test_local_torchvision_weights_fill_the_backbone(tmp_path):
    path = local_weights(tmp_path)
    model = build_model(SHUFFLENET, 3, 64, pretrained=True, pretrained_path=path)
    stored = torch.load(path)
    filled = model.backbone.network.state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in filled.items())
    assert len(filled) == len(stored) - 2  # without the classifier


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda state: state.pop("conv5.0.weight"), r"1 of \d+ .* are not in it, the first is conv5\.0\.weight"),
        (lambda state: state.update({"stage9.w": torch.zeros(1)}), r"1 of .* none of the model's.*torchvision's names"),
        (lambda state: state.update({"conv5.0.weight": torch.zeros(2, 2, 1, 1)}), "does not fit torchvision/shuffle"),
    ],
    ids=["lacks one", "one too many", "another shape"],
)
def test_local_weights_of_another_network_are_refused(change, problem, tmp_path):
    with pytest.raises(UserError, match=problem) as caught:
        build_model(SHUFFLENET, 3, 64, pretrained=True, pretrained_path=local_weights(tmp_path, change=change))
    assert len(str(caught.value).splitlines()) == 1


def test_old_names_of_densenet_are_known_and_second_heads_left_out():
    old = {"features.denseblock1.denselayer1.norm.1.weight": 0, "AuxLogits.fc.weight": 1, "features.norm0.weight": 2}
    assert list(known_names(old)) == ["features.denseblock1.denselayer1.norm1.weight", "features.norm0.weight"]


def test_torchvision_weights_without_a_network_stop_with_the_remedies(monkeypatch):
    def no_network(*_arguments, **_options):
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(UserError, match=r"Name or service not known.*pretrained_path=FILE.*pretrained=false"):
        build_model(SHUFFLENET, 3, 64, pretrained=True)


@pytest.mark.parametrize("name", ["shufflenet", "mnasnet1_0", "fasterrcnn_resnet50_fpn", ""])
def test_an_unknown_network_of_torchvision_is_named(name):
    with pytest.raises(UserError, match=f"backbone 'torchvision/{name}': torchvision has no classification network"):
        refuse_unknown_backbone(f"torchvision/{name}")


def test_torchvision_backbones_say_how_to_feed_them():
    assert has_fixed_input("torchvision/vit_b_16")
    assert not has_fixed_input(SHUFFLENET)
    mean, std = input_statistics(build_model(SHUFFLENET, 3, 64).backbone)
    assert (mean, std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.device("meta"):
        fixed, free = (build_model(f"torchvision/{name}", 3, 64).backbone for name in ("vit_b_16", "alexnet"))
    assert fixed.pretrained_cfg["fixed_input_size"]  # what predict.py asks before it makes views of other sizes
    assert not free.pretrained_cfg["fixed_input_size"]
    with pytest.raises(UserError, match="squeezenet1_0': its classifier is not linear"), torch.device("meta"):
        build_model("torchvision/squeezenet1_0", 3, 64)


# From the settings


def test_the_prior_is_of_the_training_rows_and_the_weights_are_the_seeds():
    targets = np.eye(3, dtype=np.float32)[[0, 0, 0, 1]]
    values = {"backbone": "test_resnet", "pretrained": False, "image_size": 32}
    model = make_model(Config(**values, prior_bias=True), "multiclass", 0, targets)
    np.testing.assert_allclose(model.head.bias.detach().exp(), [0.75, 0.25, 0.125], rtol=1e-6)
    plain = make_model(Config(**values), "multiclass", 0, targets)
    assert not plain.head.bias.any()
    assert torch.equal(model.head.weight, plain.head.weight)


def test_the_card_says_the_scale_that_0_stands_for():
    config = Config(backbone="test_resnet", pretrained=False, image_size=32, head="arcface", margin_scale=0)
    targets = np.eye(5, dtype=np.float32)
    model = make_model(config, "multiclass", 0, targets)
    card = make_card(model, config, "multiclass", tuple("abcde"), targets)
    assert card.architecture.margin_scale == model.head.scale == pytest.approx(np.sqrt(2) * np.log(4))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["pooling=gem", f"backbone={SHUFFLENET}"], "pooling=gem with backbone=torchvision/"),
        (["drop_path_rate=0.1", f"backbone={SHUFFLENET}"], "drop_path_rate=0.1 with backbone=torchvision/"),
        (["drop_path_rate=0.1", "backbone=densenet121"], "densenet121 cannot leave out blocks"),
        (["norm=ibn", "backbone=test_efficientnet"], "norm=ibn: test_efficientnet is not built as a ResNet"),
        (["norm=ibn", "image_size=8"], "at 8 pixels, pooling=default, norm=ibn does not work"),
        (["zero_gamma=on", "backbone=test_vit"], "zero_gamma=on: test_vit has no residual blocks"),
        (["pooling=avg", "backbone=pit_ti_224", "image_size=224"], "pooling=avg, norm=default does not work .*no map"),
        (["layer_decay=0.7", "backbone=poolformer_s12"], "layer_decay=0.7: MetaFormer does not tell the order"),
        (["freeze_stages=6", "pretrained=true", "pretrained_path=x"], "freeze_stages=6: test_resnet has 5 stages"),
        (
            ["backbone=torchvision/vit_b_16", "image_size=40"],
            "torchvision/vit_b_16' cannot take image_size=40: .*divisible",
        ),
    ],
)
def test_what_the_backbone_cannot_do_is_said_before_a_run_begins(words, problem, shared_root):
    with pytest.raises(UserError, match=problem) as caught:
        train.main(fold="0", overrides=words, name="refused", root=shared_root)
    assert len(caught.value.problems) == 1
    assert not Workspace(shared_root).fold_dir("refused", 0).parent.exists()


# End to end


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("architecture")
    return prepare(root, "multiclass", 90, 30, epochs=1, batch_size=16)


@pytest.mark.parametrize(
    "words",
    [
        [
            "pooling=gem", "neck=bnneck", "head=subcenter_arcface", "margin_scale=0", "norm=ibn", "zero_gamma=on",
            "drop_rate=0.2", "multi_sample_dropout=3", "drop_path_rate=0.2", "precision=bfloat16", "accumulate=2",
            "ema_decay=0.9",
        ],
        [f"backbone={SHUFFLENET}", "head=ordinal", "precision=float16"],
    ],
    ids=["everything", "torchvision"],
)  # fmt: skip
def test_training_and_predictions_run_with_it(words, shared_root, request):
    run = request.node.callspec.id
    train.main(fold="0", overrides=words, name=run, root=shared_root)
    predict.main(run=run, root=shared_root)
    table = pd.read_parquet(Workspace(shared_root).predictions_path(run, 0, "test"))
    probabilities = table.filter(like="p_").to_numpy()
    assert probabilities.shape == (30, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-4)


def test_embeddings_come_from_torchvision_too(shared_root):
    embed.main(SHUFFLENET, image_size=32, random_weights=True, root=shared_root)
    assert Workspace(shared_root).embeddings_path.exists()
