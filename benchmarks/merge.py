"""Shards of test predictions joined to one file, beside a plain copy of the same rows: seconds and memory.

Command  python benchmarks/merge.py                 or --rows 1000000 --shards 16 --classes 10 --rounds 3
Needs    on the disk, for 10,000,000 rows of 10 classes: 1.3 GB

One fold: of five, predict.py --merge does one after the other. Ours hashes each shard as its manifest asks, compares
stamps and every id, looks for values that are not finite, and writes one row group at a time. The limit is pyarrow:
read all shards, concatenate, write. Each round and side is a process of its own. Memory is the process's own at its
peak; the ids, which predict.py holds anyway, are in it on both sides.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from project import BENCHMARKS, BUILD, PACKAGE, run
from rows import hand_over, make_row
from scale import Peak

BATCH = 128  # rows of a batch, which shards do not cut
STAMPS = {"fold_stamp": "f" * 64, "config_hash": "c" * 64, "weights_sha256": "w" * 64, "task": "multiclass",
          "weights": "last", "tta": "none", "versions": "{}"}  # fmt: skip


def main(num_rows: int, num_shards: int, num_classes: int, rounds: int) -> list[dict]:
    """Rows of seconds and of memory."""
    BUILD.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict]] = {"ours": [], "plain": []}
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        size = [folder, "--rows", num_rows, "--shards", num_shards, "--classes", num_classes]
        facts = json.loads(run(BENCHMARKS, "merge.py", "--write", *size).splitlines()[-1])
        print(f"  {facts}", flush=True)
        for _ in range(rounds):
            for side, of_rounds in found.items():
                of_rounds.append(json.loads(run(BENCHMARKS, "merge.py", f"--{side}", *size).splitlines()[-1]))
                print(f"  {side}: {of_rounds[-1]}", flush=True)
    what = f"{num_rows:,} rows of {num_classes} classes, {num_shards} shards, one fold"
    return [
        make_row(
            "8 merge", f"{what}: {title}", unit, {"ours": [one[key] for one in found["ours"]]},
            [one[key] for one in found["plain"]], **facts,
        )
        for key, title, unit in (("seconds", "checked and merged", "s"), ("memory", "memory of the process", "MB"))
    ]  # fmt: skip


# In processes of their own


def names_of(num_rows: int) -> list[str]:
    return [f"test_{row:09d}" for row in range(num_rows)]


def write_shards(folder: Path, num_rows: int, num_shards: int, num_classes: int) -> dict[str, float]:
    """Random probabilities as shards; how fast they were written, and bytes a row of the files."""
    import numpy as np

    from kfold.predictions import Predictions, write_predictions
    from kfold.shards import all_shards

    generator, seconds, columns = np.random.default_rng(0), 0.0, tuple(f"class{n}" for n in range(num_classes))
    for shard in all_shards(num_shards):
        rows = shard.rows(num_rows, BATCH)
        values = generator.random((rows.stop - rows.start, num_classes), np.float32)
        values /= values.sum(axis=1, keepdims=True)
        ids = np.array([f"test_{row:09d}" for row in range(rows.start, rows.stop)], object)
        part = Predictions(ids, values, columns, {**STAMPS, "shard": str(shard)})
        started = time.perf_counter()
        write_predictions(path_of(folder, shard), part)
        seconds += time.perf_counter() - started
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.parquet"))
    return {"bytes_a_row": round(num_bytes / num_rows, 1), "rows_written_a_second": round(num_rows / seconds)}


def path_of(folder: Path, shard: object) -> Path:
    return folder / f"{shard.number}-of-{shard.count}.parquet"


def merge_ours(folder: Path, num_rows: int, num_shards: int, num_classes: int) -> float:
    """Seconds."""
    import pyarrow as pa

    from kfold.files import file_sha256
    from kfold.merging import find_problems, write_merged
    from kfold.shards import all_shards

    ids = pa.array(names_of(num_rows), pa.string())
    started = time.perf_counter()
    paths = {shard: path_of(folder, shard) for shard in all_shards(num_shards)}
    for path in paths.values():
        file_sha256(path)
    if problems := find_problems(paths, ids, BATCH, STAMPS, tuple(f"class{n}" for n in range(num_classes))):
        raise SystemExit("\n".join(problems))
    write_merged(folder / "merged" / "ours.parquet", paths, STAMPS)
    return time.perf_counter() - started


def merge_plain(folder: Path, num_rows: int, num_shards: int, num_classes: int) -> float:
    """Seconds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from kfold.shards import all_shards

    ids = pa.array(names_of(num_rows), pa.string())
    started = time.perf_counter()
    (folder / "merged").mkdir(exist_ok=True)
    table = pa.concat_tables([pq.read_table(path_of(folder, shard)) for shard in all_shards(num_shards)])
    pq.write_table(table, folder / "merged" / "plain.parquet")
    seconds = time.perf_counter() - started
    if len(table) != len(ids):
        raise SystemExit("rows were lost")
    return seconds


def measure(merge, folder: Path, *size: int) -> dict[str, float]:
    with Peak() as peak:
        seconds = merge(folder, *size)
    return {"seconds": seconds, "memory": peak.megabytes}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="default: 10 million")
    parser.add_argument("--shards", type=int, default=16, help="default: 16")
    parser.add_argument("--classes", type=int, default=10, help="default: 10")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    for side in ("write", "ours", "plain"):
        parser.add_argument(f"--{side}", type=Path, help="a folder: only this, in this process")
    parser.add_argument("--json", default="", help="a file for the rows")
    given = parser.parse_args()
    size = given.rows, given.shards, given.classes
    if given.write or given.ours or given.plain:
        sys.path.insert(0, str(PACKAGE))
    if given.write:
        print(json.dumps(write_shards(given.write, *size)))
    elif given.ours:
        print(json.dumps(measure(merge_ours, given.ours, *size)))
    elif given.plain:
        print(json.dumps(measure(merge_plain, given.plain, *size)))
    else:
        hand_over(main(*size, given.rounds), given.json)
