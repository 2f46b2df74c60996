"""Columns for the LightGBM stacker: a row's predictions, its group, metadata, image statistics and embedding.

What the columns are computed from never includes a target, so that nothing here can leak one. Embeddings stay raw:
their PCA is fitted with the stacker, on its own rows (gbdt.py). To add a group of columns: one function, one line in
FEATURES, one test.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import entr, logit

from kfold.config import Task
from kfold.data.statistics import image_statistics
from kfold.data.tables import shorten
from kfold.ensemble.second_level import Rows
from kfold.errors import UserError

MAX_CELLS = 100  # runs x columns; more of them would make over 300 columns of small information each
SMALLEST = 1e-6  # probabilities are clipped to SMALLEST..1 - SMALLEST before their logits
NEARLY_ALL = 0.9  # share of different texts from which a column is a name, not a category
EMBEDDING = "embedding_"  # prefix of raw embedding columns


# Columns of the predictions, computed by the stacker itself


def oof_features(rows: Rows, task: Task) -> pd.DataFrame:
    """What the runs' predictions say of each row, (N, F) float64.

    Per run and column: the value, its logit, its rank (0..1) within the row's fold (folds are calibrated differently);
    per run: margin and entropy; over several runs: mean and standard deviation per column. Regression has no logits,
    margins and entropies. More than MAX_CELLS runs x columns: only the means, margins and entropies.
    """
    num_runs, _, num_columns = rows.predictions.shape
    is_wide = num_runs * num_columns > MAX_CELLS
    parts: dict[str, np.ndarray] = {}
    for run, values in enumerate(rows.predictions.astype(np.float64)):
        if not is_wide:
            for kind, cells in cell_features(values, rows.fold, task).items():
                parts |= {f"run{run} column{column} {kind}": cells[:, column] for column in range(num_columns)}
        if task != "regression":
            parts |= {f"run{run} margin": margin(values, task), f"run{run} entropy": entropy(values, task)}
    if num_runs > 1 or is_wide:
        across = {"mean": rows.predictions.mean(axis=0, dtype=np.float64)}
        if not is_wide:
            across["deviation"] = rows.predictions.std(axis=0, dtype=np.float64)
        for kind, cells in across.items():
            parts |= {f"runs column{column} {kind}": cells[:, column] for column in range(num_columns)}
    return pd.DataFrame(parts)


def cell_features(values: np.ndarray, fold: np.ndarray, task: Task) -> dict[str, np.ndarray]:
    """Arrays (N, C) by kind, of one run's predictions (N, C)."""
    kinds = {"value": values, "rank": rank_within(values, fold)}
    if task != "regression":
        kinds["logit"] = logit(np.clip(values, SMALLEST, 1 - SMALLEST))
    return kinds


def rank_within(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Ranks (N, C) of each column among the rows of the same label, 0 (least) to 1; ties share their mean rank.

    The only row of a label has 0.5.
    """
    grouped = pd.DataFrame(values).groupby(np.asarray(labels))
    others = grouped[0].transform("size").to_numpy()[:, None] - 1
    return np.where(others == 0, 0.5, (grouped.rank().to_numpy() - 1) / np.maximum(others, 1))


def margin(values: np.ndarray, task: Task) -> np.ndarray:
    """How sure each row is, (N,) 0..1: the best probability minus the second; else |2p - 1|, mean over labels."""
    if task == "multiclass":
        second, best = np.partition(values, -2, axis=1)[:, -2:].T
        return best - second
    return np.abs(2 * values - 1).mean(axis=1)


def entropy(values: np.ndarray, task: Task) -> np.ndarray:
    """Entropy of each row in nats, (N,); of yes and no, mean over labels, where columns are no classes."""
    if task == "multiclass":
        return entr(values).sum(axis=1)
    return (entr(values) + entr(1 - values)).mean(axis=1)


def readable_name(feature: str, runs: Sequence[str], columns: Sequence[str]) -> str:
    """`run0 column2 logit` -> `baseline cat logit`, by the names of the runs and prediction columns."""
    feature = re.sub(r"^run(\d+) ", lambda found: f"{runs[int(found[1])]} ", feature)
    pattern = r"^(.* |group_)column(\d+) (?=(value|rank|logit|mean|max|deviation)$)"
    return re.sub(pattern, lambda found: f"{found[1]}{columns[int(found[2])]} ", feature)


# Columns of everything else, computed by the caller before the folds are split


@dataclass(frozen=True)
class Source:
    """What the training rows, or the test rows, offer; None or empty: not there.

    ids: (N,) text. predictions: (M, N, C), out of fold for training rows. groups: (N,) text, "" = on its own.
    table: N rows of text; not_metadata: its columns that are no features, such as id, targets and group (those of the
    training rows count). image_paths: N. embeddings: (N, D), from a model that never saw the labels (embed.py); a NaN
    row is an unreadable image.
    """

    ids: np.ndarray
    predictions: np.ndarray
    groups: np.ndarray | None = None
    table: pd.DataFrame | None = None
    not_metadata: Sequence[str] = ()
    image_paths: Sequence[Path] = ()
    embeddings: np.ndarray | None = None


Pair = tuple[pd.DataFrame, pd.DataFrame, list[str]]  # columns of the training rows, of the test rows, notes


def make_features(names: Sequence[str], train: Source, test: Source) -> Pair:
    """The groups of columns of FEATURES that are named, side by side; both frames have the same columns.

    The notes say which columns were left out and why. Raises UserError for an unknown name.
    """
    unknown = [name for name in names if name not in FEATURES]
    if unknown:
        raise UserError(f"feature group '{unknown[0]}' is unknown: choose of {', '.join(FEATURES)}")
    made = [FEATURES[name](train, test) for name in names]
    empty = pd.DataFrame(index=range(len(train.ids))), pd.DataFrame(index=range(len(test.ids)))
    train_frames, test_frames = ([empty[side], *(pair[side] for pair in made)] for side in (0, 1))
    notes = [note for *_, found in made for note in found]
    return pd.concat(train_frames, axis=1), pd.concat(test_frames, axis=1), notes


def absent(train: Source, test: Source, note: str) -> Pair:
    return pd.DataFrame(index=range(len(train.ids))), pd.DataFrame(index=range(len(test.ids))), [note]


def groups_of_both(train: Source, test: Source) -> Pair:
    if train.groups is None or test.groups is None:
        return absent(train, test, "no group features: train.csv and test.csv do not both have the group column")
    return *(group_features(side.predictions.mean(axis=0), side.groups) for side in (train, test)), []


def group_features(predictions: np.ndarray, groups: np.ndarray) -> pd.DataFrame:
    """Per column of (N, C): mean and max of the row's group, the row's rank in it (0..1); and the group's size.

    Out of fold this is honest only where a whole group lies in one fold, as folds.csv guarantees. Over MAX_CELLS
    columns: only means and size.
    """
    names = [group or ("", row) for row, group in enumerate(groups)]
    codes = pd.factorize(pd.Series(names, dtype=object))[0]
    grouped = pd.DataFrame(predictions.astype(np.float64)).groupby(codes)
    kinds = {"mean": grouped.transform("mean").to_numpy()}
    if predictions.shape[1] <= MAX_CELLS:
        kinds |= {"max": grouped.transform("max").to_numpy(), "rank": rank_within(predictions, codes)}
    columns = {
        f"group_column{column} {kind}": cells[:, column]
        for kind, cells in kinds.items()
        for column in range(cells.shape[1])
    }
    return pd.DataFrame(columns | {"group_size": np.bincount(codes)[codes]})


def metadata_of_both(train: Source, test: Source) -> Pair:
    if train.table is None or test.table is None:
        return absent(train, test, "no metadata features: train.csv and test.csv are not both there")
    return metadata_features(train.table, test.table, train.not_metadata)


def metadata_features(train: pd.DataFrame, test: pd.DataFrame, exclude: Sequence[str]) -> Pair:
    """Columns `metadata_<name>` of two tables of text: those that both have, but `exclude` (id, targets, group).

    Numbers where every cell that is not blank is a finite number in both, else categories of both tables together.
    A blank cell is missing. Texts that nearly all differ are left out, with a note.
    """
    frames: tuple[dict, dict] = ({}, {})
    notes = []
    for name in [name for name in train.columns if name in test.columns and name not in exclude]:
        cells = [table[name].astype(object).str.strip() for table in (train, test)]
        columns = [read_numbers(texts) for texts in cells]
        if any(column is None for column in columns):
            filled = cells[0][cells[0] != ""]
            if len(filled) and filled.nunique() > NEARLY_ALL * len(filled):
                notes.append(f"metadata '{name}' left out: {filled.nunique()} different texts in {len(filled)} rows")
                continue
            categories = sorted({text for texts in cells for text in texts if text})
            codes = [pd.Index(categories, dtype=object).get_indexer(texts) for texts in cells]  # -1: blank
            columns = [pd.Categorical.from_codes(found, categories) for found in codes]
        for frame, column in zip(frames, columns, strict=True):
            frame[f"metadata_{name}"] = column
    return pd.DataFrame(frames[0], index=range(len(train))), pd.DataFrame(frames[1], index=range(len(test))), notes


def read_numbers(texts: pd.Series) -> np.ndarray | None:
    """Numbers (N,) with NaN for blanks, or None where a cell is no finite number."""
    numbers = pd.to_numeric(texts.where(texts != "", None), errors="coerce").to_numpy(np.float64)
    return numbers if np.isfinite(numbers[(texts != "").to_numpy()]).all() else None


def images_of_both(train: Source, test: Source) -> Pair:
    found = [
        image_statistics(side.image_paths, f"{title} image statistics").add_prefix("image_")
        for title, side in (("train", train), ("test", test))
    ]
    return *found, []


def embeddings_of_both(train: Source, test: Source) -> Pair:
    if train.embeddings is None or test.embeddings is None:
        return absent(train, test, "no embedding features: run python embed.py first")
    return *(pd.DataFrame(side.embeddings).add_prefix(EMBEDDING) for side in (train, test)), []


def read_embeddings(path: Path, ids: Sequence[str]) -> np.ndarray:
    """The embeddings of `ids` in their order, (N, D) float32. Raises UserError naming an id that is not there."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "damaged"
        raise UserError(f"{path}: {reason}: run python embed.py --overwrite") from None
    rows = pd.Index(table["id"].to_pylist()).get_indexer(pd.Index(ids))
    missing = [f"{path}: id '{ids[place]}' is not in it: run embed.py again" for place in np.flatnonzero(rows < 0)]
    if missing:
        raise UserError(shorten(missing))
    return np.column_stack([table[name].to_numpy() for name in table.column_names if name != "id"])[rows]


FEATURES: dict[str, Callable[[Source, Source], Pair]] = {
    "group": groups_of_both,
    "metadata": metadata_of_both,
    "images": images_of_both,
    "embeddings": embeddings_of_both,
}
