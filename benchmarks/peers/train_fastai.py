"""fastai's vision learner: images resized as items, cropped, flipped and jittered as batches, one cycle of Adam."""

from pathlib import Path

import fastai
import pandas as pd
import torch
from common import Clock, options
from fastai.vision.all import (
    Callback,
    ImageDataLoaders,
    MixedPrecision,
    RandomResizedCrop,
    aug_transforms,
    vision_learner,
)


class Timer(Callback):
    def __init__(self, clock: Clock):
        self.clock = clock

    def before_train(self) -> None:
        self.count = 0
        self.clock.start()

    def after_batch(self) -> None:
        if self.training:
            self.count += len(self.xb[0])

    def after_train(self) -> None:
        self.clock.stop(self.count)


class Autocast(MixedPrecision):
    """fastai's mixed precision with bfloat16, which needs no scaler and works on a CPU."""

    def before_batch(self) -> None:
        self.context = torch.autocast(self.dls.device.type, torch.bfloat16)
        self.context.__enter__()

    def after_pred(self) -> None:
        self.learn.pred = self.pred.float()

    def after_loss(self) -> None:
        self.context.__exit__(None, None, None)

    def before_fit(self) -> None: ...
    def before_backward(self) -> None: ...
    def before_step(self) -> None: ...
    def after_step(self) -> None: ...
    def after_fit(self) -> None: ...


def main() -> None:
    given = options(__doc__)
    clock = Clock()
    table = pd.read_csv(given.table)
    loaders = ImageDataLoaders.from_df(
        table, Path(given.table).parent, fn_col="file", label_col="label", valid_pct=0.0, bs=given.batch,
        item_tfms=RandomResizedCrop(given.size, min_scale=0.7), num_workers=given.workers,
        batch_tfms=aug_transforms(size=given.size, max_rotate=0, max_zoom=1, max_warp=0, max_lighting=0.1),
    )  # fmt: skip
    learner = vision_learner(loaders, given.backbone, pretrained=False, normalize=True, n_out=10)
    learner.unfreeze()
    learner.add_cb(Timer(clock))
    if given.matched:
        learner.model.to(memory_format=torch.channels_last)
        learner.add_cb(Autocast())
    learner.recorder.train_metrics = False
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(given.epochs, 3e-4)
    clock.tell(fastai=fastai.__version__, torch=torch.__version__)


if __name__ == "__main__":
    main()
