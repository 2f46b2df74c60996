"""What works on weights, labels, logits and features: at its neutral point nothing, else what a slow loop gives."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kfold.losses.center import center_loss, move_centers
from kfold.losses.class_weights import effective_number, inverse_log, weigh_classes
from kfold.losses.flooding import flooded
from kfold.losses.hard_examples import hardest
from kfold.losses.margin import arcface, class_margins, cosface, margin_scale
from kfold.losses.triplet import triplet
from kfold.training.losses import choose_loss, weighted_mean
from kfold.training.objective import Objective

seeds = st.integers(0, 1000)


def draw(seed, num_rows=6):
    """Logits and one-hot targets (B, 3)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_rows, 3, generator=generator)
    return logits, F.one_hot(torch.randint(3, (num_rows,), generator=generator), 3).float()


# Class weights

RULES = {"inverse_log": inverse_log, "effective_number": lambda counts: effective_number(counts, 0.99)}


def labels_like(counts):
    return np.eye(len(counts), dtype=np.float32)[np.repeat(np.arange(len(counts)), counts)]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_class_weights_of_a_balanced_set_are_all_one(rule):
    classes = labels_like([7, 7, 7])
    assert torch.equal(weigh_classes(classes, "multiclass", rule)(torch.from_numpy(classes)), torch.ones(21, 1))
    columns = np.array([[0, 1], [1, 0], [0, 1], [1, 0]], np.float32)
    assert torch.equal(weigh_classes(columns, "multilabel", rule)(torch.from_numpy(columns)), torch.ones(4, 2))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 40), min_size=2, max_size=5).filter(any), st.sampled_from([*RULES]))
def test_class_weights_have_a_mean_of_one_over_the_training_rows_and_rarer_classes_the_larger_ones(counts, name):
    targets = labels_like(counts)
    weigh = weigh_classes(targets, "multiclass", RULES[name])
    assert weigh(torch.from_numpy(targets)).mean().item() == pytest.approx(1, abs=1e-4)
    cells = weigh_classes(targets, "multilabel", RULES[name])(torch.from_numpy(targets))
    assert cells.mean(dim=0).tolist() == pytest.approx([1] * len(counts), abs=1e-4)
    of_classes = weigh(torch.eye(len(counts)))[:, 0].tolist()
    ordered = [of_classes[place] for place in np.argsort(counts, kind="stable")]
    assert ordered == sorted(ordered, reverse=True)


@settings(max_examples=30)
@given(st.integers(1, 60), st.floats(0, 0.9999))
def test_the_effective_number_is_the_sum_of_powers_of_beta(count, beta):
    by_hand = 1 / sum(beta**power for power in range(count))
    assert effective_number(np.array([float(count)]), beta)[0] == pytest.approx(by_hand, rel=1e-6)


def test_the_effective_number_with_beta_zero_weighs_all_alike():
    targets = labels_like([1, 9, 30])
    weights = weigh_classes(targets, "multiclass", lambda counts: effective_number(counts, 0.0))
    assert torch.equal(weights(torch.eye(3)), torch.ones(3, 1))


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_a_mixed_row_weighs_what_its_shares_weigh(task):
    weigh = weigh_classes(labels_like([3, 10, 20]), task, inverse_log)
    one, other = torch.eye(3)[:1], torch.eye(3)[1:2]
    assert torch.allclose(weigh(0.3 * one + 0.7 * other), 0.3 * weigh(one) + 0.7 * weigh(other))


def test_class_weights_enter_the_mean_and_its_normaliser():
    logits, targets = draw(4)
    objective = Objective(choose_loss("auto", "multiclass"), class_weights=lambda targets: 1 + targets[:, :1])
    weights = objective.weigh(targets, torch.ones(6, 3))
    losses, factors = choose_loss("auto", "multiclass")(logits, targets)[:, 0], 1 + targets[:, 0]
    expected = (losses * factors).sum() / factors.sum()
    assert objective.supervised(logits, targets, weights, weights).item() == pytest.approx(expected.item())


# OHEM and flooding


@settings(max_examples=30)
@given(seeds, st.integers(1, 12), st.floats(0.01, 1))
def test_ohem_takes_the_rows_with_the_largest_losses_and_with_a_share_of_one_all(seed, num_rows, share):
    generator = torch.Generator().manual_seed(seed)
    losses, weights = torch.rand(num_rows, 2, generator=generator), torch.rand(num_rows, 2, generator=generator)
    found, their_weights = hardest(losses, weights, share)
    count = math.ceil(round(share * num_rows, 6))
    wanted = sorted((losses * weights).sum(dim=1).tolist())[-count:]
    assert sorted((found * their_weights).sum(dim=1).tolist()) == pytest.approx(wanted)
    assert all(torch.equal(a, b) for a, b in zip(hardest(losses, weights, 1.0), (losses, weights), strict=True))


def test_ohem_never_hides_a_loss_that_is_not_finite_and_counts_seven_percent_of_a_hundred_as_seven():
    losses, weights = torch.rand(100, 1), torch.ones(100, 1)
    assert len(hardest(losses, weights, 0.07)[0]) == 7
    losses[17] = torch.nan
    assert hardest(losses, weights, 0.07)[0].isnan().any()


def test_flooding_turns_the_gradient_below_its_level_and_is_nothing_at_zero():
    for value, level, gradient in ((0.5, 0.2, 1.0), (0.1, 0.2, -1.0), (0.1, 0.0, 1.0)):
        loss = torch.tensor(value, requires_grad=True)
        flood = flooded(loss, level)
        flood.backward()
        assert loss.grad == gradient
        assert flood.item() == pytest.approx(value if gradient == 1 else 2 * level - value)
    assert flooded(loss, 0.0) is loss


@settings(max_examples=30)
@given(seeds, st.integers(2, 4), st.sampled_from([(1.0, 0.0), (0.5, 0.0), (1.0, 1.0)]))
def test_the_parts_of_a_batch_add_up_to_their_mean_by_weight(seed, num_parts, trick):
    logits, targets = draw(seed, num_rows=9)
    weights = torch.rand(9, 1, generator=torch.Generator().manual_seed(seed)).expand(9, 3)
    objective = Objective(choose_loss("auto", "multiclass"), 0.5, ohem_share=trick[0], flooding=trick[1])
    parts = [slice(rows[0], rows[-1] + 1) for rows in torch.arange(9).tensor_split(num_parts)]
    total = sum(objective.supervised(logits[rows], targets[rows], weights[rows], weights).item() for rows in parts)
    alone = [objective.supervised(logits[rows], targets[rows], weights[rows], weights[rows]).item() for rows in parts]
    shares = [(weights[rows].sum() / weights.sum()).item() for rows in parts]
    assert total == pytest.approx(sum(share * one for share, one in zip(shares, alone, strict=True)), rel=1e-4)
    if trick == (1.0, 0.0):
        whole = 0.5 * weighted_mean(choose_loss("auto", "multiclass")(logits, targets), weights)
        assert total == pytest.approx(whole.item(), rel=1e-4)
        assert objective.supervised(logits, targets, weights, weights) == whole  # to the last bit


def test_rows_without_a_weight_are_nothing_whatever_the_trick():
    logits, targets = draw(5)
    none = torch.zeros(6, 3)
    for trick in ({}, {"ohem_share": 0.5}, {"flooding": 1.0}):
        objective = Objective(choose_loss("auto", "multiclass"), **trick)
        assert objective.supervised(logits, targets, none, none) == 0
        assert objective.supervised(logits, targets, none, torch.ones(12, 3)) == 0


# Margins


@pytest.mark.parametrize("margin", [arcface, cosface])
def test_a_margin_of_zero_changes_nothing_to_the_last_bit(margin):
    _, targets = draw(0, num_rows=50)
    logits = 30 * torch.empty(50, 3).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    logits[0], logits[1] = 30.0, -30.0
    assert torch.equal(margin(logits, targets, 30.0, torch.zeros(3)), logits)


@settings(max_examples=30)
@given(st.floats(0.05, 1.5), st.floats(1, 64))
def test_a_margin_makes_the_true_class_harder_and_a_smaller_angle_always_wins(margin, scale):
    angles = torch.linspace(0, math.pi, 400)
    logits = torch.stack([scale * angles.cos()] * 2, dim=1).requires_grad_()
    targets = torch.eye(2)[:1].expand(400, 2)
    for function in (arcface, cosface):
        given_now = function(logits, targets, scale, torch.full((2,), margin))
        harder, other = given_now.unbind(dim=1)
        assert torch.equal(other, logits[:, 1])
        assert (harder < logits[:, 0] + 1e-3 * scale).all()
        assert (harder.diff() <= 1e-5 * scale).all()
        (gradient,) = torch.autograd.grad(given_now.sum(), logits)
        assert torch.isfinite(gradient).all()
    inside = angles < math.pi - margin - 0.01
    expected = scale * (angles + margin).cos()
    found = arcface(logits, targets, scale, torch.full((2,), margin))[:, 0]
    assert torch.allclose(found[inside], expected[inside], atol=2e-3 * scale)
    assert (found[~inside] < -scale * math.cos(margin) + 1e-3 * scale).all()


def test_margins_of_classes_fall_with_their_rows_and_stay_below_the_highest():
    counts = np.array([0, 1, 10, 1000])
    assert torch.equal(class_margins(0.5, counts, 0.0, 1.5), torch.full((4,), 0.5))
    margins = class_margins(0.5, counts, 0.25, 1.5).tolist()
    assert margins == sorted(margins, reverse=True)
    assert max(margins) == 1.5
    assert class_margins(0.5, np.array([10.0, 30.0]), 0.5, 1.5).tolist() == pytest.approx(
        [0.5 * 2**0.5, 0.5 * 1.5**-0.5]
    )
    assert class_margins(0.0, counts, 0.5, 1.5).tolist() == [0, 0, 0, 0]


def test_the_scale_is_as_wished_or_grows_with_the_log_of_the_classes():
    assert margin_scale(30.0, 5) == 30
    assert [margin_scale(0.0, num_classes) for num_classes in (1, 2, 3)] == [1, 1, 1]
    assert margin_scale(0.0, 1001) == pytest.approx(math.sqrt(2) * math.log(1000))


# Triplets and centers


def slow_triplet_of(anchor, features, labels, margin):
    """None where the anchor has none of its class, or of another, beside it."""
    distances = [math.dist(features[anchor], other) for other in features]
    alike = [d for row, d in enumerate(distances) if labels[row] == labels[anchor] and row != anchor]
    others = [d for row, d in enumerate(distances) if labels[row] != labels[anchor]]
    return max(0.0, margin + max(alike) - min(others)) if alike and others else None


def slow_triplet(features, labels, margin):
    losses = [slow_triplet_of(anchor, features, labels, margin) for anchor in range(len(features))]
    losses = [loss for loss in losses if loss is not None]
    return sum(losses) / len(losses) if losses else 0.0


@settings(max_examples=50)
@given(seeds, st.integers(1, 9), st.integers(1, 4), st.floats(0, 3))
def test_the_batch_hard_triplet_loss_is_what_a_loop_gives(seed, num_rows, num_classes, margin):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_rows, 4, generator=generator)
    labels = torch.randint(num_classes, (num_rows,), generator=generator)
    expected = slow_triplet(features.tolist(), labels.tolist(), margin)
    assert triplet(features, labels, margin, torch.ones(num_rows)).item() == pytest.approx(expected, abs=1e-5)


def test_weights_of_anchors_make_their_mean_and_rows_of_weight_zero_are_not_there():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(8, 4, generator=generator), torch.arange(8) % 2
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 0.0, 3.0, 1.0])
    kept = weights > 0
    losses = [slow_triplet_of(row, features[kept].tolist(), labels[kept].tolist(), 1.0) for row in range(6)]
    expected = np.average(losses, weights=weights[kept])
    assert len(set(losses)) > 3
    assert triplet(features, labels, 1.0, weights).item() == pytest.approx(expected, abs=1e-5)
    assert triplet(features, labels, 1.0, torch.zeros(8)).item() == 0


def test_weights_of_rows_count_in_the_center_loss_and_in_the_move_of_the_centers():
    generator = torch.Generator().manual_seed(0)
    features, centers = torch.randn(5, 4, generator=generator), torch.randn(3, 4, generator=generator)
    labels, weights = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([2.0, 1.0, 0.0, 1.0, 0.0])
    drawn = [0, 0, 1, 3]  # a row of weight 2 is there twice, one of weight 0 not at all
    plain, ones = (features[drawn], labels[drawn]), torch.ones(4)
    expected = center_loss(*plain, centers, ones).item()
    assert center_loss(features, labels, centers, weights).item() == pytest.approx(expected, rel=1e-5)
    assert center_loss(features, labels, centers, torch.zeros(5)).item() == 0
    moved, as_drawn = centers.clone(), centers.clone()
    move_centers(moved, features, labels, weights)
    move_centers(as_drawn, *plain, ones)
    assert torch.allclose(moved, as_drawn, atol=1e-6)
    assert torch.equal(moved[2], centers[2])


def test_images_with_the_same_features_have_finite_triplet_gradients():
    features = torch.ones(4, 3, requires_grad=True)
    loss = triplet(features, torch.tensor([0, 0, 1, 1]), 0.3, torch.ones(4))
    loss.backward()
    assert loss.item() == pytest.approx(0.3)
    assert torch.isfinite(features.grad).all()


@settings(max_examples=30)
@given(seeds, st.integers(1, 9))
def test_centers_move_by_the_papers_rule_and_the_loss_is_half_the_squared_distance(seed, num_rows):
    generator = torch.Generator().manual_seed(seed)
    features, centers = torch.randn(num_rows, 4, generator=generator), torch.randn(3, 4, generator=generator)
    labels = torch.randint(3, (num_rows,), generator=generator)
    distances = [math.dist(features[row], centers[labels[row]]) ** 2 for row in range(num_rows)]
    assert center_loss(features, labels, centers, torch.ones(num_rows)).item() == pytest.approx(
        np.mean(distances) / 2, rel=1e-4
    )
    moved = centers.clone()
    move_centers(moved, features, labels, torch.ones(num_rows))
    for number in range(3):
        members = features[labels == number]
        step = (centers[number] - members).sum(dim=0) / (1 + len(members))
        assert torch.allclose(moved[number], centers[number] - 0.5 * step, atol=1e-5)
    absent = ~torch.isin(torch.arange(3), labels)
    assert torch.equal(moved[absent], centers[absent])


def test_centers_reach_the_means_of_their_classes_and_take_no_gradient():
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels, centers = torch.tensor([0, 0, 0, 1, 1, 1]), torch.zeros(2, 4)
    for _ in range(60):
        move_centers(centers, features, labels, torch.ones(6))
    assert not centers.requires_grad
    assert torch.allclose(centers, torch.stack([features[:3].mean(dim=0), features[3:].mean(dim=0)]), atol=1e-4)
