import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kfold.data.augment import AUGMENTS, Augmentation, apply, eval_transform, train_transform
from kfold.data.loader import EpochOrder, Images, make_loader, mixed_rows

CPU = torch.device("cpu")
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def image_paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(13)]
    for path in paths:
        cv2.imwrite(str(path), noise.integers(0, 256, (40, 36, 3), np.uint8))
    return paths


def make_images(paths, augment="heavy", seed=1, fold=0):
    targets = np.arange(len(paths), dtype=np.float32)[:, None]
    return Images(paths, targets, train_transform(Augmentation(augment, True, True, True), 24), 24, seed, fold)


def read_epochs(paths, num_workers, epochs=(0, 1), start=0, seed=1, fold=0):
    order = EpochOrder(len(paths), 4, True, seed, fold)
    loader = make_loader(make_images(paths, seed=seed, fold=fold), order, num_workers, CPU)
    batches = []
    for epoch in epochs:
        order.epoch, order.start = epoch, start
        batches += [(batch.indices.tolist(), batch.images.numpy().tobytes()) for batch in loader]
    return batches


@pytest.fixture(scope="module")
def batches(image_paths):
    return read_epochs(image_paths, num_workers=0)


@pytest.mark.parametrize("num_workers", [1, 2, 4, "threads"])
def test_batches_are_the_same_bytes_for_any_number_of_workers(image_paths, batches, num_workers):
    assert read_epochs(image_paths, num_workers) == batches


@pytest.mark.parametrize("start", [1, 2])
def test_an_epoch_taken_up_at_any_batch_goes_on_with_the_same_bytes(image_paths, batches, start):
    assert read_epochs(image_paths, 2, epochs=(1,), start=start) == batches[3 + start :]


DECODE_THEN_FORK = """
import sys, cv2, numpy as np, torch
from kfold.data.augment import Augmentation, train_transform
from kfold.data.loader import EpochOrder, Images, make_loader
for size in range(2000, 2010):
    cv2.GaussianBlur(cv2.resize(np.zeros((size, size, 3), np.uint8), (900, 900)), (9, 9), 2)
transform = train_transform(Augmentation("heavy", True, True, True), 24)
images = Images(sys.argv[1:], np.zeros((len(sys.argv) - 1, 1)), transform, 24)
loader = make_loader(images, EpochOrder(len(images), 4, True), 2, torch.device("cpu"))
print(sum(len(batch.images) for batch in loader))
"""


def test_workers_start_in_a_process_that_used_opencv_before(image_paths):
    command = [sys.executable, "-c", DECODE_THEN_FORK, *map(str, image_paths)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert result.stdout == "12\n", result.stderr


def test_epochs_seeds_and_folds_differ_in_order_and_pixels(image_paths, batches):
    assert batches[:3] != batches[3:]
    assert read_epochs(image_paths, 0, seed=2) != batches
    assert read_epochs(image_paths, 0, fold=1) != batches
    images = make_images(image_paths)
    assert not torch.equal(images.__getitems__([(0, 5)]).images, images.__getitems__([(1, 5)]).images)


def test_iterating_draws_nothing_from_torchs_global_generator(image_paths):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    read_epochs(image_paths, 0)
    assert torch.equal(torch.rand(2), expected)


def test_a_shuffled_epoch_has_each_row_at_most_once_and_full_batches_only():
    order = EpochOrder(13, 4, True)
    keys = [key for batch in order for key in batch]
    assert len(keys) == len(set(keys)) == 12
    assert len(order) == 3


def test_an_unshuffled_pass_has_every_row_once_in_order():
    order = EpochOrder(13, 4, False)
    assert [row for batch in order for _, row in batch] == list(range(13))
    assert len(order) == 4


def test_fewer_rows_than_a_batch_still_make_one_batch():
    assert [len(batch) for batch in EpochOrder(3, 8, True)] == [3]


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(0, 60), st.floats(0.1, 3), st.integers(1, 4))
def test_a_mixed_epoch_has_every_real_row_and_pseudo_rows_at_the_ratio(num_real, num_pseudo, ratio, num_mixed_epochs):
    rows_of = mixed_rows(num_real, num_pseudo, ratio, num_mixed_epochs, seed=0, fold=1)
    for epoch in range(num_mixed_epochs + 2):
        rows = rows_of(epoch)
        assert len(set(rows)) == len(rows)
        assert set(range(num_real)) <= set(rows)
        num_wanted = min(num_pseudo, round(ratio * num_real)) if epoch < num_mixed_epochs else 0
        assert len(rows) == num_real + num_wanted
        assert rows.max() < num_real + num_pseudo


def test_pseudo_rows_are_drawn_anew_each_epoch():
    rows_of = mixed_rows(10, 100, 1.0, 5, seed=0, fold=1)
    assert set(rows_of(0)) != set(rows_of(1))
    assert np.array_equal(rows_of(1), rows_of(1))


def test_an_order_follows_the_rows_of_each_epoch():
    order = EpochOrder(30, 4, True, rows_of=mixed_rows(10, 20, 2.0, 1, seed=0, fold=0))
    assert [order.num_batches(epoch) for epoch in (0, 1)] == [7, 2]
    order.epoch = 1
    assert all(row < 10 for batch in order for _, row in batch)


def test_weights_travel_with_their_rows(image_paths):
    weights = np.arange(len(image_paths), dtype=np.float32)[:, None]
    images = Images(image_paths, weights, eval_transform(24), 24, weights=weights / 10)
    batch = images.__getitems__([(0, 5), (0, 2)])
    assert batch.weights.tolist() == [[0.5], [pytest.approx(0.2)]]
    assert make_images(image_paths).__getitems__([(0, 0)]).weights.eq(1).all()


def test_an_unreadable_image_is_black_and_reported_not_raised(image_paths, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    batch = make_images([image_paths[0], bad]).__getitems__([(0, 0), (0, 1)])
    assert [row for row, _ in batch.problems] == [1]
    assert "bad.png" in batch.problems[0][1]
    assert batch.images[1].max() == 0
    assert batch.images[0].max() > 0


@pytest.mark.parametrize("augment", AUGMENTS)
def test_every_preset_is_a_pure_function_of_the_seed_and_gives_uint8_of_the_size(augment):
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    transform = train_transform(Augmentation(augment, True, False, True), 32)
    first = apply(transform, image, 7)
    apply(transform, image, 8)
    assert np.array_equal(apply(transform, image, 7), first)
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8


def test_transforms_of_one_image_draw_independently():
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, 0] = 255
    transform = train_transform(Augmentation("none", True, True), 2)
    corners = [tuple(np.argwhere(apply(transform, image, seed)[..., 0])[0]) for seed in range(200)]
    counts = {corner: corners.count(corner) for corner in set(corners)}
    assert len(counts) == 4  # with one shared seed, two flips never come alone
    assert min(counts.values()) > 25


def test_evaluation_only_resizes():
    image = np.full((50, 70, 3), 9, np.uint8)
    assert np.array_equal(apply(eval_transform(16), image, 1), np.full((16, 16, 3), 9, np.uint8))
