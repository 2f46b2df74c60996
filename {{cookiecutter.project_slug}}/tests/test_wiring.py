"""Settings reach the blocks that they are for, and the blocks reach the step."""

import math
from dataclasses import fields
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from test_training import CPU, FLOAT32, Brightness, make_card
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from kfold.config import Config
from kfold.data.augment import Augmentation, eval_transform, train_transform
from kfold.data.cache import FILES
from kfold.data.loader import Batch, EpochOrder, Images, make_loader
from kfold.model.build import build_model
from kfold.model.heads import OrdinalHead
from kfold.model.pooling import GeM
from kfold.model.weights import normalize
from kfold.on_device import on_device
from kfold.setup.batches import make_augmentation, make_size_of
from kfold.setup.network import make_architecture, make_model
from kfold.setup.objective import make_loss_terms, make_margin, make_mixer, make_objective
from kfold.setup.rows import TrainingRows
from kfold.setup.start import make_network
from kfold.setup.training import make_averages, make_optimizer_of, make_recipe
from kfold.training.loop import fit
from kfold.training.losses import choose_loss
from kfold.training.objective import Objective
from kfold.training.optimizers import make_optimizer
from kfold.training.schedules import SCHEDULES, Curve
from kfold.training.state import Training
from kfold.training.step import Moment, take_step

NONE = np.array([])


def rows_of(targets: np.ndarray) -> TrainingRows:
    return TrainingRows(NONE, NONE, targets, np.ones_like(targets), len(targets), NONE, NONE, NONE)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "ricap"])
def test_a_larger_beta_mixes_more_evenly_and_a_mixture_is_of_several_images(name):
    key = {"mixup": "mixup_alpha", "cutmix": "cutmix_alpha", "ricap": "ricap_beta"}[name]
    targets, pixels = torch.eye(4), torch.zeros(4, 16, 16, 3, dtype=torch.uint8)

    def greatest_share(beta: float) -> float:
        mix, found = make_mixer(Config(mixing=name, **{key: beta})), []
        for seed in range(40):
            torch.manual_seed(seed)
            found.append(mix(0, pixels, targets, torch.ones(4, 4))[1].amax(dim=1).mean().item())
        return float(np.mean(found))

    assert greatest_share(0.05) > greatest_share(20.0) + 0.1
    assert greatest_share(20.0) < 0.8


@pytest.mark.parametrize(("has_teachers", "weight"), [(False, 1.0), (True, 0.7)])
def test_teachers_take_their_weight_from_the_labels(has_teachers, weight):
    config = Config(distill_from="teacher", distill_weight=0.3)
    objective = make_objective(config, "multiclass", [], has_teachers, rows_of(np.eye(3, dtype=np.float32)))
    assert objective.label_weight == pytest.approx(weight)


def test_the_ordinal_head_is_float32_under_autocast():
    head = OrdinalHead(8, 5)
    features = torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(features)
    assert logits.dtype == torch.float32
    expected = head.log_probabilities(features @ head.score.weight.T)
    assert torch.allclose(logits, expected, atol=1e-6)


def test_nesterov_looks_ahead_and_plain_momentum_does_not():
    for name, nesterov in (("sgd", False), ("sgd_nesterov", True)):
        ours, theirs = nn.Linear(2, 1), nn.Linear(2, 1)
        theirs.load_state_dict(ours.state_dict())
        optimizers = (
            make_optimizer(name, ours, 0.1, 0.0),
            torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9, nesterov=nesterov),
        )
        for _ in range(3):
            for model, optimizer in zip((ours, theirs), optimizers, strict=True):
                optimizer.zero_grad()
                model(torch.ones(1, 2)).square().sum().backward()
                optimizer.step()
        assert torch.allclose(ours.weight, theirs.weight, atol=1e-7), name


def test_lamb_leaves_clipping_to_clip_grad():
    model = nn.Linear(2, 1)
    assert all(group["max_grad_norm"] is None for group in make_optimizer("lamb", model, 0.1, 0.0).param_groups)


def test_smoothing_and_class_weights_reach_the_loss():
    targets = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 2]]
    logits, chosen = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    plain = make_objective(Config(), "multiclass", [], False, rows_of(targets))
    smooth = make_objective(Config(label_smoothing=0.3), "multiclass", [], False, rows_of(targets))
    assert plain.loss_function(logits, chosen).item() == pytest.approx(math.log(math.exp(2) + 2))
    assert smooth.loss_function(logits, chosen).item() < plain.loss_function(logits, chosen).item()
    weighted = make_objective(Config(class_weights="inverse_log"), "multiclass", [], False, rows_of(targets))
    rare, common = (weighted.weigh(torch.eye(3)[[place]], torch.ones(1, 3)).max().item() for place in (1, 0))
    assert rare > common


def step_of(config, targets, weights, pixels=None, num_steps=1):
    """Steps of plain descent at rate 1 on one batch, in one part; the training after them, its loss the last one's."""
    torch.manual_seed(0)
    model = Brightness(targets.shape[1])
    model.drop.p = 0.0
    model.register_buffer("centers", torch.zeros(targets.shape[1], 3))
    rows = rows_of(np.eye(3, dtype=np.float32)[np.repeat([0, 1, 2], [1, 3, 8])])
    objective = make_objective(config, "multiclass", make_loss_terms(config, model), False, rows)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    training = Training(model, torch.optim.SGD(model.parameters(), lr=1.0), scaler)
    batch = Batch(
        draw_pixels(len(targets)) if pixels is None else pixels, targets, weights, torch.arange(len(targets)), []
    )
    for _ in range(num_steps):
        training.total_loss = 0.0
        take_step(training, make_card(num_outputs=3), objective, batch, Moment(0, 0, 0.0, 0.1, 7), CPU, FLOAT32)
    return training


def draw_pixels(num_rows, seed=0):
    return torch.randint(0, 256, (num_rows, 8, 8, 3), generator=torch.Generator().manual_seed(seed)).byte()


@pytest.mark.parametrize("words", [{}, {"triplet_weight": 1.0}, {"center_weight": 0.5}], ids=str)
def test_what_rows_of_weight_zero_show_changes_nothing(words):
    targets, weights = torch.eye(3)[[0, 1, 2, 0, 1, 2, 0, 1]], torch.tensor([1.0, 1, 1, 0.5, 1, 2, 0, 0])
    pixels, others = draw_pixels(8), draw_pixels(8, seed=1)
    others[:6] = pixels[:6]
    found = [step_of(Config(**words), targets, weights[:, None].expand(8, 3), shown) for shown in (pixels, others)]
    states = [training.model.state_dict() for training in found]
    assert found[0].total_loss == found[1].total_loss
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    alike = step_of(Config(**words), targets, torch.ones(8, 3))  # the weights do count
    assert float(alike.total_loss) != pytest.approx(float(found[0].total_loss), rel=1e-4)
    assert bool(states[0]["centers"].any()) == ("center_weight" in words)


def test_the_weight_of_a_class_follows_the_mixed_target():
    """The mean of the mixed rows' losses, each with its mixed weight times the sum of t_c w_c of its mixed target."""
    config = Config(mixing="mixup", mixup_alpha=2.0, class_weights="inverse_log")
    targets, weights = torch.eye(3)[[0, 1, 2, 2, 1, 2]], torch.linspace(0.2, 1, 6)[:, None].expand(6, 3)
    shares = np.array([1, 3, 8]) / 12
    of_classes = 1 / np.log(1.02 + shares)
    of_classes = torch.from_numpy(of_classes / (shares * of_classes).sum()).float()
    torch.manual_seed(7)  # as the step does
    pixels, mixed, mixed_weights = make_mixer(config)(0, draw_pixels(6), targets, weights)
    assert ((mixed > 0.05) & (mixed < 0.95)).any()
    torch.manual_seed(0)
    model = Brightness(3).eval()  # the first weights of step_of
    losses = F.cross_entropy(model(normalize(pixels, (0.5,) * 3, (0.5,) * 3)), mixed, reduction="none")
    factors = mixed_weights[:, 0] * (mixed * of_classes).sum(dim=1)
    expected = (factors * losses).sum() / factors.sum()
    assert float(step_of(config, targets, weights).total_loss) / 6 == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("words", [{"triplet_weight": 1.0}, {"center_weight": 0.5}], ids=str)
def test_class_weights_leave_the_losses_of_features_alone(words):
    targets, weights = torch.eye(3)[[0, 1, 2, 0, 1, 2, 2, 2]], torch.linspace(0.5, 2, 8)[:, None].expand(8, 3)

    def share_of_features(**settings) -> float:
        """The first step's loss with the term, less that without."""
        losses = [step_of(Config(**settings, **term), targets, weights).total_loss for term in (words, {})]
        return float(losses[0] - losses[1])

    assert share_of_features() > 0.01
    assert share_of_features(class_weights="inverse_log") == pytest.approx(share_of_features(), rel=1e-4)


def test_numbers_of_the_settings_are_copied_to_the_device_in_the_first_step_alone(monkeypatch):
    targets, weights = torch.eye(3)[[0, 1, 2, 2]], torch.ones(4, 3)
    config = Config(class_weights="effective_number", head="arcface", margin_power=0.25)
    on_device.cache_clear()
    step_of(config, targets, weights)
    num_copies, make = [], torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *values, **options: num_copies.append(1) or make(*values, **options))
    step_of(config, targets, weights, num_steps=3)
    assert num_copies == []
    on_device.cache_clear()
    step_of(config, targets, weights, num_steps=3)
    assert len(num_copies) == 4  # input statistics, targets' units, class weights, margins


def test_what_a_prediction_copied_first_can_be_trained_with():
    with torch.inference_mode():
        first = on_device(CPU, (0.125, 0.25))
    assert on_device(CPU, (0.125, 0.25)) is first
    weight = torch.ones(2, requires_grad=True)
    (weight * first[0]).sum().backward()
    assert weight.grad.tolist() == [0.125, 0.25]


def fit_grey(config, model, folder):
    """The training of a model on eight grey images in two classes, after each of its epochs."""
    paths = [folder / f"{number}.png" for number in range(8)]
    for path in paths:
        cv2.imwrite(str(path), np.full((32, 32, 3), 9, np.uint8))
    images = Images(paths, np.eye(2, dtype=np.float32)[np.arange(8) % 2], eval_transform(32), 32)
    batches = make_loader(images, EpochOrder(8, 4, True), 0, CPU)
    scaler, averages = torch.amp.GradScaler("cpu", enabled=False), make_averages(model, config)
    training = Training(model, make_optimizer_of(model, config), scaler, averages)
    objective = Objective(choose_loss("auto", "multiclass"))
    recipe, nothing = make_recipe(config, 0), float("nan")
    for _ in fit(training, make_card(), objective, batches, None, lambda values: nothing, recipe, CPU, FLOAT32):
        yield training


@pytest.mark.parametrize("first", [1, 2, 3])
def test_swa_is_the_mean_of_the_weights_at_the_end_of_each_epoch_from_its_first_on(first, tmp_path):
    config, ends = Config(epochs=3, swa_from_epoch=first, lr=0.01), []
    for training in fit_grey(config, Brightness(2), tmp_path):
        ends.append(parameters_to_vector(training.model.parameters()).detach())
    assert (ends[0] - ends[2]).abs().min() > 1e-4
    found = parameters_to_vector(training.averages.swa.module.parameters())
    assert torch.allclose(found, torch.stack(ends[first - 1 :]).mean(dim=0), atol=1e-6)


@pytest.mark.parametrize("name", ["lamb", "adan", "adabound"])
def test_optimizers_count_the_steps_of_a_group_from_when_it_learns(name, tmp_path):
    config = Config(epochs=3, freeze_epochs=2, optimizer=name, lr=1e-3)
    model = build_model("test_resnet", 2, 32)
    *_, training = fit_grey(config, model, tmp_path)
    in_head = set(model.head.parameters())
    counted = {int(group["step"]): in_head.issuperset(group["params"]) for group in training.optimizer.param_groups}
    assert counted == {6: True, 2: False}  # 3 epochs and 1 of 2 batches


RECIPE = Config(
    epochs=7, lr=0.02, min_lr=1e-5, schedule="cosine_cycles", num_cycles=3, warmup_epochs=0.25, seed=11, clip_grad=0.7,
    freeze_epochs=2, freeze_stages=1, freeze_batch_norm=True,
)  # fmt: skip
CURVE = Config(schedule="plateau", plateau_patience=2, plateau_factor=0.3)
SHAPES = Config(augment="medium", hflip=False, vflip=True, rotate90=True, crop_scale=0.4, color_jitter=0.3,
                fancy_pca=0.1, cutout=0.2, random_erasing=0.6)  # fmt: skip
PARTS = Config(head="subcenter_arcface", num_subcenters=4, margin_scale=17.0, pooling="gem", neck="bnneck", norm="ibn")


@pytest.mark.parametrize(
    ("made", "config", "renamed"),
    [
        (make_recipe(RECIPE, 3), RECIPE, {"fold": 3, "curve": Curve()}),
        (make_recipe(CURVE, 0).curve, CURVE, {}),
        (make_recipe(Config(schedule="step", step_epochs=(2, 5), step_factor=0.4), 0).curve,
         Config(schedule="step", step_epochs=(2, 5), step_factor=0.4), {}),
        (make_recipe(Config(schedule="polynomial", polynomial_power=2.0), 0).curve,
         Config(schedule="polynomial", polynomial_power=2.0), {}),
        (make_recipe(Config(schedule="exponential", decay_rate=0.6), 0).curve,
         Config(schedule="exponential", decay_rate=0.6), {}),
        (make_augmentation(SHAPES), SHAPES, {"preset": "medium"}),
        (make_architecture(PARTS, 10), PARTS, {}),
    ],
    ids=["recipe", "plateau", "step", "polynomial", "exponential", "augmentation", "architecture"],
)  # fmt: skip
def test_every_setting_reaches_its_place(made, config, renamed):
    found = {field.name: getattr(made, field.name) for field in fields(made)}
    expected = {name: renamed[name] if name in renamed else getattr(config, name) for name in found}
    assert found == expected


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_only_cosine_cycles_starts_again(schedule):
    config = Config(epochs=6, schedule="cosine_cycles", num_cycles=3).model_copy(update={"schedule": schedule})
    assert make_recipe(config, 0).num_cycles == (3 if schedule == "cosine_cycles" else 1)


def test_dropout_masks_and_the_power_of_gem_reach_the_network():
    config = Config(
        backbone="test_resnet", pretrained=False, drop_rate=0.3, drop_path_rate=0.2, multi_sample_dropout=5,
        pooling="gem", image_size=32,
    )  # fmt: skip
    model = make_model(config, "multiclass", 0, np.eye(3, dtype=np.float32))
    assert (model.num_masks, model.dropout.p) == (5, 0.3)
    assert [module.power.item() for module in model.modules() if isinstance(module, GeM)] == [3.0]


def test_each_fold_draws_sizes_of_its_own():
    config = Config(image_size=32, multi_scale=(24, 32, 40))
    drawn = [[make_size_of(config, number)(epoch, 0) for epoch in range(40)] for number in (0, 1)]
    assert drawn[0] != drawn[1]


def test_the_margin_of_triplets_is_the_one_of_the_settings():
    features = torch.tensor([[0.0, 0.0], [0.1, 0.0], [1.0, 0.0], [1.1, 0.0]])
    step = SimpleNamespace(features=features, targets=torch.eye(2)[[0, 0, 1, 1]], weights=torch.ones(4, 2))
    losses = []
    for margin in (0.5, 5.0):
        (term,) = make_loss_terms(Config(triplet_weight=1.0, triplet_margin=margin), nn.Linear(2, 2))
        losses.append(term(step).item())
    assert losses[1] > losses[0] + 4


@pytest.mark.parametrize(("head", "highest"), [("cosface", 1.0), ("arcface", 1.5)])
def test_margins_that_follow_the_class_sizes_end_where_they_must(head, highest):
    targets = np.eye(2, dtype=np.float32)[np.repeat([0, 1], [1, 100000])]  # of the cosine; and short of a right angle
    config = Config(head=head, margin_power=1.0, margin_scale=1.0, **{f"{head}_margin": 0.5})
    cosine = 0.9
    changed = make_margin(config, targets)(torch.tensor([[cosine, 0.0]]), torch.tensor([[1.0, 0.0]]))[0, 0].item()
    exact = cosine - highest if head == "cosface" else math.cos(math.acos(cosine) + highest)
    assert changed == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize(("preset", "degrees", "smallest"), [("medium", 15, 0.5), ("heavy", 30, 0.3)])
def test_presets_turn_and_crop_as_the_recipes_say(preset, degrees, smallest):
    transforms = train_transform(Augmentation(preset), 32).transforms
    affine = next(part for part in transforms if type(part).__name__ == "Affine")
    assert tuple(affine.rotate) == (-degrees, degrees)
    assert tuple(transforms[0].scale) == (smallest, 1.0)


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_a_model_begins_from_the_real_rows_and_not_from_pseudo_labelled_ones(task, tmp_path):
    names = ("a", "b", "c")[: 1 if task == "regression" else 3]
    values = np.array([[1.0], [2.0], [90.0]]) if task == "regression" else np.eye(3)[[0, 1, 2]]
    paths = [tmp_path / f"{shade}.png" for shade in (0, 100, 255)]
    for path, shade in zip(paths, (0, 100, 255), strict=True):
        cv2.imwrite(str(path), np.full((32, 32, 3), shade, np.uint8))

    def begin(num_real: int, chosen: list[int]) -> tuple[dict[str, torch.Tensor], tuple[object, ...]]:
        targets = values[chosen].astype(np.float32)
        images = np.array([paths[row] for row in chosen], object)
        rows = TrainingRows(NONE, images, targets, np.ones_like(targets), num_real, NONE, NONE, NONE)
        config = Config(
            backbone="test_resnet",
            pretrained=False,
            image_size=32,
            input_statistics="dataset",
            prior_bias=task == "multiclass",
        )
        model, card = make_network(rows, names, task, config, 0, CPU, FILES)
        return model.state_dict(), (card.mean, card.std, card.offset, card.scale)

    plain_weights, plain_card = begin(2, [0, 1])
    pseudo_weights, pseudo_card = begin(2, [0, 1, 2, 2, 2])
    assert pseudo_card == plain_card
    assert all(torch.equal(pseudo_weights[name], plain_weights[name]) for name in plain_weights)
    assert begin(5, [0, 1, 2, 2, 2])[1] != plain_card  # the row would be seen


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_images_are_normalised_channel_by_channel_and_stay_as_they_are(kind):
    images = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8, generator=torch.manual_seed(0)).to(kind)
    before, mean, std = images.clone(), (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    found = normalize(images, mean, std)
    assert found.shape == (2, 3, 5, 7)
    assert torch.equal(images, before)
    for channel in range(3):
        wanted = (before[..., channel] / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(found[:, channel], wanted, rtol=1e-4, atol=1e-4)
