"""Test-time augmentation (TTA): the views that a model looks at, from ttach; merged on probabilities.

ttach's own mergers are not used: on logits its gmean flips signs and its tsharpen gives NaN (ttach 0.0.3).
"""

from collections.abc import Callable

import torch
import ttach

from kfold.errors import UserError

View = Callable[[torch.Tensor], torch.Tensor]

TTA_TRANSFORMS = {
    "none": lambda: [],
    "hflip": lambda: [ttach.HorizontalFlip()],
    "flips": lambda: [ttach.HorizontalFlip(), ttach.VerticalFlip()],
    "d4": lambda: [ttach.HorizontalFlip(), ttach.VerticalFlip(), ttach.Rotate90([0, 90, 180, 270])],
    "scales": lambda: [ttach.Scale([0.85, 1, 1.15], interpolation="bilinear", align_corners=False)],
}


def make_views(name: str, image_size: int, fixed_size: bool = False) -> list[View]:
    """The distinct views called `name`, the unchanged image first; each maps (B, 3, S, S) float to (B, 3, S', S').

    Repeated views are dropped: flips x quarter turns make 16, of which 8 differ. Raises UserError for scales on a
    backbone of fixed input size.
    """
    if name == "scales" and fixed_size:
        raise UserError("tta=scales: this backbone takes one image size only: use none, hflip, flips or d4")
    probe = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    views: list[View] = [lambda images: images]
    seen = [probe]
    for transform in ttach.Compose(TTA_TRANSFORMS[name]()):
        image = transform.augment_image(probe)
        if not any(image.shape == other.shape and torch.equal(image, other) for other in seen):
            views.append(transform.augment_image)
            seen.append(image)
    return views
