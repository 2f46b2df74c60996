"""The limit of a training's speed: its steps on one batch of noise that lies on the device, computed as a run chose.

    python benchmarks/limit.py PROJECT RUN backbone=resnet18 image_size=128 batch_size=64

Prints one line of JSON with images a second, in rounds of steps.
"""

import argparse
import json
from pathlib import Path

from step_time import Bench

from kfold.training.precision import choose_device
from kfold.training.speed import parse_speed

ROUNDS, STEPS = 5, 6


def main(project: Path, run: str, words: list[str]) -> None:
    manifest = json.loads((project / "runs" / run / "fold0" / "manifest.json").read_text())
    bench = Bench(words, choose_device(), parse_speed(manifest["speed"]))
    num_images = STEPS * len(bench.batch.targets)
    print(json.dumps({"images_per_second": [num_images / bench.seconds(STEPS) for _ in range(ROUNDS)]}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("run")
    parser.add_argument("words", nargs="+", metavar="key=value")
    given = parser.parse_args()
    main(given.project, given.run, given.words)
