"""Lightning's Trainer with torchvision's transforms, as its tutorials show: persistent workers, pinned memory."""

from collections.abc import Iterator

import lightning
import pandas as pd
import timm
import torch
from common import Clock, Device, work
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2


class Photos(Dataset):
    def __init__(self, table: pd.DataFrame, size: int, is_training: bool):
        self.paths, self.labels = table["path"].tolist(), table["label"].tolist()
        augment = [
            v2.RandomResizedCrop(size, scale=(0.7, 1.0), ratio=(1 / 1.15, 1.15)),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.1, 0.1),
        ]
        self.transform = v2.Compose(
            [
                v2.PILToTensor(),
                *(augment if is_training else [v2.Resize((size, size))]),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int):
        return self.transform(Image.open(self.paths[row]).convert("RGB")), self.labels[row]


class Classifier(lightning.LightningModule):
    def __init__(self, given, clock: Clock):
        super().__init__()
        layout = torch.channels_last if given.matched else torch.contiguous_format
        self.model = timm.create_model(given.backbone, pretrained=False, num_classes=10).to(memory_format=layout)
        self.layout, self.clock, self.count, self.right = layout, clock, 0, 0

    def training_step(self, batch, _):
        images, targets = batch
        self.count += len(images)
        return torch.nn.functional.cross_entropy(self.model(images.to(memory_format=self.layout)), targets)

    def on_train_epoch_end(self) -> None:
        self.clock.stop(self.count)
        self.count = 0

    def on_validation_epoch_start(self) -> None:
        self.right = 0

    def validation_step(self, batch, _):
        images, targets = batch
        self.right += int((self.model(images.to(memory_format=self.layout)).argmax(1) == targets).sum())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-4)


class Paced:
    """Batches whose epoch starts with the first one that is asked for, which Lightning does before any of its hooks."""

    def __init__(self, batches: DataLoader, clock: Clock):
        self.batches, self.clock = batches, clock

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator:
        self.clock.start()
        yield from self.batches


def make_loader(table: pd.DataFrame, given, is_training: bool) -> DataLoader:
    return DataLoader(
        Photos(table, given.size, is_training), given.batch, shuffle=is_training, drop_last=is_training,
        num_workers=given.workers, persistent_workers=given.workers > 0, pin_memory=Device.type == "cuda",
    )  # fmt: skip


def train(table: pd.DataFrame, held_out: pd.DataFrame, given, clock) -> int:
    trainer = lightning.Trainer(
        max_epochs=given.epochs, precision="bf16-mixed" if given.matched else "32-true", logger=False, devices=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    model = Classifier(given, clock)
    held_out_batches = make_loader(held_out, given, False) if len(held_out) else None
    trainer.fit(model, Paced(make_loader(table, given, True), clock), held_out_batches)
    return model.right


if __name__ == "__main__":
    work(__doc__, make_loader, train)
