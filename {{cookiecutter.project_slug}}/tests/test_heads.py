"""Heads, the neck in front of them, and biases that start at the classes' shares."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kfold.losses.margin import margin_scale
from kfold.model.heads import CosineHead, OrdinalHead, make_head
from kfold.model.neck import make_neck
from kfold.model.network import Network
from kfold.model.prior import set_prior_bias

SEEDS = st.integers(0, 10_000)


def make_features(seed=0, rows=6, columns=8):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


# Cosine heads


@given(SEEDS, st.floats(0.01, 100), st.sampled_from(["arcface", "cosface", "subcenter_arcface"]))
@settings(max_examples=20)
def test_cosine_logits_are_bounded_by_the_scale_and_free_of_the_features_length(seed, factor, name):
    head, features = make_head(name, 8, 5, scale=12.0, num_subcenters=3), make_features(seed)
    logits = head(features)
    assert logits.shape == (6, 5)
    assert (logits.abs() <= 12.0001).all()
    assert torch.allclose(head(factor * features), logits, atol=1e-3)


def test_a_class_center_is_its_own_best_match_with_the_full_scale():
    head = CosineHead(8, 5, scale=30.0)
    assert torch.allclose(head(head.weight).diagonal(), torch.tensor(30.0))
    assert torch.equal(head(head.weight).argmax(1), torch.arange(5))


def test_one_subcenter_is_arcface_and_more_take_the_nearest():
    one, features = CosineHead(8, 5, 30.0), make_features()
    same = make_head("subcenter_arcface", 8, 5, 30.0, 1)
    same.load_state_dict(one.state_dict())
    assert torch.equal(same(features), one(features))
    three = CosineHead(8, 2, 30.0, 3)
    by_hand = 30 * F.cosine_similarity(features[:, None], three.weight[None], dim=2)  # (B, 6): class 0, then class 1
    assert torch.allclose(three(features)[:, 1], by_hand[:, 3:].amax(1), atol=1e-4)


@pytest.mark.parametrize(("name", "num_centers"), [("arcface", 1), ("cosface", 1), ("subcenter_arcface", 3)])
def test_only_subcenter_arcface_has_several_centers_of_a_class(name, num_centers):
    assert make_head(name, 8, 5, num_subcenters=3).weight.shape == (5 * num_centers, 8)


def test_cosines_are_of_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert CosineHead(8, 5, 30.0)(make_features().bfloat16()).dtype == torch.float32


def test_the_automatic_scale_grows_with_the_classes_and_a_wish_is_kept():
    assert margin_scale(17.0, 3) == 17.0
    scales = [margin_scale(0.0, count) for count in (2, 3, 10, 100, 10_000)]
    assert scales == sorted(scales)
    assert scales[0] == 1
    assert scales[-1] == pytest.approx(math.sqrt(2) * math.log(9999))


# Ordinal


@given(SEEDS, st.integers(2, 12), st.floats(-50, 50))
@settings(max_examples=40)
def test_ordinal_probabilities_sum_to_1_and_higher_scores_mean_higher_classes(seed, num_classes, score):
    torch.manual_seed(seed)
    head = OrdinalHead(4, num_classes)
    with torch.no_grad():
        head.first.normal_(std=3)
        head.raw_gaps.normal_(std=3)
        logits = head.log_probabilities(torch.tensor([[score], [score + 0.5]]))
    probabilities = logits.exp()
    assert torch.isfinite(logits).all()
    assert torch.allclose(probabilities.sum(1), torch.ones(2), atol=1e-4)
    assert torch.allclose(logits.softmax(1), probabilities, atol=1e-4)
    cumulative = probabilities.cumsum(1)
    assert (cumulative[1] <= cumulative[0] + 1e-5).all()


def test_ordinal_probabilities_are_the_cumulative_link():
    head = OrdinalHead(4, 4)
    thresholds = torch.cat([head.first, head.first + (F.softplus(head.raw_gaps) + 1e-4).cumsum(0)])
    below = (thresholds - 0.7).sigmoid()
    expected = torch.diff(below, prepend=torch.zeros(1), append=torch.ones(1))
    assert torch.allclose(head.log_probabilities(torch.tensor([[0.7]])).exp()[0], expected, atol=1e-6)
    start = head.log_probabilities(torch.zeros(1, 1)).exp()
    assert torch.allclose(start, torch.full((1, 4), 0.25), atol=1e-3)  # classes start alike


@pytest.mark.parametrize("score", [-300.0, 300.0])
def test_ordinal_gradients_are_finite_far_out(score):
    head = OrdinalHead(4, 5)
    scores = torch.full((2, 1), score, requires_grad=True)
    F.cross_entropy(head.log_probabilities(scores), torch.tensor([0, 4])).backward()
    assert torch.isfinite(scores.grad).all()
    assert all(torch.isfinite(weight.grad).all() for weight in (head.first, head.raw_gaps))


def test_an_ordinal_head_learns_the_order():
    torch.manual_seed(1)
    features = torch.rand(90, 1)
    classes = (features[:, 0] * 3).long()
    head = OrdinalHead(1, 3)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(head(features), classes).backward()
        optimizer.step()
    assert (head(features).argmax(1) == classes).float().mean() > 0.95


# Neck, dropout


def make_network(neck="none", drop_rate=0.0, num_masks=1):
    head = make_head("linear", 8, 3)
    return Network(torch.nn.Identity(), head, drop_rate, None, make_neck(neck, 8), num_masks)


def test_the_bnneck_stands_between_features_and_head_and_never_shifts():
    model, images = make_network("bnneck"), make_features()
    with torch.no_grad():
        model.head.weight.normal_()
    logits, features = model(images, with_features=True)
    assert torch.equal(features, images)
    seen = (images - images.mean(0)) / (images.var(0, correction=0) + 1e-5).sqrt()
    assert torch.allclose(logits, model.head(seen), atol=1e-4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    logits.square().sum().backward()
    optimizer.step()
    assert not model.neck.bias.any()
    assert not torch.equal(model.neck.weight, torch.ones(8))


def test_masks_are_averaged_in_training_and_absent_from_predictions():
    model, images = make_network(drop_rate=0.5, num_masks=2000), make_features()
    with torch.no_grad():
        model.head.weight.normal_()
    plain = model.head(images)
    assert torch.equal(model.eval()(images), plain)
    assert torch.allclose(model.train()(images), plain, atol=0.6)  # the mean of 2,000 masks; of one it is 3 off
    model.num_masks = 3
    torch.manual_seed(7)
    found = model(images)
    torch.manual_seed(7)
    by_hand = sum(model.head(F.dropout(images, 0.5)) for _ in range(3)) / 3
    assert torch.allclose(found, by_hand, atol=1e-6)


@given(SEEDS, st.integers(2, 6), st.floats(-6, 2))
@settings(max_examples=20)
def test_no_score_of_an_ordinal_head_makes_a_class_likelier_than_its_surest_logits(seed, num_classes, gap):
    head = OrdinalHead(8, num_classes)
    with torch.no_grad():
        head.raw_gaps.normal_(mean=gap, generator=torch.Generator().manual_seed(seed))
        found = head.surest(torch.arange(num_classes)).diagonal()
        tried = head.log_probabilities(torch.linspace(-50, 50, 2001)[:, None]).amax(dim=0)
    assert (found >= tried - 1e-4).all()
    assert torch.allclose(found, tried, atol=0.05)  # tried in steps of 0.05


# Prior


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_at_zero_features_the_probabilities_are_the_shares(task):
    random = np.random.default_rng(0)
    if task == "multiclass":
        targets = np.eye(4, dtype=np.float32)[random.choice(4, 50, p=[0.6, 0.3, 0.1, 0])]
    else:
        targets = (random.random((50, 1 if task == "binary" else 4)) < 0.2).astype(np.float32)
    head = make_head("linear", 8, targets.shape[1])
    before = head.weight.detach().clone()
    set_prior_bias(head, targets, task)
    logits = head(torch.zeros(1, 8))
    probabilities = (logits.softmax(1) if task == "multiclass" else logits.sigmoid())[0].detach().numpy()
    np.testing.assert_allclose(probabilities, targets.mean(0), atol=0.011)  # a class without rows has half a row
    assert np.isfinite(head.bias.detach().numpy()).all()
    assert torch.equal(head.weight, before)
