import pytest
import torch

from kfold.ensemble.tta import TTA_TRANSFORMS, make_views
from kfold.errors import UserError


@pytest.mark.parametrize(("name", "count"), [("none", 1), ("hflip", 2), ("flips", 4), ("d4", 8), ("scales", 3)])
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


def test_a_symmetric_model_gains_nothing_from_flips():
    images = torch.rand(4, 3, 8, 8)
    outputs = torch.stack([view(images).mean((2, 3)) for view in make_views("d4", 8)])
    assert torch.allclose(outputs, outputs[:1].expand_as(outputs), atol=1e-6)


def test_scales_are_refused_for_a_backbone_of_one_size():
    with pytest.raises(UserError, match="tta=scales"):
        make_views("scales", 32, fixed_size=True)


def test_the_config_offers_every_set_of_views():
    from typing import get_args

    from kfold.config import Config

    assert set(get_args(Config.model_fields["tta"].annotation)) == set(TTA_TRANSFORMS)
