"""Lightning's Trainer with torchvision's transforms, as its tutorials show."""

import lightning
import timm
import torch
import torchvision
from common import Clock, options, read_table
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2


class Photos(Dataset):
    def __init__(self, paths: list[str], labels: list[int], size: int):
        self.paths, self.labels = paths, labels
        self.transform = v2.Compose(
            [
                v2.PILToTensor(),
                v2.RandomResizedCrop(size, scale=(0.7, 1.0), ratio=(1 / 1.15, 1.15)),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(0.1, 0.1),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int):
        return self.transform(Image.open(self.paths[row]).convert("RGB")), self.labels[row]


class Classifier(lightning.LightningModule):
    def __init__(self, backbone: str, layout: torch.memory_format, clock: Clock):
        super().__init__()
        self.model = timm.create_model(backbone, pretrained=False, num_classes=10).to(memory_format=layout)
        self.layout, self.clock, self.count = layout, clock, 0

    def training_step(self, batch, _):
        images, targets = batch
        self.count += len(images)
        return torch.nn.functional.cross_entropy(self.model(images.to(memory_format=self.layout)), targets)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-4)

    def on_train_epoch_start(self) -> None:
        self.count = 0
        self.clock.start()

    def on_train_epoch_end(self) -> None:
        self.clock.stop(self.count)


def main() -> None:
    given = options(__doc__)
    clock = Clock()
    loader = DataLoader(
        Photos(*read_table(given.table), given.size), given.batch, shuffle=True, drop_last=True,
        num_workers=given.workers, persistent_workers=given.workers > 0, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    trainer = lightning.Trainer(
        max_epochs=given.epochs, precision="bf16-mixed" if given.matched else "32-true", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    layout = torch.channels_last if given.matched else torch.contiguous_format
    trainer.fit(Classifier(given.backbone, layout, clock), loader)
    clock.tell(lightning=lightning.__version__, torchvision=torchvision.__version__, torch=torch.__version__)


if __name__ == "__main__":
    main()
