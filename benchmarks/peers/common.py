"""What the peers' scripts share: the options, the table of photographs, and how an epoch's time is told."""

import argparse
import json
import time
from pathlib import Path

import pandas as pd


def options(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("table", type=Path, help="CSV with file and label; the files lie beside it")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3, help="the first one warms up and does not count")
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    parser.add_argument(
        "--matched", action="store_true", help="bfloat16 and channels_last, as ours chooses; default: its own defaults"
    )
    return parser.parse_args()


def read_table(path: Path) -> tuple[list[str], list[int]]:
    """Paths of the files, and their labels."""
    table = pd.read_csv(path)
    return [str(path.parent / name) for name in table["file"]], table["label"].tolist()


class Clock:
    """Images a second of each epoch of training, without validation."""

    def __init__(self) -> None:
        self.speeds: list[float] = []

    def start(self) -> None:
        self.started = time.perf_counter()

    def stop(self, num_images: int) -> None:
        self.speeds.append(num_images / (time.perf_counter() - self.started))

    def tell(self, **versions: str) -> None:
        """The last line of the output, for the benchmark that started this script."""
        print(json.dumps({"images_per_second": self.speeds[1:], "versions": versions}))
