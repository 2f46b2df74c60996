"""A million rows: the checks of the tables and the folds stay within seconds and memory, and so do their messages.

Times are seconds of the processor, so that others on the machine do not count; memory is that of a process of its own.
Both are asserted in the full form only.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reliability import FULL, count

from kfold.config import Competition
from kfold.data.assign import make_folds
from kfold.data.folds import read_folds
from kfold.data.tables import read_table
from kfold.data.targets import decode
from kfold.errors import UserError

CHECK_SECONDS, CHECK_GIGABYTES, FOLD_SECONDS = 10, 1.5, 8
ROOT = Path(__file__).resolve().parents[1]
LABELS = {
    "multiclass": lambda number: f"class {number % 20}",
    "binary": lambda number: f"{number % 7 // 6}",
    "regression": lambda number: f"{number * 7919 % 10007 / 100}",
}

SCRIPT = """
import json, resource, sys, time
from pathlib import Path
sys.path.insert(0, ROOT)
import numpy as np
from kfold.artifacts import Workspace
from kfold.config import Competition
from kfold.data.assign import make_folds
from kfold.data.check import Check, check_test_ids
from kfold.data.ids import odd_ids
from kfold.data.tables import read_table
from kfold.data.targets import decode

facts = Competition(**FACTS)
start = time.process_time()
table = read_table(Path(FOLDER, "train.csv"), ["image_id", "label", "patient"])
check = Check()
check.warnings += odd_ids(Path("train.csv"), table["image_id"].tolist())
test_ids = check_test_ids(check, Workspace(Path(FOLDER)), facts)
targets = decode(table, facts)
checked = time.process_time()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
content = make_folds(table, targets, np.full(len(table), "", object), facts)
print(json.dumps({
    "rows": len(table), "tests": len(test_ids), "errors": check.errors, "warnings": check.warnings,
    "seconds": checked - start, "bytes": peak, "fold_seconds": time.process_time() - checked,
    "sizes": np.bincount([int(line.split(b",", 2)[1]) for line in content.splitlines()[1:]]).tolist(),
}))
"""


def facts_of(task, **more):
    return {"project_name": "x", "task": task, "target_columns": ["label"], "data_dir": ".", **more}


def write_tables(folder, num_rows, label):
    numbers = np.random.default_rng(0).permutation(num_rows)
    rows = (f"image_{number:07d},{label(number)},p{number // 12}\n" for number in numbers)
    (folder / "train.csv").write_text("image_id,label,patient\n" + "".join(rows))
    tests = [f"test_{number:07d}" for number in range(num_rows // 10)]
    (folder / "test.csv").write_text("image_id\n" + "".join(f"{name}\n" for name in tests))
    (folder / "sample_submission.csv").write_text(
        "image_id,label\n" + "".join(f"{name},0\n" for name in reversed(tests))
    )


@pytest.mark.parametrize("group_column", ["", "patient"])
@pytest.mark.parametrize("task", LABELS)
def test_a_million_rows_are_checked_and_dealt_within_seconds(task, group_column, tmp_path, figures):
    if not FULL and (task, group_column) != ("multiclass", "patient"):
        pytest.skip("the other tasks run in the full form")
    num_rows = count(50_000, 1_000_000)
    write_tables(tmp_path, num_rows, LABELS[task])
    names = f"ROOT, FOLDER = {str(ROOT)!r}, {str(tmp_path)!r}\nFACTS = {facts_of(task, group_column=group_column)!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", names + SCRIPT], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["rows"], found["tests"]) == (num_rows, num_rows // 10)
    assert (found["errors"], found["warnings"]) == ([], [])
    assert len(found["sizes"]) == 5
    assert np.ptp(found["sizes"]) <= (24 if group_column else 1)  # two groups
    kind = f"{task} with groups" if group_column else task
    figures(
        f"{num_rows} rows, {kind}: read and checked in {found['seconds']:.1f} s, peak {found['bytes'] / 1e9:.2f} GB; "
        f"folds in {found['fold_seconds']:.1f} s"
    )
    if FULL:
        assert found["seconds"] < CHECK_SECONDS
        assert found["bytes"] < CHECK_GIGABYTES * 1e9
        assert found["fold_seconds"] < FOLD_SECONDS


def wrong_tables(num_rows):
    """name -> (train.csv with a fault in every row, task, part of the first line, number of lines)."""
    ids = [f"i{number:07d}" for number in range(num_rows)]
    header = "image_id,label,patient\n"
    return {
        "every id twice": (
            header + "".join(f"{name},{copy},p\n" for copy in "ab" for name in ids[: num_rows // 2]),
            "multiclass", f"'i0000000' is on rows 2, {num_rows // 2 + 2}, rows that contradict", 21,
        ),
        "one id for all": (header + "same,a,p\n" * num_rows, "multiclass", "on rows 2, 3, 4, 5, 6 ..., equal", 1),
        "no id": (header + ",a,p\n" * num_rows, "multiclass", "row 2: no image_id", 21),
        "all rows too long": (header + "i,a,p,q\n" * num_rows, "multiclass", "row 2: 4 cells", 21),
        "no label": (header + "".join(f"{name},,p\n" for name in ids), "multiclass", "id 'i0000000' has no label", 21),
        "text for numbers": (
            header + "".join(f"{name},high,p\n" for name in ids), "regression", "'high' is not a finite number", 21,
        ),
        "decimal commas": (
            header + "".join(f'{name},"1,5",p\n' for name in ids), "regression", "write 1.5, with a point", 21,
        ),
        "ids for labels": (
            header + "".join(f"{name},{name},p\n" for name in ids), "multiclass",
            f"{num_rows} classes in {num_rows} rows", 1,
        ),
    }  # fmt: skip


def test_a_fault_in_every_row_is_told_in_seconds_and_few_lines(tmp_path, figures):
    num_rows = count(32_000, 1_000_000)
    path, cases = tmp_path / "train.csv", wrong_tables(num_rows)
    for name, (text, task, expected, num_lines) in cases.items():
        path.write_text(text)
        facts = Competition(**facts_of(task))
        start = time.process_time()
        with pytest.raises(UserError) as caught:
            decode(read_table(path, ["image_id", "label"]), facts)
        seconds = time.process_time() - start
        assert expected in caught.value.problems[0], name
        assert len(caught.value.problems) == num_lines, (name, caught.value.problems[-2:])
        assert not FULL or seconds < CHECK_SECONDS, (name, seconds)
    figures(f"{len(cases)} tables of {num_rows} rows, each row wrong: told in at most 21 lines")


def test_folds_that_fit_no_row_are_told_in_seconds_and_few_lines(tmp_path):
    num_rows = count(20_000, 1_000_000)
    facts = Competition(**facts_of("multiclass"))
    write_tables(tmp_path, num_rows, LABELS["multiclass"])
    table = read_table(tmp_path / "train.csv", ["image_id"])
    content = make_folds(table, decode(table, facts), np.full(num_rows, "", object), facts)
    (tmp_path / "folds.csv").write_bytes(content)
    assert len(read_folds(tmp_path / "folds.csv", tmp_path / "train.csv", facts).ids) == num_rows
    write_tables(tmp_path, num_rows, lambda number: f"class {number % 20}b")
    with pytest.raises(UserError, match="label was 'class 0' when the folds were made") as caught:
        read_folds(tmp_path / "folds.csv", tmp_path / "train.csv", facts)
    assert caught.value.problems[-1] == f"... and {num_rows - 20} more of this kind"


def test_classes_stay_alike_where_groups_are_too_many_to_be_evened_out():
    num_rows = 60_000  # 12,000 groups x 31 columns are above MAX_EVENED: only the first placing counts
    generator = np.random.default_rng(0)
    group = np.arange(num_rows) // 5
    labels = (generator.integers(0, 30, group.max() + 1)[group] + generator.integers(0, 3, num_rows)) % 30
    table = pd.DataFrame({"image_id": np.arange(num_rows), "label": labels, "patient": group}).astype(str)
    facts = Competition(**facts_of("multiclass", group_column="patient"))
    content = make_folds(table, decode(table, facts), np.full(num_rows, "", object), facts)
    rows = pd.DataFrame([line.split(",") for line in content.decode().splitlines()[1:]])
    counts = pd.crosstab(rows[4], rows[1])
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 5
    assert np.ptp(counts.sum()) <= 10
