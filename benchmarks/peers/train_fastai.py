"""fastai's vision learner: images resized as items, cropped, flipped and jittered as batches, one cycle of Adam."""

import pandas as pd
import torch
from common import work
from fastai.vision.all import (
    Callback,
    ImageDataLoaders,
    MixedPrecision,
    RandomResizedCrop,
    accuracy,
    aug_transforms,
    vision_learner,
)


class Timer(Callback):
    def __init__(self, clock):
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


def make_loaders(table: pd.DataFrame, held_out: pd.DataFrame, given) -> ImageDataLoaders:
    both = pd.concat([table.assign(is_valid=False), held_out.assign(is_valid=True)], ignore_index=True)
    return ImageDataLoaders.from_df(
        both, given.table.parent, fn_col="file", label_col="label", valid_col="is_valid", bs=given.batch,
        item_tfms=RandomResizedCrop(given.size, min_scale=0.7), num_workers=given.workers,
        batch_tfms=aug_transforms(size=given.size, max_rotate=0, max_zoom=1, max_warp=0, max_lighting=0.1),
    )  # fmt: skip


def make_loader(table: pd.DataFrame, given, is_training: bool):
    return make_loaders(table, table[:0], given).train


def train(table: pd.DataFrame, held_out: pd.DataFrame, given, clock) -> int:
    loaders = make_loaders(table, held_out, given)
    learner = vision_learner(loaders, given.backbone, pretrained=False, normalize=True, n_out=10, metrics=accuracy)
    learner.unfreeze()
    learner.add_cb(Timer(clock))
    if given.matched:
        learner.model.to(memory_format=torch.channels_last)
        learner.add_cb(Autocast())
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(given.epochs, 3e-4)
    return round(learner.recorder.values[-1][-1] * len(held_out)) if len(held_out) else 0


if __name__ == "__main__":
    work(__doc__, make_loader, train)
