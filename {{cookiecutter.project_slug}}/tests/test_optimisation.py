"""The optimisation recipes in a training: clipping, freezing, rates by group."""

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from interrupted import StopAfter, fingerprint, train_in_pieces
from safetensors.torch import load_file, save_file
from test_pipeline import prepare
from torch import nn

import predict
import train
from kfold.artifacts import Workspace
from kfold.config import load_config
from kfold.data.loader import Batch
from kfold.errors import Interrupted
from kfold.model.build import build_model
from kfold.model.weights import ModelCard
from kfold.setup.training import make_optimizer_of, make_recipe
from kfold.training.averaging import refresh_batch_norm
from kfold.training.loop import keep_frozen
from kfold.training.losses import choose_loss
from kfold.training.objective import Objective
from kfold.training.optimizers import make_optimizer
from kfold.training.precision import Precision
from kfold.training.state import Training
from kfold.training.step import Moment, take_step

CPU = torch.device("cpu")
FLOAT32 = Precision(torch.float32, "test")
HALF = (0.5,) * 3
CARD = ModelCard("test", 8, "multiclass", ("a", "b", "c"), HALF, HALF, (0.0,) * 3, (1.0,) * 3)


class Colours(nn.Module):
    """Mean colour -> logits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 3)

    def forward(self, images, with_features=False):
        features = images.mean(dim=(2, 3))
        return (self.head(features), features) if with_features else self.head(features)


def step_once(clip_grad, accumulate=1, scaler=None):
    """How far one step of plain descent at rate 1 moves: the gradient, as it was applied."""
    model = Colours()
    before = model.head.weight.detach().clone()
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    training = Training(model, torch.optim.SGD(model.parameters(), lr=1.0), scaler, accumulate=accumulate)
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (12, 8, 8, 3), dtype=torch.uint8, generator=draw)
    targets = nn.functional.one_hot(torch.arange(12) % 3).float()
    weights = torch.rand(12, 1, generator=draw).expand(12, 3)  # unequal: a mean of means would differ
    batch = Batch(pixels, targets, weights, torch.arange(12), [])
    objective = Objective(choose_loss("auto", "multiclass"))
    take_step(training, CARD, objective, batch, Moment(0, 0, 0.0, 1.0, 7, clip_grad), CPU, FLOAT32)
    gradients = [parameter.grad for parameter in model.parameters()]
    return before - model.head.weight.detach(), torch.nn.utils.get_total_norm(gradients)


# Clipping


@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_the_clipped_gradient_is_that_of_the_whole_batch_unscaled_whatever_its_parts(accumulate, scale):
    free, length = step_once(0.0)
    limit = float(length) / 3
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    clipped, its_length = step_once(limit, accumulate, scaler)
    assert torch.allclose(clipped, free / 3, atol=1e-6)
    assert float(its_length) == pytest.approx(limit, rel=1e-4)
    assert torch.equal(step_once(2 * float(length))[0], free)  # long enough: nothing is clipped


# Freezing


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A competition with a file of weights that pass for pretrained ones."""
    root = prepare(tmp_path_factory.mktemp("root"), "multiclass", 60, 12, batch_size=16, epochs=3)
    torch.manual_seed(1)
    save_file(timm.create_model("test_resnet").state_dict(), root / "pretrained.safetensors")
    return root


def words_of(root, *words):
    return ["pretrained=true", f"pretrained_path={root / 'pretrained.safetensors'}", *words]


def backbone_of(path):
    return {name: tensor for name, tensor in load_file(path).items() if name.startswith("backbone.")}


def test_a_frozen_backbone_is_the_pretrained_one_and_learns_once_it_is_free(root):
    folder = Workspace(root).fold_dir("frozen", 0)
    words = words_of(root, "epochs=2", "freeze_epochs=1", "freeze_batch_norm=true", "optimizer=lamb")
    with pytest.raises(Interrupted):
        train.main(fold="0", overrides=words, name="frozen", root=root, stop=StopAfter(2))
    state = torch.load(folder / "state.pt", weights_only=True)
    pretrained = load_file(root / "pretrained.safetensors")
    assert state["epoch"] == 0
    for name, tensor in state["model"].items():
        if name.startswith("backbone."):
            assert torch.equal(tensor, pretrained[name.removeprefix("backbone.")]), name
    config = load_config(root / "configs" / "baseline.yaml", words)
    model = build_model("test_resnet", 10, 32)
    optimizer = make_optimizer_of(model, config)
    optimizer.load_state_dict(state["optimizer"])
    assert {weight for weight in model.parameters() if weight in optimizer.state} == set(model.head.parameters())
    train.main(fold="0", overrides=words, name="frozen", root=root)
    changed = [
        name
        for name, tensor in backbone_of(folder / "last.safetensors").items()
        if not torch.equal(tensor, pretrained[name.removeprefix("backbone.")])
    ]
    assert changed
    assert not any("running" in name for name in changed)


def test_a_training_that_freezes_ends_with_the_same_bytes_after_interruptions(root):
    words = words_of(
        root, "freeze_epochs=1", "freeze_stages=1", "freeze_batch_norm=true", "optimizer=lamb", "ema_decay=0.9",
        "swa_from_epoch=2", "select=swa", "clip_grad=0.1", "accumulate=2", "schedule=one_cycle",
    )  # fmt: skip
    train.main(fold="0", overrides=words, name="whole", root=root)
    assert train_in_pieces(root, "pieces", words, 2) > 3
    first, second = fingerprint(root, "whole"), fingerprint(root, "pieces")
    for key in set(first) - {"manifest", "oof.parquet"}:
        assert first[key] == second[key], key
    swa = backbone_of(Workspace(root).fold_dir("whole", 0) / "swa.safetensors")
    pretrained = load_file(root / "pretrained.safetensors")
    for name in swa:
        if "running" in name:
            assert torch.equal(swa[name], pretrained[name.removeprefix("backbone.")]), name


def test_statistics_that_are_not_frozen_are_still_refreshed(root):
    model = build_model("test_resnet", 3, 32)
    config = load_config(root / "configs" / "baseline.yaml", words_of(root, "freeze_batch_norm=true"))
    frozen = make_recipe(config, 0)
    whole = nn.Sequential(model, nn.BatchNorm1d(3))
    before = {name: buffer.clone() for name, buffer in whole.named_buffers()}
    images = [torch.randn(8, 3, 32, 32) for _ in range(2)]
    refresh_batch_norm(whole, images, lambda average: keep_frozen(average[0], frozen, 3))
    for name, buffer in whole.named_buffers():
        if "running" in name:
            assert torch.equal(buffer, before[name]) == ("backbone." in name), name
    refresh_batch_norm(whole, images)
    assert not any(torch.equal(buffer, before[name]) for name, buffer in whole.named_buffers() if "mean" in name)
    assert all(norm.momentum == 0.1 for norm in whole.modules() if isinstance(norm, nn.BatchNorm2d))


# Rates


def test_groups_learn_at_their_share_of_the_rate_of_the_schedule():
    model = Colours()
    model.backbone = nn.Linear(3, 3)
    optimizer = make_optimizer("sgd", model, 0.1, 0.0, backbone_lr=0.25)
    training = Training(model, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    pixels, targets = torch.zeros(4, 8, 8, 3, dtype=torch.uint8), torch.eye(3)[[0, 1, 2, 0]]
    batch = Batch(pixels, targets, torch.ones(4, 3), torch.arange(4), [])
    take_step(
        training, CARD, Objective(choose_loss("auto", "multiclass")), batch, Moment(0, 0, 0.0, 0.8, 7), CPU, FLOAT32
    )
    rates = {weight: group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert {rates[weight] for weight in model.backbone.parameters()} == {0.2}
    assert {rates[weight] for weight in model.head.parameters()} == {0.8}


@pytest.mark.parametrize(
    "words",
    [
        ["optimizer=adabound", "schedule=step", "step_epochs=[1]", "precision=float16", "warmup_epochs=0"],
        ["optimizer=lion", "schedule=polynomial", "backbone_lr=0.1", "decay_all=true", "weight_decay=0.1"],
        ["optimizer=lars", "schedule=inverse_time", "scale_lr=true", "lr=4", "precision=bfloat16"],
    ],
    ids=lambda words: words[0],
)
def test_choices_train_and_predict(root, words):
    run = words[0].replace("=", "-")
    train.main(fold="0", overrides=[*words, "epochs=2"], name=run, root=root)
    predict.main(run=run, root=root)
    log = pd.read_csv(Workspace(root).log_path(run, 0))
    assert np.isfinite(log["train_loss"]).all()
    expected = {"optimizer-adabound": [0.003, 0.0003], "optimizer-lars": [0.25, 0.25 / (1 + 0.1 / 2)]}
    if run in expected:
        assert log["lr"].tolist() == pytest.approx(expected[run])
