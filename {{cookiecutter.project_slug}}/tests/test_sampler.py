"""Which rows an epoch has, at which size, and what is measured of its pixels."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfold.data import input_statistics
from kfold.data.input_statistics import dataset_statistics
from kfold.data.loader import EpochOrder, mixed_rows
from kfold.data.sampler import classes_of, resampled
from kfold.data.sizes import drawn_sizes, growing_sizes
from kfold.errors import UserError

CLASSES = np.repeat([0, 1, 2], [640, 120, 40])


def all_rows(epoch):
    return np.arange(len(CLASSES))


def frequencies(sampler, num_epochs=30):
    rows_of = resampled(all_rows, CLASSES, sampler, 0, 0)
    drawn = np.concatenate([CLASSES[rows_of(epoch)] for epoch in range(num_epochs)])
    return np.bincount(drawn) / len(drawn)


def test_balanced_gives_every_class_alike_and_square_root_lies_between():
    assert frequencies("balanced") == pytest.approx(1 / 3, abs=0.02)
    roots = np.sqrt(np.bincount(CLASSES))
    assert frequencies("square_root") == pytest.approx(roots / roots.sum(), abs=0.02)


def test_an_epoch_has_as_many_rows_as_without_and_is_drawn_anew():
    rows_of = resampled(all_rows, CLASSES, "balanced", 0, 1)
    assert len(rows_of(0)) == len(CLASSES)
    assert np.array_equal(rows_of(3), rows_of(3))
    assert not np.array_equal(rows_of(3), rows_of(4))
    assert not np.array_equal(rows_of(3), resampled(all_rows, CLASSES, "balanced", 0, 2)(3))
    rare = [set(rows_of(epoch)[CLASSES[rows_of(epoch)] == 0]) for epoch in range(2)]
    assert len(rare[0]) < 400  # of 640: the others wait for another epoch
    assert rare[0] != rare[1]


def test_pseudo_labelled_rows_are_drawn_with_the_real_ones_until_the_cool_down():
    rows_of = resampled(mixed_rows(600, 200, 0.2, 2, 0, 0), CLASSES, "balanced", 0, 0)
    assert len(rows_of(0)) == 720
    assert (rows_of(1) >= 600).any()
    assert len(rows_of(2)) == 600
    assert (rows_of(2) < 600).all()


@settings(max_examples=30)
@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 1000))
def test_a_row_of_several_labels_counts_by_its_rarest_one(num_rows, num_labels, seed):
    targets = (np.random.default_rng(seed).random((num_rows, num_labels)) < 0.4).astype(np.float32)
    counts = targets.sum(axis=0)
    for row, found in zip(targets, classes_of(targets, "multilabel"), strict=True):
        if not row.any():
            assert found == num_labels  # a class of their own
        else:
            assert row[found] == 1
            assert counts[found] == counts[row == 1].min()


def test_classes_of_soft_labels_are_the_likeliest():
    assert classes_of(np.array([[0.2, 0.8], [0.6, 0.4]]), "multiclass").tolist() == [1, 0]
    of_one_column = classes_of(np.array([[0.9], [0.1], [0.0]]), "binary")
    assert of_one_column[0] != of_one_column[1] == of_one_column[2]


# Sizes


def test_each_batch_has_one_of_the_sizes_and_all_come_up():
    sizes = [16, 24, 32]
    order = EpochOrder(40, 4, True, 1, 0, size_of=drawn_sizes(sizes, 1, 0))
    seen = []
    for epoch in range(20):
        order.epoch = epoch
        for batch in order:
            assert len({size for _, _, size in batch}) == 1
            seen.append(batch[0][2])
    assert {size: seen.count(size) / len(seen) for size in sizes} == pytest.approx(dict.fromkeys(sizes, 1 / 3), abs=0.1)


def test_a_pass_taken_up_in_the_middle_has_the_sizes_of_an_unbroken_one():
    order = EpochOrder(40, 4, True, 1, 0, size_of=drawn_sizes([16, 24, 32], 1, 0))
    whole = list(order)
    order.start = 6
    assert list(order) == whole[6:]


@settings(max_examples=50)
@given(st.lists(st.integers(8, 512), min_size=1, max_size=6), st.integers(1, 40))
def test_sizes_grow_in_order_in_equal_stretches_and_end_with_the_last(sizes, epochs):
    if len(sizes) > epochs:
        return
    size_of = growing_sizes(range(len(sizes)), epochs)
    places = [size_of(epoch, 0) for epoch in range(epochs)]
    assert places == sorted(places)
    lengths = np.bincount(places, minlength=len(sizes))
    assert lengths.max() - lengths.min() <= 1
    assert growing_sizes(sizes, epochs)(epochs, 0) == sizes[-1]  # the pass that refreshes statistics comes after


# Statistics of pixels


def write_images(folder, count, size=16):
    noise = np.random.default_rng(count)
    images = noise.integers(0, 256, (count, size, size, 3), np.uint8) // np.array([1, 2, 4], np.uint8)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path, image in zip(paths, images, strict=True):
        cv2.imwrite(str(path), image[..., ::-1])
    return paths, images / 255


def test_statistics_are_those_of_numpy_over_all_pixels(tmp_path):
    paths, images = write_images(tmp_path, 9)
    mean, std = dataset_statistics(paths, 16, 1.0, "")
    assert mean == pytest.approx(images.mean(axis=(0, 1, 2)), abs=1e-12)
    assert std == pytest.approx(images.std(axis=(0, 1, 2)), abs=1e-12)
    assert dataset_statistics(paths, 16, 1.0, "") == (mean, std)
    middle, _ = dataset_statistics(paths, 8, 0.5, "")
    assert middle == pytest.approx(images[:, 4:12, 4:12].mean(axis=(0, 1, 2)), abs=1e-12)


def test_statistics_of_many_images_are_of_evenly_spaced_ones(tmp_path, monkeypatch):
    paths, images = write_images(tmp_path, 9)
    monkeypatch.setattr(input_statistics, "MOST_IMAGES", 3)
    mean, _ = dataset_statistics(paths, 16, 1.0, "")
    assert mean == pytest.approx(images[[0, 4, 8]].mean(axis=(0, 1, 2)), abs=1e-12)


def test_statistics_name_an_image_that_cannot_be_read_and_never_divide_by_0(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"bad.png.*--check"):
        dataset_statistics([tmp_path / "bad.png"], 8, 1.0, "")
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((8, 8, 3), np.uint8))
    assert dataset_statistics([tmp_path / "black.png"], 8, 1.0, "") == ((0, 0, 0), (1 / 255,) * 3)
