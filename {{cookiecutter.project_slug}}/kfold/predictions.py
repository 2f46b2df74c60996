"""The one prediction file, the same for out-of-fold and test rows of every stage: Parquet with stamps, joined by id."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kfold.errors import UserError
from kfold.files import atomic_write

PREFIX = "p_"  # a prediction column is p_<class, label or value name>
ROW_GROUP = 2**20  # rows that the file holds, and a reader gets, in one piece


@dataclass(frozen=True)
class Predictions:
    """Rows of one prediction file.

    ids: (N,) text; fold: (N,) int or None for files without; values: (N, C) float32; names: C names (without `p_`);
    stamps: fold_stamp, config_hash, weights_sha256, task, versions and whatever the stage added, all text.
    """

    ids: np.ndarray
    values: np.ndarray
    names: tuple[str, ...]
    stamps: Mapping[str, str]
    fold: np.ndarray | None = None

    def aligned_to(self, ids: Sequence[str]) -> np.ndarray:
        """Values in the order of ids, (len(ids), C): joined by id, never by position."""
        return self.values[pd.Index(self.ids).get_indexer(pd.Index(ids))]


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Raises UserError for predictions that are not finite: no later stage could use them."""
    if num_broken := int((~np.isfinite(predictions.values).all(axis=1)).sum()):
        raise UserError(
            f"{path}: {num_broken} of {len(predictions.ids)} predictions would not be finite, the weights have grown "
            "out of bounds: train with a lower lr (train.py --find-lr), or clip_grad=1"
        )
    columns = {"id": pa.array(list(predictions.ids), pa.string())}
    if predictions.fold is not None:
        columns["fold"] = pa.array(predictions.fold, pa.int32())
    for position, name in enumerate(predictions.names):
        columns[PREFIX + name] = pa.array(predictions.values[:, position], pa.float32())
    table = pa.table(columns).replace_schema_metadata(metadata_of(predictions.stamps))
    atomic_write(path, lambda temporary: pq.write_table(table, temporary, row_group_size=ROW_GROUP))


def metadata_of(stamps: Mapping[str, str]) -> dict[str, str]:
    """The stamps as a Parquet file has them."""
    return {f"kfold.{key}": value for key, value in stamps.items()}


def stamps_of(schema: pa.Schema) -> dict[str, str]:
    metadata = schema.metadata or {}
    return {key.decode()[6:]: value.decode() for key, value in metadata.items() if key.startswith(b"kfold.")}


def read_predictions(path: Path, fold_stamp: str, expected_ids: Sequence[str] | None = None) -> Predictions:
    """Read a prediction file and refuse, by name, whatever cannot be trusted.

    Raises UserError on an unreadable file, a foreign fold stamp, doubled ids, non-finite values, and, when
    `expected_ids` is given, on missing and foreign ids.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: run predict.py for its run") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: damaged, cannot be read ({str(error).splitlines()[0]}): run predict.py again"
        ) from None
    stamps = stamps_of(table.schema)
    if stamps.get("fold_stamp") != fold_stamp:
        found = stamps.get("fold_stamp", "none")[:12]
        raise UserError(f"{path}: made with other folds (stamp {found}, folds.csv has {fold_stamp[:12]}): train again")
    names = tuple(name[len(PREFIX) :] for name in table.column_names if name.startswith(PREFIX))
    if not names or "id" not in table.column_names:
        raise UserError(f"{path}: not a prediction file (it needs id and {PREFIX}... columns): run its stage again")
    values = np.column_stack([table[PREFIX + name].to_numpy() for name in names]).astype(np.float32)
    ids = np.array(table["id"].to_pylist(), dtype=object)
    fold = table["fold"].to_numpy() if "fold" in table.column_names else None
    refuse_bad_rows(path, ids, values, expected_ids)
    return Predictions(ids, values, names, stamps, fold)


def refuse_bad_rows(path: Path, ids: np.ndarray, values: np.ndarray, expected_ids: Sequence[str] | None) -> None:
    index = pd.Index(ids)
    problems = []
    if index.has_duplicates:
        problems.append(f"{path}: id '{ids[index.duplicated()][0]}' occurs twice: run its stage again")
    broken = ~np.isfinite(values).all(axis=1)
    if broken.any():
        problems.append(f"{path}: id '{ids[broken][0]}' has a prediction that is not finite ({broken.sum()} rows)")
    if expected_ids is not None:
        expected = pd.Index(expected_ids)
        for kind, odd in (("missing", expected.difference(index)), ("foreign", index.difference(expected))):
            if len(odd):
                problems.append(f"{path}: {len(odd)} {kind} ids, the first is '{odd[0]}': run its stage again")
    if problems:
        raise UserError(problems)


def ids_sha256(ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()
