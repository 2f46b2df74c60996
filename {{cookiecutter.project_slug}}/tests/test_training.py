import numpy as np
import pytest
import torch
from torch import nn

from kfold.data.augment import eval_transform
from kfold.data.loader import Batch, EpochOrder, Images, make_loader
from kfold.errors import UserError
from kfold.model.weights import ModelCard
from kfold.seeds import seed_of
from kfold.training.loop import Recipe, fit
from kfold.training.losses import LOSSES_OF_TASK, choose_loss, to_probabilities, weighted_mean
from kfold.training.objective import Objective
from kfold.training.optimizers import make_optimizer
from kfold.training.precision import Precision, choose_precision
from kfold.training.predicting import predict_logits, same, standardized, to_target_units
from kfold.training.state import Training

CPU = torch.device("cpu")
FLOAT32 = Precision(torch.float32, "test")


def make_card(task="multiclass", num_outputs=2, offset=0.0, scale=1.0):
    half, names = (0.5,) * 3, tuple("abcdefg"[:num_outputs])
    offsets, scales = (float(offset),) * num_outputs, (float(scale),) * num_outputs
    return ModelCard("test_resnet", 8, task, names, half, half, offsets, scales)


# Seeds


def test_seeds_differ_for_different_parts_and_fit_63_bits():
    seeds = {seed_of(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900
    assert seed_of(1, 11) != seed_of(11, 1)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_is_the_same_on_every_machine():
    assert seed_of(42, 0, 1, "order") == 775704264161953865


# Losses


@pytest.mark.parametrize("task", LOSSES_OF_TASK)
def test_auto_is_the_first_fitting_loss_and_a_loss_of_another_task_is_refused(task):
    assert choose_loss("auto", task) is choose_loss(next(iter(LOSSES_OF_TASK[task])), task)
    wrong = "mse" if task != "regression" else "cross_entropy"
    with pytest.raises(UserError, match=f"loss={wrong} does not fit task {task}"):
        choose_loss(wrong, task)


def test_cross_entropy_of_one_hot_targets_is_minus_log_of_the_true_class():
    logits, truth = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    expected = -to_probabilities(logits, "multiclass")[torch.arange(5), truth].log().mean()
    losses = choose_loss("auto", "multiclass")(logits, nn.functional.one_hot(truth).float())
    assert losses.shape == (5, 1)
    assert losses.mean() == pytest.approx(expected.item())


@pytest.mark.parametrize("task", LOSSES_OF_TASK)
def test_a_weight_of_zero_leaves_a_row_out_and_a_weight_of_two_counts_it_twice(task):
    loss, logits, targets = choose_loss("auto", task), torch.randn(4, 3), torch.rand(4, 3).softmax(1)
    weights = torch.tensor([[1.0], [0.0], [2.0], [1.0]]).expand(4, 3)
    rows = [0, 2, 2, 3]
    expected = loss(logits[rows], targets[rows]).mean()
    assert weighted_mean(loss(logits, targets), weights) == pytest.approx(expected.item(), rel=1e-5)
    assert weighted_mean(loss(logits, targets), torch.zeros(4, 3)) == 0


def test_weights_of_single_labels_leave_out_single_cells():
    logits, targets = torch.randn(2, 2), torch.rand(2, 2)
    losses = choose_loss("auto", "multilabel")(logits, targets)
    weights = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    expected = (losses[0, 0] + losses[1, 0] + losses[1, 1]) / 3
    assert weighted_mean(losses, weights) == pytest.approx(expected.item())


def test_multiclass_probabilities_sum_to_one_over_the_last_axis_and_others_stay_independent():
    logits = torch.randn(4, 5, 3)  # (views, rows, classes)
    assert torch.allclose(to_probabilities(logits, "multiclass").sum(-1), torch.ones(4, 5))
    assert torch.equal(to_probabilities(logits, "multilabel"), logits.sigmoid())


# Precision


def test_float32_on_the_cpu_unless_asked_for_less_and_the_reason_is_given():
    assert choose_precision("auto", CPU).dtype == torch.float32
    assert "cpu" in choose_precision("auto", CPU).reason
    assert choose_precision("bfloat16", CPU).dtype == torch.bfloat16


@pytest.mark.parametrize(("native", "dtype", "scaler"), [(True, torch.bfloat16, False), (False, torch.float16, True)])
def test_on_a_gpu_bfloat16_only_where_the_hardware_has_it(monkeypatch, native, dtype, scaler):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    chosen = choose_precision("auto", torch.device("cuda"))
    assert (chosen.dtype, chosen.needs_scaler) == (dtype, scaler)
    assert "Tesla T4" in chosen.reason


# The loop


class Brightness(nn.Module):
    """A model that can only learn from the mean brightness; its dropout makes steps depend on torch's generator."""

    def __init__(self, num_outputs):
        super().__init__()
        self.head = nn.Linear(3, num_outputs)
        self.drop = nn.Dropout(0.1)

    def forward(self, images, with_features=False):
        features = images.mean((2, 3))
        logits = self.drop(self.head(features))
        return (logits, features) if with_features else logits


@pytest.fixture(scope="module")
def image_paths(tmp_path_factory):
    import cv2

    folder = tmp_path_factory.mktemp("images")
    for number in range(40):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((8, 8, 3), 6 * number, np.uint8))
    return [folder / f"{number}.png" for number in range(40)]


def run_fit(paths, task, targets, epochs=6, seed=0, offset=0.0, scale=1.0, before=lambda: None, validate=True):
    torch.manual_seed(seed)
    model = Brightness(targets.shape[1])
    before()
    images = Images(paths, targets, eval_transform(8), 8, seed)
    train = make_loader(images, EpochOrder(len(paths), 8, True, seed), 0, CPU)
    valid = make_loader(images, EpochOrder(len(paths), 16, False), 0, CPU)
    card = make_card(task, targets.shape[1], offset, scale)
    optimizer = make_optimizer("adam", model, 0.1, 0.0)
    recipe = Recipe(epochs, 0.1, 0.0, "cosine", 1, 1.0, seed, 0)
    objective, seen = Objective(choose_loss("auto", task)), []

    def score(predictions):
        seen.append(predictions)
        return float(predictions.mean())

    training = Training(model, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    results = list(fit(training, card, objective, train, valid if validate else None, score, recipe, CPU, FLOAT32))
    return model, results, seen


def test_training_learns_bright_from_dark(image_paths):
    targets = np.eye(2, dtype=np.float32)[(np.arange(40) >= 20).astype(int)]
    _, log, predictions = run_fit(image_paths, "multiclass", targets, epochs=25)
    assert (predictions[-1].argmax(1) == targets.argmax(1)).mean() > 0.9
    assert log[-1].train_loss < log[0].train_loss
    assert [result.epoch for result in log] == list(range(1, 26))


def test_regression_is_trained_standardised_and_predicted_in_the_targets_units(image_paths):
    targets = (1000 + 10 * np.arange(40, dtype=np.float32))[:, None]
    _, _, predictions = run_fit(image_paths, "regression", targets, 25, offset=targets.mean(), scale=targets.std())
    assert abs(predictions[-1].mean() - targets.mean()) < 30
    assert np.corrcoef(predictions[-1][:, 0], targets[:, 0])[0, 1] > 0.95


def test_a_run_does_not_depend_on_torchs_generator_at_its_start(image_paths):
    targets = np.eye(2, dtype=np.float32)[np.arange(40) % 2]
    first, _, _ = run_fit(image_paths, "multiclass", targets, 2)
    second, _, _ = run_fit(image_paths, "multiclass", targets, 2, before=lambda: torch.manual_seed(99))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_full_data_fit_is_the_same_training_without_predictions(image_paths):
    targets = np.eye(2, dtype=np.float32)[np.arange(40) % 2]
    first, _, _ = run_fit(image_paths, "multiclass", targets, 2)
    second, log, predictions = run_fit(image_paths, "multiclass", targets, 2, validate=False)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert predictions == []
    assert all(np.isnan(result.score) for result in log)


def test_predictions_do_not_depend_on_batches_and_keep_the_row_order(image_paths):
    torch.manual_seed(0)
    model, card = Brightness(2), make_card()
    images = Images(image_paths, np.zeros((40, 0)), eval_transform(8), 8)
    by_size = [
        predict_logits(model, make_loader(images, EpochOrder(40, size, False), 0, CPU), [same], card, CPU, FLOAT32)
        for size in (1, 7, 40)
    ]
    assert by_size[0].shape == (1, 40, 2)
    for logits in by_size[1:]:
        assert torch.allclose(logits, by_size[0], atol=1e-6)


def test_units_go_there_and_back():
    card = make_card("regression", 2, offset=5.0, scale=3.0)
    targets = torch.randn(4, 2)
    assert torch.allclose(to_target_units(standardized(targets, card), card), targets, atol=1e-5)


def test_an_unreadable_image_stops_training_with_its_reason(image_paths, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    with pytest.raises(UserError, match=r"bad\.png.*make_folds\.py --check"):
        run_fit([*image_paths[:15], bad], "multiclass", np.eye(2, dtype=np.float32)[np.arange(16) % 2])


def test_a_loss_that_is_not_finite_stops_with_a_remedy(image_paths):
    targets = np.full((40, 1), np.inf, np.float32)
    with pytest.raises(UserError, match=r"20 times in a row: lower lr"):
        run_fit(image_paths, "regression", targets)


def test_a_problem_in_prediction_is_handed_over_where_a_handler_is_given():
    batch = Batch(
        torch.zeros(1, 8, 8, 3, dtype=torch.uint8),
        torch.zeros(1, 0),
        torch.zeros(1, 0),
        torch.tensor([0]),
        [(0, "cut off")],
    )
    seen = {}
    predict_logits(Brightness(2), [batch], [same], make_card(), CPU, FLOAT32, on_problem=seen.__setitem__)
    assert seen == {0: "cut off"}
