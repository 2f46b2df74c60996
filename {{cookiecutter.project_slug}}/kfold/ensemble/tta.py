"""Test-time augmentation (TTA): the views that a model looks at, from ttach; merged on probabilities.

When it helps: Shanmugam and others, Better Aggregation in Test-Time Augmentation, arxiv.org/abs/2011.11156
ttach's own mergers are not used: on logits its gmean flips signs and its tsharpen gives NaN (ttach 0.0.3).
"""

from collections.abc import Callable

import torch
import ttach

from kfold.errors import UserError

View = Callable[[torch.Tensor], torch.Tensor]

CROP = 0.875  # share of the side that a crop keeps: 224 pixels of 256, as Krizhevsky and others, 2012, section 4.1

TTA_TRANSFORMS: dict[str, Callable[[int], list]] = {  # image_size -> transforms, of which every combination is a view
    "none": lambda size: [],
    "hflip": lambda size: [ttach.HorizontalFlip()],
    "flips": lambda size: [ttach.HorizontalFlip(), ttach.VerticalFlip()],
    "rotations": lambda size: [quarter_turns()],
    "d4": lambda size: [ttach.HorizontalFlip(), ttach.VerticalFlip(), quarter_turns()],
    "scales": lambda size: [ttach.Scale([0.85, 1, 1.15], interpolation="bilinear", align_corners=False)],
    "crops": lambda size: five_crops(size),
}


def quarter_turns() -> ttach.Rotate90:
    return ttach.Rotate90([0, 90, 180, 270])


def five_crops(size: int) -> list:
    """The four corners and the middle, each enlarged to the whole image: random crops of training look like that, and
    backbones of fixed size take it."""
    side = round(CROP * size)
    return [ttach.FiveCrops(side, side), ttach.Resize([(size, size)], interpolation="bilinear", align_corners=False)]


def make_views(name: str, image_size: int, fixed_size: bool = False) -> list[View]:
    """The distinct views called `name`, the unchanged image first; each maps (B, 3, S, S) float to (B, 3, S', S').

    Repeated views are dropped: flips x quarter turns make 16, of which 8 differ. Raises UserError for scales on a
    backbone of fixed input size.
    """
    if name == "scales" and fixed_size:
        others = ", ".join(other for other in TTA_TRANSFORMS if other != name)
        raise UserError(f"tta=scales: this backbone takes one image size only: use one of {others}")
    probe = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    views: list[View] = [lambda images: images]
    seen = [probe]
    for transform in ttach.Compose(TTA_TRANSFORMS[name](image_size)):
        image = transform.augment_image(probe)
        if not any(image.shape == other.shape and torch.equal(image, other) for other in seen):
            views.append(transform.augment_image)
            seen.append(image)
    return views
