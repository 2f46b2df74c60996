from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kfold.config import Config
from kfold.ensemble.tta import TTA_TRANSFORMS, make_views
from kfold.errors import UserError
from kfold.model.build import build_model
from predict import offered_views

COUNTS = {"none": 1, "hflip": 2, "flips": 4, "rotations": 4, "d4": 8, "scales": 3, "crops": 6}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_views_are_distinct_and_start_with_the_unchanged_image(name, count):
    images = torch.rand(2, 3, 20, 20)
    seen = [view(images) for view in make_views(name, 20)]
    assert len(seen) == count
    assert torch.equal(seen[0], images)
    for position, image in enumerate(seen):
        assert not any(image.shape == other.shape and torch.equal(image, other) for other in seen[:position])


def test_d4_is_closed_under_quarter_turns_and_mirroring():
    images = torch.rand(1, 3, 8, 8)
    group = [view(images) for view in make_views("d4", 8)]
    for moved in (torch.rot90(images, 1, (2, 3)), images.flip(2), images.transpose(2, 3)):
        assert any(torch.equal(moved, member) for member in group)


def test_rotations_are_the_four_quarter_turns():
    images = torch.rand(1, 3, 8, 8)
    turns = [torch.rot90(images, count, (2, 3)) for count in range(4)]
    seen = [view(images) for view in make_views("rotations", 8)]
    assert all(any(torch.equal(turn, image) for image in seen) for turn in turns)


def enlarged(part: np.ndarray, size: int) -> np.ndarray:
    """A part (H, W) of an image made (size, size): each new pixel is interpolated at its centre, edges repeated."""

    def weights(side: int) -> np.ndarray:
        centres = (np.arange(size) + 0.5) * side / size - 0.5
        return np.stack([np.interp(centres, np.arange(side), row) for row in np.eye(side)], axis=1)

    return weights(part.shape[0]) @ part @ weights(part.shape[1]).T


@given(size=st.integers(16, 64), seed=st.integers(0, 1000))
def test_crops_are_the_corners_and_the_middle_enlarged(size, seed):
    image = np.random.default_rng(seed).random((size, size), np.float32)
    side, first = round(0.875 * size), size // 2 - round(0.875 * size) // 2
    far, middle = slice(size - side, size), slice(first, first + side)
    near = slice(0, side)
    places = [(near, near), (near, far), (far, near), (far, far), (middle, middle)]
    views = make_views("crops", size)[1:]
    seen = [view(torch.from_numpy(image)[None, None].expand(1, 3, size, size))[0].numpy() for view in views]
    assert len(seen) == len(places)
    for place in places:
        assert any(np.allclose(found, enlarged(image[place], size), atol=1e-5) for found in seen), place


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_an_image_of_one_colour_gives_the_plain_prediction_in_every_crop(backbone):
    torch.manual_seed(0)
    model = build_model(backbone, 3, 32).eval()
    images = torch.rand(2, 3, 1, 1).expand(2, 3, 32, 32)
    with torch.inference_mode():
        logits = [model(view(images)) for view in make_views("crops", 32)]
    assert all(torch.allclose(found, logits[0], atol=1e-5) for found in logits)
    assert logits[0].abs().max() > 1e-3


def test_a_backbone_of_one_size_is_offered_every_view_but_scales():
    assert offered_views(Config(backbone="test_resnet")) == list(TTA_TRANSFORMS)
    assert set(TTA_TRANSFORMS) - set(offered_views(Config(backbone="test_vit"))) == {"scales"}


def test_a_symmetric_model_gains_nothing_from_flips():
    images = torch.rand(4, 3, 8, 8)
    outputs = torch.stack([view(images).mean((2, 3)) for view in make_views("d4", 8)])
    assert torch.allclose(outputs, outputs[:1].expand_as(outputs), atol=1e-6)


def test_scales_are_refused_for_a_backbone_of_one_size():
    with pytest.raises(UserError, match="tta=scales"):
        make_views("scales", 32, fixed_size=True)


def test_the_config_offers_every_set_of_views():
    assert set(get_args(Config.model_fields["tta"].annotation)) == set(TTA_TRANSFORMS)
