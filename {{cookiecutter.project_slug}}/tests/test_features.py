"""kfold/ensemble/features.py: columns for the stacker, against definitions worked out by hand."""

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfold.ensemble import features
from kfold.ensemble.features import (
    FEATURES,
    Source,
    group_features,
    make_features,
    metadata_features,
    oof_features,
    rank_within,
    readable_name,
)
from kfold.ensemble.second_level import Rows
from kfold.errors import UserError


def make_rows(num_rows=12, num_runs=2, num_columns=3, seed=0) -> Rows:
    generator = np.random.default_rng(seed)
    predictions = generator.dirichlet(np.ones(num_columns), size=(num_runs, num_rows)).astype(np.float32)
    return Rows(predictions, np.arange(num_rows) % 3)


def make_source(table=None, groups=None, num_rows=4, **more) -> Source:
    ids = np.array([f"r{row}" for row in range(num_rows)], object)
    return Source(ids, make_rows(num_rows).predictions, groups, table, **more)


# Predictions


@settings(max_examples=30)
@given(st.integers(1, 20), st.integers(1, 3), st.integers(0, 1000))
def test_a_rank_is_the_share_of_the_other_rows_of_its_label_that_are_below(num_rows, num_labels, seed):
    generator = np.random.default_rng(seed)
    values, labels = generator.integers(4, size=(num_rows, 2)), generator.integers(num_labels, size=num_rows)
    ranks = rank_within(values, labels)
    for row in range(num_rows):
        others = values[(labels == labels[row]) & (np.arange(num_rows) != row)]
        below = (others < values[row]) + 0.5 * (others == values[row])
        np.testing.assert_allclose(ranks[row], below.mean(axis=0) if len(others) else [0.5, 0.5])


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_the_features_of_a_fold_depend_on_the_rows_of_that_fold_alone(seed):
    rows = make_rows(20, seed=seed)
    together = oof_features(rows, "multiclass")
    for fold in range(3):
        chosen = rows.fold == fold
        alone = oof_features(rows.take(chosen), "multiclass")
        np.testing.assert_allclose(alone, together[chosen])


@settings(max_examples=20)
@given(st.permutations(range(12)))
def test_features_follow_their_rows_into_any_order(order):
    rows = make_rows()
    np.testing.assert_allclose(
        oof_features(rows.take(np.array(order)), "multiclass"), oof_features(rows, "multiclass").iloc[order]
    )


def test_columns_of_one_row_equal_their_definitions():
    rows = Rows(np.array([[[0.5, 0.3, 0.2]], [[0.1, 0.1, 0.8]]], np.float32), np.zeros(1, int))
    found = oof_features(rows, "multiclass").iloc[0]
    assert found["run0 column1 value"] == pytest.approx(0.3)
    assert found["run1 column2 logit"] == pytest.approx(np.log(0.8 / 0.2), rel=1e-5)
    assert found["run0 margin"] == pytest.approx(0.2)
    assert found["run0 entropy"] == pytest.approx(-sum(p * np.log(p) for p in (0.5, 0.3, 0.2)), rel=1e-5)
    assert found["runs column0 mean"] == pytest.approx(0.3)
    assert found["runs column0 deviation"] == pytest.approx(0.2)


def test_the_margin_of_yes_or_no_is_twice_the_distance_from_one_half():
    found = oof_features(Rows(np.array([[[0.8]]], np.float32), np.zeros(1, int)), "binary").iloc[0]
    assert found["run0 margin"] == pytest.approx(0.6)
    assert found["run0 entropy"] == pytest.approx(-0.8 * np.log(0.8) - 0.2 * np.log(0.2), rel=1e-5)


def test_certain_probabilities_have_finite_features():
    certain = Rows(np.array([[[0, 1], [1, 0]]], np.float32), np.zeros(2, int))
    for task in ("multiclass", "multilabel"):
        assert np.isfinite(oof_features(certain, task)).all(axis=None)


def test_regression_has_values_and_ranks_only():
    rows = Rows(np.array([[[5], [-3], [70]]], np.float32), np.zeros(3, int))
    found = oof_features(rows, "regression")
    assert list(found.columns) == ["run0 column0 value", "run0 column0 rank"]
    assert found["run0 column0 rank"].tolist() == [0.5, 0, 1]


def test_very_many_cells_leave_means_margins_and_entropies():
    wide = oof_features(make_rows(5, 2, 60), "multiclass")
    assert wide.shape == (5, 60 + 2 * 2)
    assert oof_features(make_rows(5, 1, 120), "multiclass").shape == (5, 120 + 2)
    assert oof_features(make_rows(5, 2, 50), "multiclass").shape == (5, 2 * (3 * 50 + 2) + 2 * 50)


def test_feature_names_can_be_read_with_the_names_of_runs_and_columns():
    runs, columns = ["resnet18", "vit"], ["cat", "dog"]
    names = ["run1 column0 logit", "run0 margin", "runs column1 mean", "group_column1 max", "metadata_column1 mean"]
    assert [readable_name(name, runs, columns) for name in names] == [
        "vit cat logit",
        "resnet18 margin",
        "runs dog mean",
        "group_dog max",
        "metadata_column1 mean",
    ]
    every = [*oof_features(make_rows(), "multiclass"), *group_features(np.ones((2, 3)), np.array(["a", "a"]))]
    assert not any("column" in readable_name(name, runs, ["x", "y", "z"]) for name in every)


# Groups


def test_group_features_are_those_of_the_rows_group():
    predictions = np.array([[0.1], [0.5], [0.9], [0.4], [0.2]])
    found = group_features(predictions, np.array(["a", "b", "a", "a", "b"], object))
    assert found["group_size"].tolist() == [3, 2, 3, 3, 2]
    np.testing.assert_allclose(found["group_column0 mean"], np.array([1.4, 1.05, 1.4, 1.4, 1.05]) / 3, atol=1e-9)
    np.testing.assert_allclose(found["group_column0 max"], [0.9, 0.5, 0.9, 0.9, 0.5])
    np.testing.assert_allclose(found["group_column0 rank"], [0, 1, 1, 0.5, 0])


def test_rows_without_a_group_stand_alone():
    found = group_features(np.array([[0.1], [0.5]]), np.array(["", ""], object))
    assert found["group_size"].tolist() == [1, 1]
    assert found["group_column0 mean"].tolist() == [0.1, 0.5]


def test_groups_are_left_out_on_both_sides_where_one_lacks_them():
    groups = np.array(["a", "a", "b", "b"], object)
    train, test, notes = make_features(["group"], make_source(groups=groups), make_source(num_rows=3))
    assert train.shape == (4, 0)
    assert test.shape == (3, 0)
    assert "no group features" in notes[0]
    train, test, notes = make_features(["group"], make_source(groups=groups), make_source(groups=groups))
    assert list(train.columns) == list(test.columns)
    assert "group_size" in train
    assert not notes


# Metadata


def table(**columns) -> pd.DataFrame:
    return pd.DataFrame(columns, dtype=str)


def test_a_column_is_a_number_only_where_every_cell_of_both_tables_is_one():
    train = table(age=["40", "", " 7.5"], dose=["1", "2", "3"], code=["1", "2", "1"])
    test = table(age=["1e3"], dose=["inf"], code=["x"])
    train_columns, test_columns, notes = metadata_features(train, test, ())
    np.testing.assert_array_equal(train_columns["metadata_age"], [40, np.nan, 7.5])
    assert test_columns["metadata_age"].tolist() == [1000]
    for name in ("metadata_code",):
        assert isinstance(train_columns[name].dtype, pd.CategoricalDtype)
        assert train_columns[name].cat.categories.tolist() == ["1", "2", "x"]
        assert train_columns[name].dtype == test_columns[name].dtype
    assert "metadata_dose" not in train_columns  # with "inf" it is text, and all different
    assert len(notes) == 1


def test_a_blank_category_is_missing_and_texts_like_na_are_categories():
    train, test, _ = metadata_features(table(site=["NA", "", "NA", "b"]), table(site=["nan"]), ())
    assert train["metadata_site"].isna().tolist() == [False, True, False, False]
    assert test["metadata_site"].tolist() == ["nan"]


def test_excluded_columns_and_those_of_one_table_are_no_metadata():
    train = table(image_id=["1", "2"], label=["3", "4"], width=["5", "6"], only=["7", "8"])
    train_columns, test_columns, _ = metadata_features(
        train, train[["image_id", "label", "width"]], ["image_id", "label"]
    )
    assert list(train_columns) == list(test_columns) == ["metadata_width"]


def test_texts_that_nearly_all_differ_are_left_out_with_a_note():
    names = [f"file {row}" for row in range(20)]
    train, test, notes = metadata_features(table(name=names, site=["a", "b"] * 10), table(name=["x"], site=["a"]), ())
    assert list(train) == list(test) == ["metadata_site"]
    assert notes == ["metadata 'name' left out: 20 different texts in 20 rows"]


# All together


def test_groups_of_columns_stand_side_by_side_in_the_rows_order(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.full((4, 8, 3), 255, np.uint8))
    made = [
        make_source(
            table(image_id=["1", "2", "3", "4"], site=["a", "a", "b", "b"]),
            np.array(["g", "g", "", ""], object),
            not_metadata=["image_id"],
            image_paths=[path] * 4,
            embeddings=np.arange(8, dtype=np.float32).reshape(4, 2),
        )
        for _ in range(2)
    ]
    train, test, notes = make_features(list(FEATURES), *made)
    assert list(train.columns) == list(test.columns)
    assert notes == []
    assert "metadata_image_id" not in train
    assert train["image_aspect"].tolist() == [2] * 4
    assert train["embedding_1"].tolist() == [1, 3, 5, 7]
    assert train["metadata_site"].tolist() == ["a", "a", "b", "b"]
    assert train["group_size"].tolist() == [2, 2, 1, 1]


def test_an_unknown_group_of_columns_is_refused_by_name():
    with pytest.raises(UserError, match="feature group 'audio' is unknown: choose of group, metadata"):
        make_features(["audio"], make_source(), make_source())


def test_what_is_not_there_is_noted():
    for name, note in (("metadata", "not both there"), ("embeddings", "embed.py")):
        train, _, notes = make_features([name], make_source(), make_source())
        assert train.shape == (4, 0)
        assert note in notes[0]


def test_embeddings_are_joined_by_id_and_a_missing_one_is_named(tmp_path):
    path = tmp_path / "embeddings.parquet"
    pd.DataFrame({"id": ["b", "a"], "e0": [1.0, 2.0], "e1": [3.0, 4.0]}).astype({"e0": "f4", "e1": "f4"}).to_parquet(
        path
    )
    found = features.read_embeddings(path, ["a", "b", "a"])
    assert found.dtype == np.float32
    assert found.tolist() == [[2, 4], [1, 3], [2, 4]]
    with pytest.raises(UserError, match="id 'c' is not in it: run embed.py again"):
        features.read_embeddings(path, ["a", "c"])
    with pytest.raises(UserError, match="no such file"):
        features.read_embeddings(tmp_path / "none.parquet", ["a"])
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="damaged"):
        features.read_embeddings(path, ["a"])
