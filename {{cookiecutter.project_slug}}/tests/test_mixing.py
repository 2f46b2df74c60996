"""Mixed batches: labels follow the pixels, and no mass is made or lost."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kfold.config import Config
from kfold.setup.objective import make_mixer
from kfold.training.mixing import MIXINGS, mix_batch
from kfold.training.ricap import ricap

SIZE = 12


def make_batch(num_rows, num_classes, seed=0):
    """Row r's pixels are all r, and its label is class r modulo the number of classes."""
    noise = np.random.default_rng(seed)
    values = torch.arange(num_rows, dtype=torch.uint8)
    pixels = values[:, None, None, None].expand(-1, SIZE, SIZE, 3).contiguous()
    targets = torch.eye(num_classes)[torch.arange(num_rows) % num_classes]
    weights = torch.tensor(noise.uniform(0.01, 1, (num_rows, 1)), dtype=torch.float32).expand(-1, num_classes)
    return pixels, targets, weights.clone()


def shares_of(image, num_rows):
    """What part of an image's pixels comes from each row."""
    return torch.bincount(image[..., 0].flatten().long(), minlength=num_rows) / SIZE**2


@settings(max_examples=40)
@given(st.sampled_from(list(MIXINGS)), st.integers(2, 9), st.integers(2, 5), st.floats(0.1, 4), st.integers(0, 10**6))
def test_targets_keep_mass_1_for_any_weights(name, num_rows, num_classes, beta, seed):
    pixels, targets, weights = make_batch(num_rows, num_classes, seed)
    weights[seed % num_rows] = 0  # a row that does not count
    torch.manual_seed(seed)
    images, mixed, mixed_weights = mix_batch(MIXINGS[name], beta, pixels, targets, weights)
    assert images.shape == pixels.shape
    assert mixed.sum(dim=1).numpy() == pytest.approx(1, abs=1e-5)
    assert mixed.min() >= 0
    assert 0 <= mixed_weights.min() <= mixed_weights.max() <= 1 + 1e-6


@pytest.mark.parametrize("name", ["cutmix", "ricap"])
def test_labels_have_the_shares_of_the_pixels(name):
    num_rows = 6
    pixels, targets, _ = make_batch(num_rows, num_rows)
    for seed in range(30):
        torch.manual_seed(seed)
        images, mixed, _ = mix_batch(MIXINGS[name], 1.0, pixels, targets, torch.ones_like(targets))
        counted = torch.stack([shares_of(image, num_rows) for image in images])
        assert torch.allclose(mixed, counted, atol=1e-6)


def test_mixup_mixes_pixels_and_labels_by_one_share():
    pixels, targets, _ = make_batch(5, 5)
    torch.manual_seed(1)
    images, mixed, _ = mix_batch(MIXINGS["mixup"], 1.0, pixels, targets, torch.ones_like(targets))
    assert images.dtype == torch.float32  # shares of grey levels are not rounded
    expected = mixed @ torch.arange(5.0)
    assert torch.allclose(images, expected[:, None, None, None].expand_as(images), atol=1e-5)
    assert 0.01 < mixed[0].max() < 0.99


def test_a_linear_loss_of_the_mixture_is_the_mixture_of_the_losses():
    """With weights, too: here the loss of a row is one number for each of its classes."""
    pixels, targets, weights = make_batch(6, 3)
    torch.manual_seed(2)
    costs = torch.rand(3)
    for name in MIXINGS:
        torch.manual_seed(3)
        _, mixed, mixed_weights = mix_batch(MIXINGS[name], 1.0, pixels, targets, weights)
        torch.manual_seed(3)
        labels = torch.cat([weights[:, :1] * (targets @ costs)[:, None]] * 2, dim=1)
        _, of_each = MIXINGS[name](pixels.permute(0, 3, 1, 2), labels, 1.0)
        assert torch.allclose(mixed_weights[:, 0] * (mixed @ costs), of_each[:, 0], atol=1e-6)


def test_regression_targets_mix_linearly():
    pixels, _, _ = make_batch(8, 2)
    values = 100 * torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    shift, scale = torch.tensor([5.0, -3.0]), torch.tensor([2.0, 10.0])
    for name in MIXINGS:
        mixed = []
        for targets in (values, (values - shift) / scale):
            torch.manual_seed(4)
            mixed.append(mix_batch(MIXINGS[name], 1.0, pixels, targets, torch.ones_like(values))[1])
        assert torch.allclose((mixed[0] - shift) / scale, mixed[1], atol=1e-4)  # standardised before or after


@settings(max_examples=30)
@given(st.integers(2, 40), st.integers(2, 40), st.floats(0.1, 3), st.integers(0, 10**6))
def test_the_four_areas_of_ricap_fill_the_image(height, width, beta, seed):
    torch.manual_seed(seed)
    images = torch.rand(4, 3, height, width) + 1
    patched, mixed = ricap(images, torch.ones(4, 1), beta)
    assert mixed.numpy() == pytest.approx(1, abs=1e-5)
    assert patched.min() >= 1  # no pixel is left as it was allocated


def test_ricap_takes_each_crop_from_its_place_in_another_image():
    images = torch.rand(5, 3, SIZE, SIZE)
    torch.manual_seed(0)
    patched, _ = ricap(images, torch.eye(5), 5.0)
    corner = patched[0][:, :2, :2].flatten()
    windows = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    assert (windows == corner).all(dim=1).any()


def make_mix(**choices):
    return make_mixer(Config(epochs=5, **choices))


def is_mixed(mix, epoch, seed):
    pixels, targets, weights = make_batch(4, 4)
    torch.manual_seed(seed)
    mixed = mix(epoch, pixels, targets, weights)
    return not torch.equal(mixed[0].float(), pixels.float()), mixed


def test_plain_epochs_are_free_of_mixing():
    mix = make_mix(mixing=["mixup", "cutmix", "ricap"], plain_epochs=2, cutmix_alpha=3)
    assert all(is_mixed(mix, epoch, seed)[0] for epoch in (0, 1, 2) for seed in range(5))
    for epoch in (3, 4):
        _, (pixels, targets, weights) = is_mixed(mix, epoch, 0)
        for found, given_tensor in zip((pixels, targets, weights), make_batch(4, 4), strict=True):
            assert torch.equal(found, given_tensor)


def test_batches_are_mixed_with_the_probability_and_by_each_name():
    mix = make_mix(mixing=["mixup", "ricap"], mixing_probability=0.4, mixup_alpha=2)
    found = [is_mixed(mix, 0, seed) for seed in range(300)]
    assert 0.3 < np.mean([mixed for mixed, _ in found]) < 0.5
    kinds = [tensors[0].dtype for mixed, tensors in found if mixed]
    assert 0.35 < np.mean([kind == torch.float32 for kind in kinds]) < 0.65  # mixup alone is not uint8


def test_a_mixture_is_a_pure_function_of_torchs_seed():
    mix = make_mix(mixing=list(MIXINGS), mixing_probability=0.5)
    first = [is_mixed(mix, 0, seed) for seed in range(30)]
    assert len({mixed for mixed, _ in first}) == 2
    for seed, (_, tensors) in enumerate(first):
        again = is_mixed(mix, 0, seed)[1]
        assert all(torch.equal(one, two) for one, two in zip(tensors, again, strict=True))
