"""The fast forms give what albumentations gives, bit for bit."""

import threading

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfold.data.augment import AUGMENTS, Augmentation, apply, eval_transform, train_transform
from kfold.data.exact import FORMS, apply_into, own_copy
from kfold.data.reduce import interpolation_for

AUGMENTATIONS = st.builds(
    Augmentation,
    st.sampled_from(sorted(AUGMENTS)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 0.2, 1.0]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([0.0, 0.5]),
)


def image_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image.setflags(write=False)  # as those of a cache
    return image


def both(transform, image: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    found = np.full((3, size, size, 3), 7, np.uint8)
    apply_into(found[1], transform, image, seed)
    assert (found[[0, 2]] == 7).all()  # its neighbours in the batch
    return found[1], apply(transform, image, seed)


@settings(max_examples=150, deadline=None)
@given(AUGMENTATIONS, st.integers(1, 90), st.integers(1, 90), st.sampled_from([8, 32]), st.integers(0, 2**62))
def test_any_augmentation_of_any_image_is_bit_for_bit_that_of_albumentations(augmentation, height, width, size, seed):
    found, expected = both(train_transform(augmentation, size), image_of(height, width), size, seed)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("center_crop", [1.0, 0.875, 0.6])
@pytest.mark.parametrize("shape", [(32, 32), (32, 80), (200, 33), (5, 7)])
def test_evaluation_is_bit_for_bit_that_of_albumentations(shape, center_crop):
    found, expected = both(eval_transform(32, center_crop), image_of(*shape), 32, 0)
    assert np.array_equal(found, expected)


def test_threads_share_no_generator():
    shared, found = train_transform(Augmentation("heavy"), 32).transforms[1], []
    for _ in range(2):
        thread = threading.Thread(target=lambda: found.append(own_copy(shared)))
        thread.start()
        thread.join()
    assert len({id(part) for part in (*found, own_copy(shared), shared)}) == 4
    assert own_copy(shared) is own_copy(shared)


def test_the_light_preset_with_every_flip_has_a_fast_form_for_each_step():
    transform = train_transform(Augmentation("light", True, True, True), 32)
    assert all(type(part) in FORMS for part in transform.transforms)


@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 50))
def test_what_shrinks_to_less_than_half_is_averaged(height, width, size):
    is_averaged = interpolation_for((height, width, 3), size, size) == cv2.INTER_AREA
    assert is_averaged == (height > 2 * size or width > 2 * size)
