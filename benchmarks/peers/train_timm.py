"""timm's loader and the loop of its train.py: random resized crop, flip and colour jitter, AdamW there, Adam here."""

import pandas as pd
from common import Device, work
from loop import fit
from PIL import Image
from timm.data import create_loader
from torch.utils.data import DataLoader, Dataset


class Photos(Dataset):
    def __init__(self, table: pd.DataFrame):
        self.paths, self.labels, self.transform = table["path"].tolist(), table["label"].tolist(), None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int):
        image = Image.open(self.paths[row]).convert("RGB")
        return self.transform(image), self.labels[row]


def make_loader(table: pd.DataFrame, given, is_training: bool) -> DataLoader:
    return create_loader(
        Photos(table), (3, given.size, given.size), given.batch, is_training=is_training, scale=(0.7, 1.0),
        ratio=(1 / 1.15, 1.15), num_workers=given.workers, device=Device, persistent_workers=given.workers > 0,
        use_prefetcher=Device.type == "cuda",
    )  # fmt: skip


def train(table: pd.DataFrame, held_out: pd.DataFrame, given, clock) -> int:
    held_out_batches = make_loader(held_out, given, False) if len(held_out) else []
    return fit(make_loader(table, given, True), held_out_batches, given, clock)


if __name__ == "__main__":
    work(__doc__, make_loader, train)
