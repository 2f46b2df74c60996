"""timm's loader and the loop of its train.py: random resized crop, flip and colour jitter, AdamW there, Adam here."""

import timm
import torch
from common import Clock, options, read_table
from PIL import Image
from timm.data import create_loader
from torch.utils.data import Dataset


class Photos(Dataset):
    def __init__(self, paths: list[str], labels: list[int]):
        self.paths, self.labels, self.transform = paths, labels, None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int):
        image = Image.open(self.paths[row]).convert("RGB")
        return self.transform(image), self.labels[row]


def main() -> None:
    given = options(__doc__)
    paths, labels = read_table(given.table)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if given.matched else torch.float32
    layout = torch.channels_last if given.matched else torch.contiguous_format
    loader = create_loader(
        Photos(paths, labels), (3, given.size, given.size), given.batch, is_training=True, scale=(0.7, 1.0),
        ratio=(1 / 1.15, 1.15), num_workers=given.workers, device=device, persistent_workers=given.workers > 0,
        use_prefetcher=device.type == "cuda",
    )  # fmt: skip
    model = timm.create_model(given.backbone, pretrained=False, num_classes=10).to(device, memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), 3e-4)
    model.train()
    clock = Clock()
    for _ in range(given.epochs):
        clock.start()
        count = 0
        for images, targets in loader:
            images, targets = images.to(device, memory_format=layout), targets.to(device)
            with torch.autocast(device.type, dtype, enabled=given.matched):
                loss = torch.nn.functional.cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            count += len(images)
        if device.type == "cuda":
            torch.cuda.synchronize()
        clock.stop(count)
    clock.tell(timm=timm.__version__, torch=torch.__version__)


if __name__ == "__main__":
    main()
