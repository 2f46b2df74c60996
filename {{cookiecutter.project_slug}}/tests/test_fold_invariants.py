"""Folds of many random tables: what must hold for every one of them, and on every version of scikit-learn."""

import csv
import hashlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reliability import count

from kfold.config import Competition
from kfold.data.assign import connect, make_folds
from kfold.data.targets import decode
from kfold.errors import UserError

FITTING = {"multiclass": "stratified", "binary": "stratified", "multilabel": "multilabel", "regression": "binned"}


def draw_labels(task, num_rows, generator):
    if task == "regression":
        return [f"{value:.2f}" for value in generator.lognormal(size=num_rows)]
    if task == "multilabel":
        shares = generator.dirichlet(np.ones(4)) * 1.5
        return ["|".join(name for name, share in zip("abcd", shares, strict=True) if generator.random() < share)
                for _ in range(num_rows)]  # fmt: skip
    num_classes = 2 if task == "binary" else int(generator.integers(2, 9))
    shares = generator.dirichlet(np.full(num_classes, generator.choice([0.5, 2, 20])))
    return [f"c{number}" for number in generator.choice(num_classes, num_rows, p=shares)]


def draw_groups(num_rows, generator):
    """Nobody's, about equally many rows each, or a few large ones beside many small ones."""
    kind = generator.choice(["none", "even", "skewed", "some"])
    if kind == "none":
        return [""] * num_rows
    if kind == "skewed":
        return [f"g{int(number)}" for number in generator.zipf(1.6, num_rows) % num_rows]
    groups = generator.integers(0, max(2, num_rows // 4), num_rows)
    return [f"g{number}" if kind == "even" or number % 2 else "" for number in groups]


def draw(seed):
    """A table, its copies and its facts; every choice follows from the seed."""
    generator = np.random.default_rng(seed)
    task = str(generator.choice(list(FITTING)))
    num_rows = int(generator.choice([20, 60, 150, 400]) * generator.uniform(0.8, 1.2))
    table = pd.DataFrame(
        {
            "image_id": [f"i{number:05d}" for number in generator.permutation(num_rows)],
            "label": draw_labels(task, num_rows, generator),
            "patient": draw_groups(num_rows, generator),
            "day": [str(day) for day in generator.integers(0, 40, num_rows)],
        },
        dtype=str,
    )
    copies = [f"k{name}" if name < num_rows // 20 else "" for name in generator.integers(0, num_rows, num_rows)]
    scheme = str(generator.choice(["auto", "auto", FITTING[task], "group", "random", "time"]))
    facts = Competition(
        project_name="x",
        task=task,
        target_columns=["label"],
        num_folds=int(generator.integers(2, 9)),
        fold_scheme=scheme,
        fold_seed=int(generator.integers(0, 100)),
        group_column="patient",
        time_column="day",
    )
    return table, np.array(copies, object), facts


def fold_of_rows(content, table):
    """The fold of each row of the table, (N,); each id must occur once."""
    rows = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    assert len(rows) == len(table)
    fold_of = {row["id"]: int(row["fold"]) for row in rows}
    assert set(fold_of) == set(table["image_id"])
    return np.array([fold_of[name] for name in table["image_id"]])


def num_cut(names, fold):
    """How many groups ("" is none) lie in several folds."""
    pairs = {(name, number) for name, number in zip(names, fold, strict=True) if name}
    return len(pairs) - len({name for name, _ in pairs})


def check_sizes(scheme, fold, units, num_folds):
    """The bounds that the schemes promise: one row (multilabel: two), or what belongs together (time: twice that)."""
    difference, largest = np.ptp(np.bincount(fold, minlength=num_folds)), np.bincount(units).max()
    allowed = {"time": 2 * largest, "multilabel": max(2, largest + 1)}.get(scheme, 1 if largest == 1 else largest + 1)
    assert difference <= allowed, (difference, allowed)


def check_shares(values, fold, units, num_folds):
    """Rows of a class in a fold are off by less than one; where rows belong together, by one more than lie together."""
    if values.shape[1] == 1:
        values = np.column_stack([values, 1 - values])
    per_unit, per_fold = np.zeros((units.max() + 1, values.shape[1])), np.zeros((num_folds, values.shape[1]))
    np.add.at(per_unit, units, values)
    np.add.at(per_fold, fold, values)
    together = per_unit.max(axis=0) if np.bincount(units).max() > 1 else -1e-9
    off = np.abs(per_fold - values.sum(axis=0) / num_folds).max(axis=0)
    assert (off <= 1 + together).all(), (off, together)


def rare_classes(targets, units, num_folds):
    """Names of the classes that lie in fewer units than there are folds."""
    classes = targets.values.argmax(axis=1) if targets.values.shape[1] > 1 else targets.values[:, 0].astype(int)
    return {
        name for number, name in enumerate(targets.labels) if 0 < len(set(units[classes == number])) < num_folds
    }  # fmt: skip


def check_refusal(error, scheme, targets, units, facts):
    """A table is refused for too few units, a class too rare (named), or times that cannot be cut; for nothing else."""
    named = set(re.findall(r"class '(.*?)' has", str(error)))
    if units.max() + 1 < facts.num_folds:
        assert f"has {units.max() + 1} rows or groups" in str(error)
    elif scheme == "stratified":
        assert named == rare_classes(targets, units, facts.num_folds) != set()
    else:
        assert scheme == "time"
        assert re.search(r"leaves fold \d without rows", str(error))
        assert np.bincount(units).max() > 1
    assert all(line.startswith("train.csv: ") for line in error.problems)


def test_folds_of_random_tables_keep_every_promise_or_name_the_class(figures):
    tries, tables, refused, with_groups = count(60, 1000), 0, 0, 0
    for seed in range(tries * 11 // 10):
        table, copies, facts = draw(seed)
        scheme = FITTING[facts.task] if facts.fold_scheme == "auto" else facts.fold_scheme
        if facts.task in ("binary", "multiclass") and table["label"].nunique() < 2:
            continue  # decode refuses it, which test_bad_tables.py covers
        tables += 1
        units, targets = connect([table["patient"].to_numpy(object), copies]), decode(table, facts)
        try:
            content = make_folds(table, targets, copies, facts)
        except UserError as error:
            check_refusal(error, scheme, targets, units, facts)
            refused += 1
            continue
        fold = fold_of_rows(content, table)
        assert set(fold) == set(range(facts.num_folds)), seed
        assert num_cut(table["patient"], fold) == num_cut(copies, fold) == 0, seed
        assert num_cut(units + 1, fold) == 0, seed
        check_sizes(scheme, fold, units, facts.num_folds)
        if scheme in ("stratified", "multilabel"):
            check_shares(targets.values, fold, units, facts.num_folds)
        order = np.random.default_rng(seed).permutation(len(table))
        shuffled = table.iloc[order].reset_index(drop=True)
        assert make_folds(shuffled, decode(shuffled, facts), copies[order], facts) == content, seed
        with_groups += bool((np.bincount(units) > 1).any())
    figures(f"{tables} random tables: {refused} refused by class or cause, the others keep every promise "
            f"({with_groups} of them with groups or copies)")  # fmt: skip
    assert tables >= tries
    assert 0 < refused < tries / 3
    assert with_groups > tries / 3


# Versions of libraries

SCRIPT = """
import hashlib, importlib.abc, sys
if BLOCKED:
    class Block(importlib.abc.MetaPathFinder):
        def find_spec(self, name, *_):
            if name.split(".")[0] in ("sklearn", "iterstrat"):
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Block())
sys.path[:0] = PATHS
from kfold.data.assign import make_folds
from kfold.data.targets import decode
from test_fold_invariants import draw
for seed in SEEDS:
    table, copies, facts = draw(seed)
    if BLOCKED and facts.task == "multilabel" and facts.fold_scheme in ("auto", "multilabel"):
        continue
    try:
        content = make_folds(table, decode(table, facts), copies, facts)
    except Exception as error:
        content = repr(error).encode()
    print(facts.task, facts.fold_scheme, hashlib.sha256(content).hexdigest())
if not BLOCKED:
    import sklearn
    print("sklearn", sklearn.__version__)
"""


def folds_of_process(seeds, blocked=False, path=""):
    """One line a seed: task, scheme and sha256 of folds.csv, made in a process of its own; then its scikit-learn."""
    root = Path(__file__).resolve().parents[1]
    paths = [str(root), str(root / "tests")]
    script = f"BLOCKED, SEEDS, PATHS = {blocked}, range({seeds}), {paths}\n" + SCRIPT
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_folds_need_no_scikit_learn_but_for_multilabel():
    lines, without = [], folds_of_process(20, blocked=True)
    for seed in range(20):
        table, copies, facts = draw(seed)
        if facts.task == "multilabel" and facts.fold_scheme in ("auto", "multilabel"):
            continue
        try:
            content = make_folds(table, decode(table, facts), copies, facts)
        except UserError as error:
            content = repr(error).encode()
        lines.append(f"{facts.task} {facts.fold_scheme} {hashlib.sha256(content).hexdigest()}")
    assert len(lines) >= 12
    assert without == lines


@pytest.mark.skipif(not os.environ.get("SKLEARN_161"), reason="SKLEARN_161 names no folder with scikit-learn 1.6.1")
def test_folds_are_the_same_bytes_with_scikit_learn_1_6_1_and_the_newest(figures):
    seeds = count(20, 200)
    *old, old_version = folds_of_process(seeds, path=os.environ["SKLEARN_161"])
    *new, new_version = folds_of_process(seeds)
    assert old_version == "sklearn 1.6.1" != new_version
    assert old == new
    kinds = {line.rpartition(" ")[0] for line in new}  # task and scheme; auto counts as one
    assert len(kinds) == 20 or seeds < 200
    versions = f"{old_version} and {new_version}"
    figures(f"{len(new)} tables, {len(kinds)} pairs of task and scheme: the same bytes of folds.csv with {versions}")
