"""The usual notebook: OpenCV, albumentations up to a normalised tensor, PyTorch's DataLoader, a loop of Adam."""

import os

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A
import cv2
import pandas as pd
from albumentations.pytorch import ToTensorV2
from common import work
from loop import fit
from torch.utils.data import DataLoader, Dataset


class Photos(Dataset):
    def __init__(self, table: pd.DataFrame, size: int, is_training: bool):
        self.paths, self.labels = table["path"].tolist(), table["label"].tolist()
        augment = [
            A.RandomResizedCrop((size, size), scale=(0.7, 1.0), ratio=(1 / 1.15, 1.15)),
            A.HorizontalFlip(p=0.5),
            A.RandomBrightnessContrast(0.1, 0.1),
        ]
        self.transform = A.Compose([*(augment if is_training else [A.Resize(size, size)]), A.Normalize(), ToTensorV2()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int):
        image = cv2.cvtColor(cv2.imread(self.paths[row]), cv2.COLOR_BGR2RGB)
        return self.transform(image=image)["image"], self.labels[row]


def make_loader(table: pd.DataFrame, given, is_training: bool) -> DataLoader:
    return DataLoader(
        Photos(table, given.size, is_training), given.batch, shuffle=is_training, num_workers=given.workers,
        drop_last=is_training and len(table) >= given.batch,
    )  # fmt: skip


def train(table: pd.DataFrame, held_out: pd.DataFrame, given, clock) -> int:
    return fit(make_loader(table, given, True), make_loader(held_out, given, False), given, clock)


if __name__ == "__main__":
    work(__doc__, make_loader, train)
