"""Write a small real competition into data/: scikit-learn's 1,797 scanned digits.

    python demo_data.py

Reads competition.yaml; writes, without a network, data/: train.csv, test.csv, sample_submission.csv, the images as
32 x 32 PNG, and solution.csv (the hidden labels, for the demo's own score only). About one in five scans is a test
image. The targets follow the task: which digit (multiclass), is it 5 or more (binary), three attributes (multilabel),
or its value (regression).
"""

import argparse
import hashlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

import competition
from kfold.artifacts import Workspace
from kfold.config import Competition, load_competition
from kfold.data.targets import decode
from kfold.errors import UserError, run_stage
from kfold.files import atomic_write

ROOT = Path(__file__).resolve().parent
SIZE = 32  # pixels; the scans have 8
MARKER = ".demo"  # the folder may be written anew only where this file shows that the demo wrote it
ATTRIBUTES = {"even": (0, 2, 4, 6, 8), "prime": (2, 3, 5, 7), "round": (0, 6, 8, 9)}  # round: has a closed loop
WRITER_SCANS = 13  # consecutive scans that make a group, if the competition has groups


def main(root: Path = ROOT) -> None:
    """Write the demo's data folder. Raises UserError when the folder holds other files."""
    workspace = Workspace(root)
    facts = load_competition(workspace.competition_path)
    refuse_other_files(workspace.data_path(facts, "."))
    digits = load_digits()
    ids = [f"digit{number:04d}" for number in range(len(digits.target))]
    table = pd.DataFrame({facts.id_column: ids, **target_columns(digits.target, facts)})
    if facts.group_column:
        table[facts.group_column] = [f"writer{number // WRITER_SCANS:03d}" for number in range(len(ids))]
    if facts.time_column:
        table[facts.time_column] = [str(number) for number in range(len(ids))]
    is_test = np.array([hashlib.sha256(name.encode()).digest()[0] % 5 == 0 for name in ids])

    atomic_write(workspace.data_path(facts, MARKER), "written by demo_data.py, which may overwrite this folder\n")
    for name, scan, in_test in zip(ids, digits.images, is_test, strict=True):
        folder = workspace.data_path(facts, facts.test_images if in_test else facts.train_images)
        write_image(folder / f"{name}{facts.image_suffix}", scan)
    solution = table[is_test][[facts.id_column, *facts.target_columns]]
    tables = {
        facts.train_csv: table[~is_test],
        facts.test_csv: table[is_test].drop(columns=list(facts.target_columns)),
        facts.sample_submission_csv: sample_submission(table, solution, facts),
        "solution.csv": solution,
    }
    for name, rows in tables.items():
        atomic_write(workspace.data_path(facts, name), rows.to_csv(index=False, lineterminator="\n"))
    print(f"wrote {(~is_test).sum()} training and {is_test.sum()} test images to {workspace.data_path(facts, '.')}")


def refuse_other_files(folder: Path) -> None:
    if folder.is_dir() and not (folder / MARKER).exists():
        found = sorted(path.name for path in folder.iterdir() if path.name != ".gitkeep")
        if found:
            raise UserError(
                f"{folder}: holds files that are not the demo's ({', '.join(found[:3])}): move them away, "
                f"or set another data_dir in competition.yaml"
            )


def target_columns(digits: np.ndarray, facts: Competition) -> dict[str, list[str]]:
    """The text of train.csv's target columns for digits (N,)."""
    names = facts.target_columns
    if facts.task == "multilabel":
        flags = {name: np.isin(digits, members) for name, members in ATTRIBUTES.items()}
        if len(names) == len(flags):
            return {
                name: flag.astype(int).astype(str).tolist() for name, flag in zip(names, flags.values(), strict=True)
            }
        if len(names) > 1:
            raise UserError(f"competition.yaml: the demo has 3 labels: name 3 target_columns, or 1, not {len(names)}")
        cells = zip(*flags.values(), strict=True)
        return {names[0]: ["|".join(name for name, flag in zip(flags, row, strict=True) if flag) for row in cells]}
    values = digits >= 5 if facts.task == "binary" else digits
    return {name: values.astype(int).astype(str).tolist() for name in names}


def sample_submission(table: pd.DataFrame, solution: pd.DataFrame, facts: Competition) -> pd.DataFrame:
    """What Kaggle would hand out: the ids to predict with constant cells, in the columns that the metric takes."""
    targets = decode(table, facts)
    takes = competition.metric(facts).takes
    sample = solution[[facts.id_column]].copy()
    if takes == "labels" and facts.task != "regression":
        for name in facts.target_columns:
            sample[name] = solution[name].iloc[0]
    else:
        for name in targets.names:
            sample[name] = "0.5" if facts.task != "multiclass" else str(1 / len(targets.names))
    return sample


def write_image(path: Path, scan: np.ndarray) -> None:
    """Write 8 x 8 values of 0 to 16, enlarged."""
    pixels = np.round(scan * 255 / 16).astype(np.uint8)
    enlarged = cv2.resize(pixels, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", enlarged)[1].tobytes())


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run_stage(main)
