"""The table that is sent: its form follows the sample, and whatever could go wrong with it is named."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfold.data.tables import read_table
from kfold.data.targets import Targets
from kfold.errors import UserError
from kfold.metrics import Metric, resolve_metric
from kfold.submission import (
    Form,
    format_submission,
    make_form,
    match_columns,
    prediction_table,
    prior_submission,
    submission_ids,
)
from kfold.submission_check import check_submission, compare_with_sample, refuse_changed

IDS = ["007", "a", "b", "c", "d"]
CLASSES = ("cat", "dog", "owl")
ONE_HOT = Targets(np.eye(3, dtype=np.float32)[[0, 0, 1, 2]], CLASSES, CLASSES)
BINARY = Targets(np.array([[0], [1], [1]], np.float32), ("ill",), ("no", "yes"))
MULTILABEL = Targets(np.array([[1, 0, 1], [0, 0, 1], [0, 0, 0]], np.float32), CLASSES)
VALUES = Targets(np.array([[0.0, 3], [4, 5], [2, 9]], np.float32), ("height", "width"))
GRADES = Targets(np.array([[0], [4], [2]], np.float32), ("grade",))

FORMS = {  # content -> (targets, task, metric, the sample's value columns, a cell of the sample)
    "label": (ONE_HOT, "multiclass", "accuracy", ["label"], "cat"),
    "ranking": (ONE_HOT, "multiclass", "map_at_5", ["label"], "cat dog"),
    "class probabilities": (ONE_HOT, "multiclass", "log_loss", ["dog", "cat", "owl"], "0.3"),
    "binary label": (BINARY, "binary", "accuracy", ["target"], "no"),
    "binary probability": (BINARY, "binary", "roc_auc", ["target"], "0.5"),
    "binary two columns": (BINARY, "binary", "log_loss", ["yes", "no"], "0.5"),
    "flags": (MULTILABEL, "multilabel", "f1_samples", ["cat", "owl", "dog"], "0"),
    "probabilities": (MULTILABEL, "multilabel", "roc_auc", ["cat", "dog", "owl"], "0.5"),
    "label list": (MULTILABEL, "multilabel", "f1_samples", ["labels"], "cat|dog"),
    "values": (VALUES, "regression", "rmse", ["width", "height"], "0"),
    "grades": (GRADES, "regression", "quadratic_kappa", ["diagnosis"], "0"),
}


def make(kind: str, ids: list[str] = IDS, id_column: str = "image_id") -> tuple[Form, Targets, pd.DataFrame]:
    """The form of a kind of submission, its targets, and its sample."""
    targets, task, metric, columns, cell = FORMS[kind]
    sample = pd.DataFrame({id_column: ids, **dict.fromkeys(columns, cell)}, dtype=str)
    return make_form(sample, targets, task, resolve_metric(metric, task), id_column), targets, sample


def random_predictions(form: Form, targets: Targets, ids: list[str] = IDS, seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).random((len(ids), len(targets.names))).astype(np.float32)
    if form.task == "multiclass":
        values /= values.sum(axis=1, keepdims=True)
    return prediction_table(ids, values, targets.names)


def text(rows: list[list[str]], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns, dtype=str)


@pytest.mark.parametrize("kind", FORMS)
def test_a_formatted_submission_has_the_samples_header_and_no_error_and_reads_back_equal(kind, tmp_path):
    form, targets, sample = make(kind)
    table = format_submission(random_predictions(form, targets), form, IDS)
    assert list(table.columns) == list(sample.columns)
    assert check_submission(table, form, IDS) == ([], [])
    path = tmp_path / "submission.csv"
    table.to_csv(path, index=False, lineterminator="\n")
    assert check_submission(path, form, IDS) == ([], [])
    assert read_table(path, []).equals(table)


@pytest.mark.parametrize("kind", FORMS)
@given(
    ids=st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1),
        min_size=1,
        max_size=6,
        unique=True,
    ),  # fmt: skip
    share=st.integers(1, 3),
)
@settings(max_examples=15)
def test_the_prior_submission_always_passes_the_check(kind, ids, share):
    form, targets, _ = make(kind)
    targets = Targets(targets.values[:share], targets.names, targets.labels)
    errors, _ = check_submission(prior_submission(targets, form, ids), form, ids)
    assert errors == []


@pytest.mark.parametrize("kind", FORMS)
def test_rows_and_columns_are_joined_by_id_and_name_never_by_position(kind):
    form, targets, _ = make(kind)
    predictions = random_predictions(form, targets)
    shuffled = predictions.sample(frac=1, random_state=1)[predictions.columns[::-1]]
    assert format_submission(shuffled, form, IDS).equals(format_submission(predictions, form, IDS))


def test_multiclass_takes_the_most_probable_class():
    form, targets, _ = make("label")
    predictions = prediction_table(["a", "b"], np.array([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3]]), CLASSES)
    assert format_submission(predictions, form, ["b", "a"])["label"].tolist() == ["cat", "dog"]


def test_map_at_5_takes_the_best_five_in_order():
    names = tuple("uvwxyz")
    targets = Targets(np.eye(6, dtype=np.float32), names, names)
    sample = text([["a", "u v"]], ["id", "labels"])
    form = make_form(sample, targets, "multiclass", resolve_metric("map_at_5", "multiclass"), "id")
    predictions = prediction_table(["a"], np.array([[0.05, 0.3, 0.1, 0.2, 0.15, 0.2]]), names)
    assert format_submission(predictions, form, ["a"])["labels"].tolist() == ["v x z y w"]
    errors, _ = check_submission(text([["a", "u v w x y z"]], ["id", "labels"]), form, ["a"])
    assert errors == ["column 'labels': more than 5 labels in a cell: row 2 (id 'a'): 'u v w x y z'"]


def test_class_probabilities_go_under_their_own_name_and_sum_to_one():
    form, targets, _ = make("class probabilities")
    predictions = prediction_table(["a"], np.array([[1.0, 3.0, 0.0]]), CLASSES)
    assert format_submission(predictions, form, ["a"]).iloc[0].tolist() == ["a", "0.75", "0.25", "0.0"]


def test_binary_writes_the_text_of_train_csv_or_the_probability_as_the_metric_takes():
    predictions = prediction_table(["a", "b"], np.array([[0.5], [0.49]]), ("ill",))
    assert format_submission(predictions, make("binary label")[0], ["a", "b"])["target"].tolist() == ["yes", "no"]
    cells = format_submission(predictions, make("binary probability")[0], ["a", "b"])["target"].tolist()
    assert cells == ["0.5", "0.49"]
    both = format_submission(predictions, make("binary two columns")[0], ["b"])
    assert both[["yes", "no"]].iloc[0].astype(float).tolist() == pytest.approx([0.49, 0.51])


def test_a_label_list_is_never_blank():
    form, targets, _ = make("label list")
    predictions = prediction_table(["a", "b"], np.array([[0.1, 0.3, 0.2], [0.6, 0.2, 0.5]]), CLASSES)
    assert format_submission(predictions, form, ["a", "b"])["labels"].tolist() == ["dog", "cat|owl"]


def test_grades_are_whole_and_within_the_range_of_the_training_rows():
    form, targets, _ = make("grades")
    predictions = prediction_table(["a", "b", "c"], np.array([[-3.0], [1.6], [7.0]]), ("grade",))
    assert format_submission(predictions, form, ["a", "b", "c"])["diagnosis"].tolist() == ["0", "2", "4"]


def test_numbers_are_written_shortest_and_exactly():
    form, targets, _ = make("binary probability")
    values = np.array([[0.1], [1e-9], [1 / 3]], np.float32)
    cells = format_submission(prediction_table(["a", "b", "c"], values, ("ill",)), form, ["a", "b", "c"])["target"]
    assert cells.tolist()[0] == "0.1"
    assert (cells.astype(np.float32).to_numpy() == values[:, 0]).all()


def test_columns_may_carry_a_prefix():
    assert match_columns(["c1", "c10", "c0"], ["0", "1", "10"]) == ("1", "10", "0")
    assert match_columns(["b", "a"], ["a", "b"]) == ("b", "a")


def test_columns_that_do_not_fit_are_named():
    with pytest.raises(UserError, match="only in the sample: 'cow'; only in the targets: 'dog'"):
        match_columns(["cat", "cow"], ["cat", "dog"])


def test_a_class_with_a_space_is_refused_where_spaces_separate():
    names = ("big cat", "dog")
    targets = Targets(np.eye(2, dtype=np.float32), names, names)
    with pytest.raises(UserError, match="label 'big cat' holds ' '"):
        make_form(
            text([["a", "x"]], ["id", "y"]), targets, "multiclass", resolve_metric("map_at_5", "multiclass"), "id"
        )


def test_a_custom_metric_decides_by_what_it_takes():
    sample = text([["a", "0.5"]], ["id", "y"])
    metric = Metric("mine", lambda targets, predictions: 0.0, True, "labels")
    assert make_form(sample, BINARY, "binary", metric, "id").content == "label"


def test_rows_follow_the_sample_only_where_it_is_complete():
    assert submission_ids(["b", "a"], ["a", "b"]) == ["b", "a"]
    assert submission_ids(["b"], ["a", "b"]) == ["a", "b"]
    assert submission_ids(["b", "x"], ["a", "b"]) == ["a", "b"]


# The zoo: one corruption each; its line must name the row or the id


def change(table: pd.DataFrame, column: str, cell: str, row: int = 2) -> pd.DataFrame:
    table = table.copy()
    table.loc[row, column] = cell
    return table


ZOO = {
    # name: (kind, corruption of the table, what its line must hold)
    "id missing": ("label", lambda t: t.drop(index=2).reset_index(drop=True), "'b'"),
    "six ids missing name five": ("label", lambda t: t.iloc[:0], "'007'"),
    "foreign id": ("label", lambda t: change(t, "image_id", "zzz"), "row 4 (id 'zzz')"),
    "extra row": ("label", lambda t: pd.concat([t, t.iloc[:1].assign(image_id="x9")], ignore_index=True), "'x9'"),
    "id doubled": ("label", lambda t: pd.concat([t, t.iloc[:1]], ignore_index=True), "row 7 (id '007')"),
    "id doubled instead of another": ("label", lambda t: change(t, "image_id", "a"), "row 4 (id 'a')"),
    "id blank": ("label", lambda t: change(t, "image_id", ""), "row 4"),
    "id without its zeros": ("label", lambda t: change(t, "image_id", "7", 0), "row 2 (id '7')"),
    "id with a space": ("label", lambda t: change(t, "image_id", "b "), "row 4 (id 'b ')"),
    "id made a float": ("label", lambda t: change(t, "image_id", "7.0", 0), "'007'"),
    "label blank": ("label", lambda t: change(t, "label", ""), "row 4 (id 'b')"),
    "label unknown": ("label", lambda t: change(t, "label", "cow"), "row 4 (id 'b')"),
    "label in capitals": ("label", lambda t: change(t, "label", "Cat"), "did you mean 'cat'?"),
    "label with a space": ("label", lambda t: change(t, "label", "cat "), "row 4 (id 'b')"),
    "label is a class number": ("label", lambda t: change(t, "label", "1"), "row 4 (id 'b')"),
    "label nan": ("label", lambda t: change(t, "label", "nan"), "row 4 (id 'b')"),
    "probability where a label belongs": ("binary label", lambda t: change(t, "target", "0.7"), "row 4 (id 'b')"),
    "label where a probability belongs": ("binary probability", lambda t: change(t, "target", "yes"), "row 4 (id 'b')"),
    "probability blank": ("binary probability", lambda t: change(t, "target", ""), "blank cell: row 4 (id 'b')"),
    "probability NaN": ("binary probability", lambda t: change(t, "target", "NaN"), "row 4 (id 'b')"),
    "probability inf": ("binary probability", lambda t: change(t, "target", "inf"), "row 4 (id 'b')"),
    "probability -inf": ("binary probability", lambda t: change(t, "target", "-inf"), "row 4 (id 'b')"),
    "probability above 1": ("binary probability", lambda t: change(t, "target", "1.0001"), "row 4 (id 'b')"),
    "probability below 0": ("binary probability", lambda t: change(t, "target", "-0.01"), "row 4 (id 'b')"),
    "decimal comma": ("binary probability", lambda t: change(t, "target", "0,5"), "row 4 (id 'b')"),
    "percent sign": ("binary probability", lambda t: change(t, "target", "50%"), "row 4 (id 'b')"),
    "number with underscore": ("binary probability", lambda t: change(t, "target", "0_1"), "row 4 (id 'b')"),
    "number with a space": ("binary probability", lambda t: change(t, "target", " 0.5"), "row 4 (id 'b')"),
    "digits of another script": (
        "binary probability",
        lambda t: change(t, "target", "٠"),
        "not a finite number: row 4 (id 'b')",
    ),
    "list in a cell": ("binary probability", lambda t: change(t, "target", "[0.5]"), "row 4 (id 'b')"),
    "rows do not sum to 1": ("class probabilities", lambda t: change(t, "cat", "0.9999"), "row 4 (id 'b')"),
    "logits": ("class probabilities", lambda t: change(t, "cat", "3.2"), "row 4 (id 'b')"),
    "flag is a probability": ("flags", lambda t: change(t, "owl", "0.5"), "row 4 (id 'b')"),
    "flag is True": ("flags", lambda t: change(t, "owl", "True"), "row 4 (id 'b')"),
    "value too large": ("values", lambda t: change(t, "width", "1e999"), "row 4 (id 'b')"),
    "value is text": ("values", lambda t: change(t, "width", "12 cm"), "row 4 (id 'b')"),
    "grade with a fraction": ("grades", lambda t: change(t, "diagnosis", "2.5"), "row 4 (id 'b')"),
    "grade out of range": ("grades", lambda t: change(t, "diagnosis", "5"), "row 4 (id 'b')"),
    "six ranked labels": ("ranking", lambda t: change(t, "label", "cat dog owl cat dog owl"), "row 4 (id 'b')"),
    "ranked label twice": ("ranking", lambda t: change(t, "label", "cat cat"), "row 4 (id 'b')"),
    "ranked with commas": ("ranking", lambda t: change(t, "label", "cat,dog"), "row 4 (id 'b')"),
    "list with another separator": ("label list", lambda t: change(t, "labels", "cat dog"), "row 4 (id 'b')"),
    "list with an unknown label": ("label list", lambda t: change(t, "labels", "cat|cow"), "'cow' is not a label"),
    "list with a label twice": ("label list", lambda t: change(t, "labels", "cat|cat"), "row 4 (id 'b')"),
    "column missing": (
        "flags",
        lambda t: t.drop(columns="owl"),
        "row 1: header differs from the sample's: missing 'owl'",
    ),
    "column added": (
        "label",
        lambda t: t.assign(index="0"),
        "row 1: header differs from the sample's: missing none; extra 'index'",
    ),  # fmt: skip
    "column renamed": ("label", lambda t: t.rename(columns={"label": "Label"}), "row 1"),
    "columns in another order": ("flags", lambda t: t[["image_id", "cat", "dog", "owl"]], "row 1"),
    "id column last": ("label", lambda t: t[["label", "image_id"]], "row 1"),
}


@pytest.mark.parametrize("name", ZOO)
def test_every_corruption_is_caught_in_one_line_that_names_row_or_id(name):
    kind, corrupt, expected = ZOO[name]
    form, targets, _ = make(kind)
    table = format_submission(random_predictions(form, targets), form, IDS)
    errors, _ = check_submission(corrupt(table), form, IDS)
    assert any(expected in error for error in errors), errors
    assert 1 <= len(errors) <= 3
    assert not any("\n" in error for error in errors)


FILES = {
    "empty": (b"", "is empty"),
    "header only": (b"image_id,label\n", "no rows"),
    "a cell too many": (b"image_id,label\n007,cat\na,dog,owl\nb,cat\nc,cat\nd,cat\n", "row 3"),
    "a cell too few": (b"image_id,label\n007,cat\na\nb,cat\nc,cat\nd,cat\n", "row 3"),
    "semicolons": (b"image_id;label\n007;cat\n", "row 1: header differs"),
    "byte order mark": (
        b"\xef\xbb\xbfimage_id,label\n007,cat\na,dog\nb,cat\nc,cat\nd,cat\n",
        "row 1: starts with a byte",
    ),
    "UTF-16": ("image_id,label\n007,cat\n".encode("utf-16"), "UTF-16"),
    "Latin-1": ("image_id,label\n007,café\n".encode("latin-1"), "row 2"),
    "NUL byte": (b"image_id,label\n007,cat\n\0,cat\n", "row 3"),
    "open quote": (b'image_id,label\n007,cat\na,"dog\n', "row 3"),
    "column twice": (b"image_id,label,label\n007,cat,cat\n", "'label' occurs twice"),
    "cut off": (b"image_id,label\n007,cat\na,do", "3 ids have no row: 'b', 'c', 'd'"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_without_traceback(name, tmp_path):
    content, expected = FILES[name]
    (tmp_path / "submission.csv").write_bytes(content)
    errors, _ = check_submission(tmp_path / "submission.csv", make("label")[0], IDS)
    assert any(expected in error for error in errors), errors


def test_a_file_that_is_absent_is_named(tmp_path):
    errors, _ = check_submission(tmp_path / "submission.csv", make("label")[0], IDS)
    assert "no such file" in errors[0]


def test_missing_ids_are_counted_and_the_first_five_named():
    ids = [f"i{number}" for number in range(100)]
    form, targets, _ = make("label", ids)
    table = format_submission(random_predictions(form, targets, ids), form, ids)
    errors, _ = check_submission(table.iloc[8:].reset_index(drop=True), form, ids)
    assert errors == ["8 ids have no row: 'i0', 'i1', 'i2', 'i3', 'i4' and 3 more"]


def test_the_same_prediction_in_every_row_is_an_alarm_and_no_error():
    form, targets, _ = make("class probabilities")
    constant = prediction_table(IDS, np.tile([0.2, 0.3, 0.5], (5, 1)), CLASSES)
    errors, warnings = check_submission(format_submission(constant, form, IDS), form, IDS)
    assert errors == []
    assert "every row has the same prediction (0.3, 0.2, 0.5)" in warnings[0]


def test_a_constant_column_is_an_alarm_that_names_it():
    form, targets, _ = make("flags")
    table = format_submission(random_predictions(form, targets), form, IDS).assign(owl="0")
    errors, warnings = check_submission(table, form, IDS)
    assert (errors, warnings) == ([], ["the same value in every row of column 'owl'"])


# The sample


def test_a_stub_sample_is_told_from_the_test_set():
    form, _, sample = make("label")
    lines = compare_with_sample(sample.head(3), form, IDS)
    assert len(lines) == 1
    assert "has 3 rows, 5 ids are to be predicted" in lines[0]
    assert "not in the sample: 'c', 'd'" in lines[0]


def test_a_stale_sample_says_which_ids_differ():
    form, _, sample = make("label")
    (line,) = compare_with_sample(sample.assign(image_id=["007", "a", "b", "c", "old"]), form, IDS)
    assert "only in the sample: 'old'; not in the sample: 'd'" in line


@pytest.mark.parametrize("kind", FORMS)
def test_a_sample_that_fits_needs_no_word(kind):
    form, _, sample = make(kind)
    assert compare_with_sample(sample, form, IDS) == []


def test_a_sample_of_other_content_is_told():
    form, _, sample = make("binary label")
    assert (
        "fractions ('0.5'), but the metric takes labels"
        in compare_with_sample(sample.assign(target="0.5"), form, IDS)[0]
    )
    form, _, sample = make("binary probability")
    assert (
        "holds text ('yes'), but numbers are written" in compare_with_sample(sample.assign(target="yes"), form, IDS)[0]
    )
    form, _, sample = make("label")
    assert "'grade 0', which is none of the labels" in compare_with_sample(sample.assign(label="grade 0"), form, IDS)[0]


# What postprocess gave back

PREDICTIONS = prediction_table(IDS, np.full((5, 2), 0.5), ("x", "y"))
CHANGES = {
    "nothing": (lambda p: None, "gave back NoneType: end it with `return predictions`"),
    "a column lost": (lambda p: p.drop(columns="p_y"), "missing 'p_y'; added none"),
    "a column added": (lambda p: p.assign(extra=1), "missing none; added 'extra'"),
    "a row lost": (lambda p: p.iloc[1:], "missing '007'"),
    "a row doubled": (lambda p: pd.concat([p, p.iloc[:1]]), "doubled '007'"),
    "an id changed": (lambda p: p.replace({"id": {"a": "A"}}), "missing 'a'; added 'A'"),
    "a NaN": (lambda p: p.assign(p_x=p["p_x"].where(p["id"] != "b")), "p_x of id 'b' is not a finite number"),
    "text": (lambda p: p.assign(p_x="high"), "p_x of id '007' is not a finite number (5 rows)"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_slip_in_postprocess_is_one_line(name):
    change_of, expected = CHANGES[name]
    with pytest.raises(UserError) as caught:
        refuse_changed(change_of(PREDICTIONS.copy()), ("x", "y"), IDS)
    assert len(caught.value.problems) == 1
    assert expected in caught.value.problems[0]


def test_postprocess_may_reorder_rows_and_columns():
    refuse_changed(PREDICTIONS.iloc[::-1][["p_y", "id", "p_x"]], ("x", "y"), IDS)
