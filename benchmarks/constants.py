"""The constants of docs/scaling.md: what an image, or a row, costs on this machine.

Command  python benchmarks/constants.py             or --rows 100000 --photos 100 for a quick look
Needs    on the disk: 0.4 GB

Seconds are those of the processor, so that others on the machine, and threads that take part, do not count; but of the
cache, which processes build together, by the clock. Medians of three rounds where that takes seconds.
"""

import argparse
import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from machine import describe_machine
from photos import write_photos
from project import BUILD, PACKAGE
from rows import figure

sys.path.insert(0, str(PACKAGE))

SIZE, ROUNDS = 224, 3  # pixels of a crop
NUM_CLASSES, NUM_RUNS = 10, 5


def main(num_rows: int, num_photos: int) -> None:
    print(f"{describe_machine()}\n\n| constant | value | unit |\n| --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        measure_images(Path(folder), num_photos)
        measure_rows(Path(folder), num_rows)
        measure_stack(num_rows // 20)


def say(name: str, value: float, unit: str) -> None:
    print(f"| {name} | {figure(value)} | {unit} |", flush=True)


def median_of(measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(ROUNDS))


def seconds_of(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    started = clock()
    work()
    return clock() - started


def measure_images(folder: Path, num_photos: int) -> None:
    """Decoding, and the cache as training builds it, of photographs of 500 x 375 pixels."""
    from kfold.data.augment import Augmentation, least_share
    from kfold.data.cache_build import fill
    from kfold.data.images import read_image
    from kfold.data.reduce import Rule, side_for

    photos = BUILD / f"photos500-{num_photos}"
    write_photos(photos, num_photos, 500, 375)
    paths = sorted(photos.glob("*.jpg"))
    say("a JPEG of 500 x 375", statistics.mean(path.stat().st_size for path in paths), "bytes")
    busy = median_of(lambda: seconds_of(lambda: [read_image(path) for path in paths]))
    say("decoded", len(paths) / busy, "images/s a core")
    side = side_for(SIZE, least_share(Augmentation()), SIZE)
    for form in ("raw", "jpeg"):
        places = iter(range(ROUNDS))
        entries: dict = {}

        def build(form: str = form, places=places, entries: dict = entries) -> None:
            target = folder / f"{form}{next(places)}"
            entries.update(fill(target, Rule(side, form), list(map(str, paths)), "cache", lambda: None))

        wall = median_of(lambda build=build: seconds_of(build, time.perf_counter))
        say(f"{form} cache built (side {side})", len(paths) / wall, "images/s of this machine")
        say(f"{form} cache", statistics.mean(entry.num_bytes for entry in entries.values()), "bytes an image")


def measure_rows(folder: Path, num_rows: int) -> None:
    """Tables, folds and prediction files."""
    import numpy as np

    from kfold.config import Competition
    from kfold.data.assign import make_folds
    from kfold.data.images import image_paths
    from kfold.data.tables import read_table
    from kfold.data.targets import decode
    from kfold.predictions import Predictions, ids_sha256, read_predictions, write_predictions

    ids = [f"image_{row:09d}" for row in range(num_rows)]
    lines = [f"{name},class{row % NUM_CLASSES}\n" for row, name in enumerate(ids)]
    (folder / "train.csv").write_text("image_id,label\n" + "".join(lines))
    facts = Competition(project_name="x", task="multiclass", target_columns=("label",), image_suffix=".jpg")
    million = num_rows / 1e6
    say(
        "a table read", seconds_of(lambda: read_table(folder / "train.csv", ["image_id"])) / million, "s a million rows"
    )
    table = read_table(folder / "train.csv", ["image_id", "label"])
    targets = decode(table, facts)
    nothing = np.full(num_rows, "", object)
    say("folds dealt", seconds_of(lambda: make_folds(table, targets, nothing, facts)) / million, "s a million rows")
    say("paths of ids", seconds_of(lambda: image_paths(folder, ids, ".jpg")) / million, "s a million rows")
    say("digest of ids", seconds_of(lambda: ids_sha256(ids)) / million, "s a million rows")
    values = np.random.default_rng(0).random((num_rows, NUM_CLASSES), np.float32)
    part = Predictions(
        np.array(ids, object), values, tuple(f"class{n}" for n in range(NUM_CLASSES)), {"fold_stamp": "f"}
    )
    path = folder / "test.parquet"
    say(
        "predictions written",
        num_rows / median_of(lambda: seconds_of(lambda: write_predictions(path, part))),
        "rows/s a core",
    )
    say(
        "predictions read",
        num_rows / median_of(lambda: seconds_of(lambda: read_predictions(path, "f", ids))),
        "rows/s a core",
    )
    say(f"a prediction of {NUM_CLASSES} classes", path.stat().st_size / num_rows, "bytes a row")
    content = path.read_bytes()
    say("sha256", len(content) / median_of(lambda: seconds_of(lambda: hashlib.sha256(content))) / 1e9, "GB/s a core")


def measure_stack(num_rows: int) -> None:
    """Nested blends of five synthetic runs, as stack.py fits them."""
    import numpy as np

    from kfold.ensemble.nested import METHODS, nested_predictions
    from kfold.ensemble.second_level import Rows
    from kfold.metrics import resolve_metric

    generator = np.random.default_rng(1)
    classes = generator.integers(0, NUM_CLASSES, num_rows)
    targets = np.eye(NUM_CLASSES, dtype=np.float32)[classes]
    logits = 2 * targets + generator.standard_normal((NUM_RUNS, num_rows, NUM_CLASSES)).astype(np.float32)
    runs = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    rows, metric = Rows(runs, np.arange(num_rows) % 5), resolve_metric("log_loss", "multiclass")
    for method in ("mean", "hill_climb", "log_linear_pool"):
        seconds = seconds_of(
            lambda method=method: nested_predictions(METHODS[method].fit, rows, targets, "multiclass", metric)
        )
        say(f"stack of {NUM_RUNS} runs, {method}", num_rows / seconds, f"rows/s at {num_rows:,} rows")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, default=1_000_000, help="of tables; stacks get a twentieth (default: 1 million)"
    )
    parser.add_argument("--photos", type=int, default=500, help="default: 500")
    given = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    main(given.rows, given.photos)
