"""Whether cost grows with the images and memory does not: a cache is built and read once, for numbers of images.

Command  python benchmarks/scale.py              or --counts 1000 10000 100000
Needs    on the disk, for 100,000 images: 2.1 GB

Each number of images is a process of its own that builds a cache of all images and gets one epoch of batches of 64 from
it. The images are 200 photographs under many names (hard links): every name is decoded and kept for itself. In the
table the limit is the figure of the smallest number: 1 is a cost that grows exactly with the images, or a memory that
does not grow. Memory is the process's own, without the mapped file, whose pages the system takes back when it needs
them; its peak is looked for every 20 ms. The peak of all resident pages is among the facts.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

from photos import write_photos
from project import BENCHMARKS, BUILD, PACKAGE, run
from rows import hand_over, make_row

SIZE, BATCH, NUM_PHOTOS = 32, 64, 200  # pixels, images, photographs of 500 x 375


def main(counts: list[int], rounds: int) -> list[dict]:
    """For each number of images: seconds per 1,000 to build and to read, and memory."""
    found: dict[int, list[dict]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            found[count].append(json.loads(run(BENCHMARKS, "scale.py", "--one", count).splitlines()[-1]))
            print(f"  {count:,} images: {found[count][-1]}", flush=True)
    rows = []
    for key, title, unit in (
        ("build", "cache built", "s/1000 images"),
        ("epoch", "an epoch read from the cache", "s/1000 images"),
        ("memory", "memory of the process", "MB"),
    ):
        figures = {count: [one[key] for one in of_rounds] for count, of_rounds in found.items()}
        for count in counts:
            resident = [one["resident"] for one in found[count]]
            what = f"{title}, {count:,} images of 500x375 to {SIZE} px"
            limit = figures[counts[0]] if count != counts[0] else ()
            rows.append(make_row("7 scale", what, unit, {"ours": figures[count]}, limit, resident_MB=resident))
    return rows


def measure(count: int) -> dict[str, float]:
    """build and epoch: seconds per 1,000 images; memory and resident: MB at the peak."""
    sys.path.insert(0, str(PACKAGE))
    import numpy as np

    from kfold.data.augment import Augmentation, least_share, train_transform
    from kfold.data.cache import Pixels
    from kfold.data.cache_build import fill
    from kfold.data.loader import EpochOrder, Images, ThreadLoader, read_batches
    from kfold.data.reduce import Rule, side_for
    from kfold.data.scan import num_cores

    photos = BUILD / f"photos500-{NUM_PHOTOS}"
    write_photos(photos, NUM_PHOTOS, 500, 375)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder, Peak() as peak:
        paths = link(sorted(photos.glob("*.jpg")), Path(folder) / "images", count)
        augmentation = Augmentation(hflip=True)
        rule = Rule(side_for(SIZE, least_share(augmentation), SIZE), "raw")
        started = time.perf_counter()
        entries = fill(Path(folder) / "cache", rule, paths, "cache", lambda: None)
        build = time.perf_counter() - started
        pixels = Pixels(rule, Path(folder) / "cache", entries)
        images = Images(
            paths, np.zeros((count, 1)), train_transform(augmentation, SIZE), SIZE, read=pixels.reader(paths)
        )
        loader = ThreadLoader(images, EpochOrder(count, BATCH, True), num_cores(), pin_memory=False)
        started = time.perf_counter()
        num_images = sum(len(batch.images) for batch in read_batches(loader))
        epoch = time.perf_counter() - started
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return {
        "build": 1000 * build / count,
        "epoch": 1000 * epoch / num_images,
        "memory": peak.megabytes or resident,
        "resident": resident,
    }


def link(photos: list[Path], folder: Path, count: int) -> list[str]:
    folder.mkdir()
    paths = [str(folder / f"{number:07d}.jpg") for number in range(count)]
    for number, path in enumerate(paths):
        os.link(photos[number % len(photos)], path)
    return paths


class Peak:
    """The most memory (MB) that this process has for itself while it is open; 0 where the system does not tell."""

    def __init__(self, status: Path = Path("/proc/self/status")):
        self.status, self.megabytes, self.is_over = status, 0.0, threading.Event()
        self.watcher = threading.Thread(target=self.watch, daemon=True)

    def __enter__(self) -> "Peak":
        self.watcher.start()
        return self

    def __exit__(self, *_) -> None:
        self.is_over.set()
        self.watcher.join()

    def watch(self) -> None:
        while self.status.exists():
            lines = [line for line in self.status.read_text().splitlines() if line.startswith("RssAnon")]
            self.megabytes = max(self.megabytes, float(lines[0].split()[1]) / 1e3)
            if self.is_over.wait(0.02):
                return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000], help="images (default: 1000 10000)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--one", type=int, default=0, help="measure one number of images in this process")
    parser.add_argument("--json", default="", help="a file for the rows")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one)))
    else:
        hand_over(main(given.counts, given.rounds), given.json)
