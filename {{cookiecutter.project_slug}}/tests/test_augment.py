"""Extras of an augmentation, the policies, plain epochs and the centre crop."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from kfold.data.augment import Augmentation, apply, eval_transform, train_transform, transform_of_epoch
from kfold.data.fancy_pca import EIGENVALUES, EIGENVECTORS, SPREAD
from kfold.data.loader import EpochOrder, Images, make_loader, read_batches
from kfold.data.sizes import drawn_sizes
from kfold.seeds import seed_of

CPU = torch.device("cpu")
POLICIES = ["autoaugment", "randaugment", "trivialaugment"]
EVERYTHING = Augmentation("randaugment", True, True, True, 0.3, 0.4, 0.5, 0.5, 0.5)
IMAGE = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8), (70, 60))


def images_of(augmentation, count=40, image=IMAGE, size=24):
    return np.array([apply(train_transform(augmentation, size), image, seed) for seed in range(count)])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_depends_on_its_seed_alone_and_leaves_torchs_generator_as_it_was(policy):
    transform = train_transform(Augmentation(policy), 24)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = [apply(transform, IMAGE, seed) for seed in range(12)]
    assert torch.equal(torch.rand(1), expected)
    torch.manual_seed(99)
    assert all(np.array_equal(apply(transform, IMAGE, seed), image) for seed, image in enumerate(first))
    cropped = [apply(train_transform(Augmentation("none", crop_scale=0.7), 24), IMAGE, seed) for seed in range(12)]
    assert sum(not np.array_equal(one, other) for one, other in zip(first, cropped, strict=True)) > 6


EXTRAS = ["crop_scale", "color_jitter", "fancy_pca", "cutout", "random_erasing"]


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("preset", ["none", "light", "heavy", "trivialaugment"])
def test_an_extra_joins_any_preset_as_a_pure_function_of_the_seed(preset, extra):
    augmentation = Augmentation(preset, **{extra: 0.5})
    found = images_of(augmentation)
    assert found.shape == (40, 24, 24, 3)
    assert found.dtype == np.uint8
    assert np.array_equal(found, images_of(augmentation))
    assert not np.array_equal(found, images_of(Augmentation(preset)))


@pytest.mark.parametrize("extra", ["fancy_pca", "cutout", "random_erasing"])
def test_a_probability_is_that_of_an_image(extra):
    plain = images_of(Augmentation("none"), 200)
    changed = (images_of(Augmentation("none", **{extra: 0.3}), 200) != plain).any(axis=(1, 2, 3))
    assert 0.2 < changed.mean() < 0.4


def test_cutout_is_one_grey_square_and_erasing_a_rectangle_of_noise():
    black = np.zeros((40, 40, 3), np.uint8)
    for image in images_of(Augmentation("none", cutout=1.0), 20, black, 40):
        rows, columns = np.nonzero(image[..., 0])
        assert np.ptp(rows) == np.ptp(columns) == 15  # 0.4 of the side
        assert len(rows) == 16**2
        assert set(image[rows, columns].flatten()) == {128}
    for image in images_of(Augmentation("none", random_erasing=1.0), 20, black, 40):
        rows, columns = np.nonzero(image.any(axis=2))
        assert 0 < len(rows) <= 0.4 * 1600
        assert len(set(image[rows, columns, 0])) > min(5, len(rows) - 1)


def test_fancy_pca_adds_one_colour_to_all_pixels_by_the_components_of_the_paper():
    grey = np.full((8, 8, 3), 128, np.uint8)
    shifts = images_of(Augmentation("none", fancy_pca=1.0), 3000, grey, 8).astype(int) - 128
    assert (shifts == shifts[:, :1, :1]).all()
    wanted = 255**2 * (EIGENVECTORS * (SPREAD * EIGENVALUES) ** 2) @ EIGENVECTORS.T
    assert np.cov(shifts[:, 0, 0].T) == pytest.approx(wanted, rel=0.15)
    assert np.eye(3) == pytest.approx(EIGENVECTORS.T @ EIGENVECTORS, abs=1e-3)


def test_crop_scale_is_the_least_area_whatever_the_preset():
    ramp = np.repeat(np.linspace(0, 255, 100).astype(np.uint8)[None, :, None], 100, 0).repeat(3, 2)
    for preset in ("none", "light"):
        augmentation = Augmentation(preset, crop_scale=1.0, color_jitter=1e-9)  # the whole image
        assert all(np.ptp(image[..., 0].astype(int)) > 245 for image in images_of(augmentation, 60, ramp, 32))
    widths = [np.ptp(image[..., 0].astype(int)) for image in images_of(Augmentation("none", crop_scale=0.1), 60, ramp)]
    assert min(widths) < 255 * 0.5


def test_color_jitter_takes_the_place_of_the_presets_colours():
    grey = np.full((24, 24, 3), 100, np.uint8)
    assert len({image.tobytes() for image in images_of(Augmentation("light"), image=grey)}) > 10
    assert {image.tobytes() for image in images_of(Augmentation("light", color_jitter=1e-9), image=grey)} == {
        grey.tobytes()
    }


def test_color_jitter_turns_the_hue_by_an_eighth_of_its_strength_at_most():
    red = np.full((4, 4, 3), (150, 100, 100), np.uint8)
    images = images_of(Augmentation("none", color_jitter=0.4), 200, red, 4)
    hues = [cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[0, 0, 0] / 180 for image in images]  # turns
    turned = np.abs((np.array(hues) + 0.5) % 1 - 0.5)
    assert 0.03 < turned.max() < 0.05 + 0.02  # the darkest and palest colours are that far apart


@pytest.mark.parametrize("extra", ["hflip", "vflip", "rotate90"])
def test_every_turn_and_flip_is_as_likely_as_none(extra):
    found = images_of(Augmentation("none", **{extra: True}), 400)
    plain = images_of(Augmentation("none"), 1)[0]
    wanted = {
        "hflip": [plain, plain[:, ::-1]],
        "vflip": [plain, plain[::-1]],
        "rotate90": [np.rot90(plain, turns) for turns in range(4)],
    }[extra]
    shares = [np.mean([np.array_equal(image, one) for image in found]) for one in wanted]
    assert sum(shares) == pytest.approx(1)
    assert shares == pytest.approx([1 / len(wanted)] * len(wanted), abs=0.08)  # three standard deviations or more


# Plain epochs


def test_plain_epochs_have_the_light_preset_with_the_flips_that_were_allowed():
    light = Augmentation("light", True, True, True)
    for seed in range(10):
        plain = apply(transform_of_epoch(EVERYTHING, 3, 3, 24), IMAGE, seed)
        assert np.array_equal(plain, apply(train_transform(light, 24), IMAGE, seed))
        before = apply(transform_of_epoch(EVERYTHING, 3, 2, 24), IMAGE, seed)
        assert np.array_equal(before, apply(train_transform(EVERYTHING, 24), IMAGE, seed))
    assert Augmentation("none", cutout=0.5).plain == Augmentation("none")  # light would be more than there was


# Batches


def test_a_key_chooses_the_transform_of_its_epoch_and_its_size(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), IMAGE[..., ::-1])
    images = Images([tmp_path / "a.png"], np.zeros((1, 1)), train_transform(EVERYTHING, 32), 32, 5, 1)
    images.transform_of = lambda epoch, size: transform_of_epoch(EVERYTHING, 1, epoch, size)
    for epoch, augmentation in enumerate([EVERYTHING, EVERYTHING.plain]):
        expected = apply(train_transform(augmentation, 24), IMAGE, seed_of(5, 1, epoch, 0))
        assert np.array_equal(images.__getitems__([(epoch, 0, 24)]).images[0], expected)


def read(paths, num_workers, start=0):
    """Two epochs, the second of them plain, of batches of several sizes."""
    images = Images(
        paths,
        np.zeros((len(paths), 1)),
        train_transform(EVERYTHING, 32),
        32,
        5,
        1,
        transform_of=lambda epoch, size: transform_of_epoch(EVERYTHING, 1, epoch, size),
    )
    order = EpochOrder(len(paths), 3, True, 5, 1, size_of=drawn_sizes([16, 24, 32], 5, 1))
    loader = make_loader(images, order, num_workers, CPU)
    batches = [batch for epoch in (0, 1) for batch in read_batches(loader, epoch, start)]
    return [(tuple(batch.images.shape), batch.images.numpy().tobytes()) for batch in batches]


def test_batches_of_many_sizes_with_every_extra_are_the_same_bytes_for_any_number_of_workers(tmp_path):
    noise = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(14)]
    for path in paths:
        cv2.imwrite(str(path), cv2.resize(noise.integers(0, 256, (5, 5, 3), np.uint8), (40, 36)))
    alone = read(paths, 0)
    assert len({shape for shape, _ in alone}) > 1
    assert read(paths, 2) == alone
    assert read(paths, 2, start=2) == alone[2:4] + alone[6:]


# Centre crop


def test_the_centre_crop_keeps_the_centre_and_leaves_out_the_border():
    image = np.zeros((80, 80, 3), np.uint8)
    image[8:72, 8:72] = 255  # 0.8 of each side
    found = apply(eval_transform(32, 0.8), image, 0)
    assert found.shape == (32, 32, 3)
    assert found.min() == 255
    assert apply(eval_transform(32, 0.9), image, 0).min() == 0
    cross = np.zeros((81, 81, 3), np.uint8)
    cross[37:44, 37:44] = 255
    bright = np.argwhere(apply(eval_transform(27, 0.75), cross, 0)[..., 0] > 128)
    assert bright.mean(axis=0) == pytest.approx(13, abs=0.6)
    assert np.array_equal(apply(eval_transform(32, 1.0), image, 0), apply(eval_transform(32), image, 0))


def test_plain_values_make_equal_transforms_one():
    assert train_transform(EVERYTHING, 24) is train_transform(replace(EVERYTHING), 24)
