"""One pass over the images predicts what each model and each view alone would, and holds one batch at a time."""

import weakref

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kfold.data.augment import eval_transform
from kfold.data.loader import Batch, EpochOrder, Images, make_loader, read_batches
from kfold.engines.held import Held, groups_that_fit
from kfold.engines.inference import Inference
from kfold.engines.one_pass import Look, look_at_all
from kfold.engines.ready import Ready, make_ready
from kfold.ensemble.tta import TTA_TRANSFORMS, make_views
from kfold.errors import UserError
from kfold.model.build import build_model
from kfold.model.weights import ModelCard, normalize
from kfold.training.losses import LOSSES_OF_TASK
from kfold.training.precision import Precision
from kfold.training.predicting import predict_logits, same, to_target_units

CPU, SIZE = torch.device("cpu"), 32
FLOAT32 = Precision(torch.float32, "")


@pytest.fixture(scope="module")
def image_paths(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [folder / f"{row}.png" for row in range(23)]
    for path in paths:
        cv2.imwrite(str(path), generator.integers(0, 256, (40, 36, 3), np.uint8))
    return paths


def make_card(task: str, seed: int) -> ModelCard:
    """Statistics and units differ from seed to seed, as those of runs do."""
    one = seed / 10
    return ModelCard(
        "test_resnet", SIZE, task, ("a", "b", "c"), (0.4 + one,) * 3, (0.2 + one,) * 3, (one,) * 3, (1 + one,) * 3
    )


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build_model("test_resnet", 3, SIZE).eval()
    nn.init.normal_(model.head.weight)
    return model


def batches_of(paths, size):
    images = Images(paths, np.zeros((len(paths), 0)), eval_transform(SIZE), SIZE)
    return list(read_batches(make_loader(images, EpochOrder(len(paths), size, False), 0, CPU)))


MODELS = [make_model(seed) for seed in range(3)]


@settings(max_examples=8, deadline=None)
@given(
    task=st.sampled_from(list(LOSSES_OF_TASK)),
    views=st.lists(st.sampled_from(list(TTA_TRANSFORMS)), min_size=1, max_size=4),
    cards=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    num_rows=st.integers(1, 23),
    batch_size=st.integers(1, 9),
)
def test_one_pass_is_fold_by_fold_and_view_by_view(image_paths, task, views, cards, num_rows, batch_size):
    batches = batches_of(image_paths[:num_rows], batch_size)
    looks, expected = [], []
    for place, view in enumerate(views):
        model, card = MODELS[place % 3], make_card(task, cards[place])
        ready = make_ready(model, card, Inference(), CPU, batch_size, torch.empty(0))
        looks.append(Look(ready, view, make_views(view, SIZE)))
        alone = [
            to_target_units(predict_logits(model, batches, [one], card, CPU, FLOAT32)[0], card).numpy()
            for one in make_views(view, SIZE)
        ]
        expected.append(np.array(alone).mean(axis=0))
    seen = look_at_all(looks, batches, num_rows, CPU)
    for one, values in zip(seen, expected, strict=True):
        assert one.values.dtype == np.float32
        assert np.allclose(one.values, values, rtol=1e-6, atol=1e-6)  # sigmoid's last digit depends on its place


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_faster_way_predicts_nearly_the_same(image_paths, dtype):
    batches, card = batches_of(image_paths, 8), make_card("multiclass", 1)
    probe = normalize(batches[0].images, card.mean, card.std)
    ways = [Inference(), Inference(dtype, channels_last=True, fold_batchnorm=True)]
    looks = [
        Look(make_ready(make_model(5), card, way, CPU, 8, probe), view, make_views(view, SIZE))
        for way in ways
        for view in ("d4", "scales")
    ]
    plain_d4, plain_scales, d4, scales = (one.values for one in look_at_all(looks, batches, 23, CPU))
    allowed = {"float32": 1e-4, "bfloat16": 0.05}[dtype]
    for plain, fast in ((plain_d4, d4), (plain_scales, scales)):
        assert 0 < np.abs(plain - fast).max() < allowed
    assert (np.abs(plain_d4 - d4).max() > 1e-4) == (dtype == "bfloat16")


def test_a_compiled_model_sees_batches_of_one_size(monkeypatch):
    sizes = []

    def compiled(model, dynamic):
        return lambda images: sizes.append(len(images)) or model(images)

    monkeypatch.setattr(torch, "compile", compiled)
    model, images = make_model(0), torch.randn(7, 3, SIZE, SIZE)
    ready = make_ready(model, make_card("binary", 0), Inference(compiled=True), CPU, 5, images)
    with torch.inference_mode():
        found = torch.cat([ready.forward(images[:5]), ready.forward(images[5:])])
        assert torch.allclose(found, model(images), atol=1e-6)
    assert sizes == [5, 5]


def test_memory_does_not_grow_with_the_rows():
    """However many rows, few batches are alive at once; what stays is (N, C)."""
    alive, most = weakref.WeakSet(), []

    def batches(count):
        for place in range(count):
            images = torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8)
            alive.add(images)
            most.append(len(alive))
            yield Batch(images, torch.zeros(2, 0), torch.zeros(2, 0), 2 * place + torch.arange(2), [])
            del images

    ready = Ready(lambda images: images.mean(dim=(2, 3)), make_card("multiclass", 0))
    for count in (4, 40):
        most.clear()
        (seen,) = look_at_all([Look(ready, "none", [same])], batches(count), 2 * count, CPU)
        assert len(seen.values) == 2 * count
        assert max(most) <= 2


def test_seconds_are_the_own_ones_and_the_reading_which_all_share():
    ready = Ready(lambda images: images.mean(dim=(2, 3)), make_card("multiclass", 0))
    batch = Batch(torch.zeros(2, 8, 8, 3, dtype=torch.uint8), None, None, torch.arange(2), [])
    looks = [Look(ready, "none", [same]), Look(ready, "many", [same] * 200)]
    few, many = (one.seconds for one in look_at_all(looks, [batch] * 3, 2, CPU, timed=True))
    assert 0 < few < many


def test_an_unreadable_image_is_handed_over_or_refused():
    batch = Batch(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), None, None, torch.tensor([0]), [(0, "x.png: is empty")])
    looks = [Look(Ready(lambda images: images.mean(dim=(2, 3)), make_card("binary", 0)), "none", [same])]
    problems = {}
    look_at_all(looks, [batch], 1, CPU, problems.__setitem__)
    assert problems == {0: "x.png: is empty"}
    with pytest.raises(UserError, match="is empty: run make_folds.py --check"):
        look_at_all(looks, [batch], 1, CPU)


# What fits into memory


@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 100))
def test_groups_keep_the_order_and_the_budget_and_are_as_full_as_they_can_be(sizes, budget):
    groups = groups_that_fit(sizes, budget)
    assert [place for group in groups for place in group] == list(range(len(sizes)))
    totals = [sum(sizes[place] for place in group) for group in groups]
    assert all(total <= budget or len(group) == 1 for total, group in zip(totals, groups, strict=True))
    assert all(total + sizes[after[0]] > budget for total, after in zip(totals[:-1], groups[1:], strict=True))


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 12))
def test_held_models_stay_within_the_budget_and_are_made_once_where_all_fit(asked, budget):
    held, made = Held(budget), []
    for key in asked:
        assert held.get(key, 3, lambda key=key: made.append(key) or f"model {key}") == f"model {key}"
        total = sum(size for _, size in held.models.values())
        assert total <= budget or len(held.models) == 1
        assert list(held.models)[-1] == key
    if 3 * len(set(asked)) <= budget:
        assert sorted(made) == sorted(set(asked))
