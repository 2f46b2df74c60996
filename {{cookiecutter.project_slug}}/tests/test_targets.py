"""kfold/data/targets.py: what each task's columns become, and what they may not hold."""

import numpy as np
import pandas as pd
import pytest

from kfold.config import Competition
from kfold.data.targets import decode
from kfold.errors import UserError


def targets_of(task, *columns):
    """Decode columns of text; ids are r0, r1 ..., the columns t0, t1 ..."""
    names = [f"t{position}" for position in range(len(columns))]
    table = pd.DataFrame(dict(zip(names, columns, strict=True)), dtype=str)
    table.insert(0, "image_id", [f"r{row}" for row in range(len(table))])
    return decode(table, Competition(project_name="x", task=task, target_columns=names))


def problems_of(task, *columns):
    with pytest.raises(UserError) as caught:
        targets_of(task, *columns)
    return caught.value.problems


def test_multiclass_is_one_hot_and_na_is_a_class():
    targets = targets_of("multiclass", ["cat", "NA", "None", "null", "cat"])
    assert targets.names == targets.labels == ("NA", "None", "cat", "null")
    assert targets.values.dtype == np.float32
    assert targets.values.argmax(axis=1).tolist() == [2, 0, 1, 3, 2]
    assert (targets.values.sum(axis=1) == 1).all()


def test_classes_sort_as_integers_when_all_are_integers():
    assert targets_of("multiclass", ["10", "9", "-1"]).names == ("-1", "9", "10")
    assert targets_of("multiclass", ["10", "9", "b"]).names == ("10", "9", "b")


def test_binary_positive_class_is_the_last():
    targets = targets_of("binary", ["yes", "no", "yes"])
    assert targets.names == ("t0",)
    assert targets.labels == ("no", "yes")
    assert targets.values.tolist() == [[1], [0], [1]]


def test_multilabel_reads_one_hot_columns_and_both_separators():
    assert targets_of("multilabel", ["0", "1.0"], ["1", "0.0"]).values.tolist() == [[0, 1], [1, 0]]
    for cells in (["10 9", "", "9"], ["10|9", "", " 9 "]):
        targets = targets_of("multilabel", cells)
        assert targets.names == ("9", "10")
        assert targets.values.tolist() == [[1, 1], [0, 0], [1, 0]]
    assert targets_of("multilabel", ["hot dog|cat", "cat"]).names == ("cat", "hot dog")


def test_regression_keeps_numbers():
    targets = targets_of("regression", ["1e3", "-0.5"], ["1", "2"])
    assert targets.values.tolist() == [[1000, 1], [-0.5, 2]]
    assert targets.names == ("t0", "t1")


@pytest.mark.parametrize(
    ("task", "columns", "message"),
    [
        ("multiclass", [["cat", "", "dog"]], "t0: id 'r1' has no label"),
        ("multiclass", [["cat", "dog", "Cat"]], "t0: labels 'cat' (id 'r0', 1 row) and 'Cat' (id 'r2', 1 row) differ"),
        (
            "multiclass",
            [["cat", "dog ", "dog"]],
            "t0: labels 'dog ' (id 'r1', 1 row) and 'dog' (id 'r2', 1 row) differ",
        ),
        ("multiclass", [["cat", "cat"]], "all rows are of class 'cat'"),
        ("binary", [["a", "b", "c"]], "needs two classes, there are 3 ('a', 'b', 'c')"),
        ("binary", [["a", "a"]], "needs two classes, there are 1"),
        ("multilabel", [["0", "1"], ["2", "0"]], "t1: id 'r0': '2' is neither 0 nor 1"),
        ("multilabel", [["0", "1"], ["0", ""]], "t1: id 'r1': '' is neither 0 nor 1"),
        ("multilabel", [["", ""]], "no row has a label"),
        ("multilabel", [["a b", "B"]], "labels 'b' (id 'r0', 1 row) and 'B' (id 'r1', 1 row) differ"),
        ("regression", [["1", "nan"]], "t0: id 'r1': 'nan' is not a finite number"),
        ("regression", [["1", "inf"]], "t0: id 'r1': 'inf' is not a finite number"),
        ("regression", [["1", "1e39"]], "t0: id 'r1': '1e39' is not a finite number"),
        ("regression", [["1", "12,5"]], "t0: id 'r1': '12,5' is not a finite number"),
        ("regression", [["1", ""]], "t0: id 'r1': '' is not a finite number"),
    ],
)
def test_each_fault_names_the_id(task, columns, message):
    problems = problems_of(task, *columns)
    assert len(problems) == 1
    assert message in problems[0]


def test_all_faults_are_listed_at_once():
    assert len(problems_of("multiclass", ["cat", "", "CAT", "dog", "Dog", " "])) == 4
