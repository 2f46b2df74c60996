"""Losses, one property each: at its neutral point a trick is nothing, elsewhere it is what a slow loop gives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import fbeta_score
from timm.loss import AsymmetricLossMultiLabel
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from kfold.errors import UserError
from kfold.losses.asymmetric import asymmetric
from kfold.losses.focal import sigmoid_focal, softmax_focal
from kfold.losses.label_smoothing import smooth_labels
from kfold.losses.lovasz import jaccard_extension, lovasz_hinge, lovasz_softmax
from kfold.losses.soft_fbeta import sigmoid_fbeta, softmax_fbeta
from kfold.training.losses import LOSSES_OF_TASK, choose_loss, weighted_mean

EVERY_LOSS = [(task, name) for task, losses in LOSSES_OF_TASK.items() for name in losses]
EXTREME = (-1e4, -104.0, -20.0, -1e-6, 0.0, 1.0, 17.0, 104.0, 1e4)
seeds = st.integers(0, 1000)


def draw(seed, task="multiclass", num_rows=6, num_classes=3, soft=False):
    """Logits and targets (B, C)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_rows, num_classes, generator=generator)
    if soft:
        targets = torch.rand(num_rows, num_classes, generator=generator)
        return logits, targets / targets.sum(dim=1, keepdim=True) if task == "multiclass" else targets
    if task == "multiclass":
        return logits, F.one_hot(torch.randint(num_classes, (num_rows,), generator=generator), num_classes).float()
    return logits, torch.randint(2, (num_rows, num_classes), generator=generator).float()


# What every loss keeps to


@pytest.mark.parametrize(("task", "name"), EVERY_LOSS)
def test_a_loss_is_one_number_a_row_or_a_cell_and_not_below_zero(task, name):
    logits, targets = draw(0, task)
    losses = choose_loss(name, task)(logits, targets)
    assert losses.shape in ((6, 1), (6, 3))
    assert losses.dtype == torch.float32
    assert (losses >= 0).all()


@pytest.mark.parametrize(("task", "name"), EVERY_LOSS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_the_most_extreme_logits_have_finite_losses_and_gradients(task, name, gamma, clip):
    options = {
        "focal": {"gamma": gamma},
        "asymmetric": {"gamma_positive": gamma, "gamma_negative": gamma, "clip": clip},
    }
    cells = [(left, right) for left in EXTREME for right in EXTREME]
    for truth in ((1.0, 0.0), (0.0, 1.0), (0.3, 0.7)):
        logits = torch.tensor(cells, requires_grad=True)
        losses = choose_loss(name, task, options=options)(logits, torch.tensor([truth] * len(cells)))
        losses.mean().backward()
        assert torch.isfinite(losses).all()
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", ["lovasz", "soft_fbeta"])
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_the_weighted_mean_gives_a_loss_of_the_batch_back(task, name):
    logits, targets = draw(1, task)
    losses = choose_loss(name, task)(logits, targets)
    assert torch.equal(losses, losses[:1].expand(losses.shape))
    assert weighted_mean(losses, torch.ones(6, 3)).item() == pytest.approx(losses[0].mean().item())


@pytest.mark.parametrize(("task", "name"), EVERY_LOSS)
def test_following_the_gradient_leads_to_the_labels(task, name):
    _, targets = draw(2, task)
    logits = torch.zeros(6, 3, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        choose_loss(name, task)(logits, targets).mean().backward()
        optimizer.step()
    if task == "multiclass":
        assert torch.equal(logits.argmax(dim=1), targets.argmax(dim=1))
    else:
        assert torch.equal(logits > (0.5 if task == "regression" else 0), targets > 0.5)


# Several losses


def test_several_losses_are_a_weighted_sum_whether_of_rows_or_of_cells():
    logits, targets = draw(3)
    names, weights = ("cross_entropy", "binary_cross_entropy", "soft_fbeta"), (2.0, 3.0, 0.5)
    total = choose_loss(names, "multiclass", weights)(logits, targets).mean()
    parts = [choose_loss(name, "multiclass")(logits, targets).mean() for name in names]
    assert total.item() == pytest.approx(sum(w * part.item() for w, part in zip(weights, parts, strict=True)))
    assert torch.equal(
        choose_loss(("auto",), "multiclass")(logits, targets), choose_loss("auto", "multiclass")(*draw(3))
    )


def test_each_loss_of_a_sum_takes_its_own_options():
    logits, targets = draw(3)
    options = {"focal": {"gamma": 0.0}, "soft_fbeta": {"beta": 3.0}}
    total = choose_loss(("focal", "soft_fbeta"), "multiclass", (), options)(logits, targets)
    assert torch.allclose(total, softmax_focal(logits, targets, 0.0) + softmax_fbeta(logits, targets, 3.0))


def test_losses_that_do_not_fit_the_task_or_are_named_twice_are_refused():
    with pytest.raises(UserError, match="loss=asymmetric does not fit task multiclass: choose cross_entropy or"):
        choose_loss(("cross_entropy", "asymmetric"), "multiclass")
    with pytest.raises(UserError, match="auto is cross_entropy for task multiclass: drop one"):
        choose_loss(("auto", "cross_entropy"), "multiclass")


# Label smoothing


@settings(max_examples=20)
@given(seeds, st.floats(0, 0.9))
def test_smoothed_labels_keep_the_mass_of_one_and_give_what_torch_gives(seed, share):
    logits, targets = draw(seed, soft=True)
    smooth = smooth_labels(targets, share, "multiclass")
    assert torch.allclose(smooth.sum(dim=1), torch.ones(6))
    theirs = F.cross_entropy(logits, targets, label_smoothing=share)
    assert choose_loss("cross_entropy", "multiclass")(logits, smooth).mean().item() == pytest.approx(
        theirs.item(), 1e-4
    )


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_labels_smoothed_by_nothing_stay_and_by_everything_tell_nothing(task):
    _, targets = draw(0, task)
    assert torch.equal(smooth_labels(targets, 0.0, task), targets)
    wholly = smooth_labels(targets, 1.0, task)
    assert torch.allclose(wholly, torch.full((6, 3), 1 / 3 if task == "multiclass" else 1 / 2))


# Focal and asymmetric


@settings(max_examples=20)
@given(seeds, st.booleans())
def test_focal_loss_with_gamma_zero_is_cross_entropy(seed, soft):
    for task, focal, plain in (
        ("multiclass", softmax_focal, choose_loss("cross_entropy", "multiclass")),
        ("multilabel", sigmoid_focal, choose_loss("binary_cross_entropy", "multilabel")),
    ):
        logits, targets = draw(seed, task, soft=soft)
        assert torch.allclose(focal(logits, targets, 0.0), plain(logits, targets), atol=1e-5)


@settings(max_examples=20)
@given(seeds, st.floats(0, 5))
def test_focal_loss_is_torchvisions_for_columns_and_its_formula_for_classes(seed, gamma):
    logits, targets = draw(seed, "multilabel")
    theirs = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=gamma)
    assert torch.allclose(sigmoid_focal(logits, targets, gamma), theirs, atol=1e-5)
    logits, targets = draw(seed)
    of_truth = logits.softmax(dim=1)[targets.bool()]
    by_hand = -((1 - of_truth) ** gamma) * of_truth.log()
    assert torch.allclose(softmax_focal(logits, targets, gamma)[:, 0], by_hand, atol=1e-5)


@settings(max_examples=20)
@given(seeds, st.floats(0, 4), st.floats(0, 4), st.sampled_from([0.0, 0.05, 0.3]))
def test_asymmetric_loss_is_timms_on_each_row(seed, positive, negative, clip):
    logits, targets = draw(seed, "multilabel")
    timms = AsymmetricLossMultiLabel(gamma_neg=negative, gamma_pos=positive, clip=clip)  # a sum, or of one row the same
    ours = asymmetric(logits, targets, positive, negative, clip).sum(dim=1)
    for row in range(6):
        theirs = timms(logits[row : row + 1], targets[row : row + 1])
        assert ours[row].item() == pytest.approx(theirs.item(), rel=1e-3, abs=1e-5)


@settings(max_examples=20)
@given(seeds, st.booleans())
def test_asymmetric_loss_at_its_neutral_point_is_binary_cross_entropy(seed, soft):
    logits, targets = draw(seed, "multilabel", soft=soft)
    plain = choose_loss("binary_cross_entropy", "multilabel")(logits, targets)
    assert torch.allclose(asymmetric(logits, targets, 0.0, 0.0, 0.0), plain, atol=1e-5)


def test_a_negative_below_the_clip_costs_nothing():
    logits = torch.tensor([[-3.5, -2.5]])  # probabilities 0.029 and 0.076
    losses = asymmetric(logits, torch.zeros(1, 2), clip=0.05)
    assert losses[0, 0] == 0
    assert losses[0, 1] > 0


# Lovász and soft F-beta


def slow_lovasz(errors, truth):
    """The definition: wrong rows join in the order of their errors, each at what the Jaccard loss rises by."""
    true_rows, wrong, total, last = set(np.flatnonzero(truth)), set(), 0.0, 0.0
    for row in sorted(range(len(errors)), key=lambda row: -errors[row]):
        wrong.add(row)
        right, seen = true_rows - wrong, true_rows | wrong
        jaccard_loss = 1 - len(right) / len(seen)
        total, last = total + errors[row] * (jaccard_loss - last), jaccard_loss
    return total


@settings(max_examples=30)
@given(seeds, st.integers(1, 9))
def test_lovasz_losses_are_what_sets_give_by_their_definition(seed, num_rows):
    logits, targets = draw(seed, "multiclass", num_rows)
    errors = (targets - logits.softmax(dim=1)).abs()
    present = [column for column in range(3) if targets[:, column].any()]
    slow = np.mean([slow_lovasz(errors[:, column].tolist(), targets[:, column]) for column in present])
    assert lovasz_softmax(logits, targets)[0].item() == pytest.approx(slow, abs=1e-5)
    logits, targets = draw(seed, "multilabel", num_rows)
    errors = (1 - logits * (2 * targets - 1)).clamp(min=0)
    slow = [slow_lovasz(errors[:, column].tolist(), targets[:, column]) for column in range(3)]
    assert lovasz_hinge(logits, targets)[0].tolist() == pytest.approx(slow, abs=1e-5)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=9))
def test_errors_of_nought_and_one_give_the_jaccard_loss_itself(rows):
    wrong, truth = torch.tensor(rows).T
    value = jaccard_extension(wrong[:, None].float(), truth[:, None]).item()
    predicted = truth ^ wrong
    union = (predicted | truth).sum().item()
    assert value == pytest.approx(1 - (predicted & truth).sum().item() / union if union else 0, abs=1e-6)


@settings(max_examples=30)
@given(seeds, st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from(["multiclass", "multilabel"]))
def test_soft_fbeta_is_what_a_loop_gives_and_for_sure_predictions_the_f_measure(seed, beta, task):
    logits, targets = draw(seed, task)
    loss = softmax_fbeta if task == "multiclass" else sigmoid_fbeta
    probabilities = logits.softmax(dim=1) if task == "multiclass" else logits.sigmoid()
    scores = []
    for column in range(3):
        hits = misses = false = 0.0
        for row in range(6):
            p, t = probabilities[row, column].item(), targets[row, column].item()
            hits, misses, false = hits + t * p, misses + t * (1 - p), false + (1 - t) * p
        if hits + misses > 0:
            scores.append((1 + beta**2) * hits / ((1 + beta**2) * hits + beta**2 * misses + false))
    assert loss(logits, targets, beta)[0].item() == pytest.approx(1 - np.mean(scores), abs=1e-5)

    sure = 1000 * (2 * F.one_hot(logits.argmax(dim=1), 3) - 1 if task == "multiclass" else logits.sign())
    present = targets.any(dim=0).numpy()
    theirs = fbeta_score(targets.numpy(), sure.numpy() > 0, beta=beta, average=None, zero_division=0)[present].mean()
    assert loss(sure.float(), targets, beta)[0].item() == pytest.approx(1 - theirs, abs=1e-5)


def test_a_batch_without_a_positive_teaches_soft_fbeta_nothing():
    logits = torch.zeros(4, 2, requires_grad=True)
    loss = sigmoid_fbeta(logits, torch.zeros(4, 2)).mean()
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()
