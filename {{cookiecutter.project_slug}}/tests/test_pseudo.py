"""Pseudo-labels: which rows are taken, who may label them, and the leak that the provenance stops."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from kfold.artifacts import ALL_DATA
from kfold.ensemble.pseudo import NUM_BINS, PseudoRows, confidence, label_rows, make_targets, rows_per_class, select
from kfold.ensemble.pseudo_files import (
    TeacherFacts,
    content_sha256,
    fits,
    read_pseudo,
    read_stamped,
    refuse_unsafe_teacher,
    teacher_facts,
    write_pseudo,
)
from kfold.errors import UserError
from kfold.metrics import TASKS

STAMP = "f" * 64
NAMES = ("cat", "dog", "NA")
seeds = st.integers(0, 10_000)
shares = st.floats(0.05, 1.0)
limits = st.integers(0, 8)


def make_predictions(task: str, seed: int, num_rows: int = 60, num_teachers: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Ids (N,) in no order and predictions (T, N, C), rounded so that many rows are equally sure."""
    generator = np.random.default_rng(seed)
    columns = 1 if task == "binary" else 3
    values = generator.beta(0.4, 0.4, (num_teachers, num_rows, columns)).round(1)
    if task == "multiclass":
        values = (values + 0.1) / (values + 0.1).sum(axis=2, keepdims=True)
    ids = np.array([f"t{number:03}" for number in generator.permutation(num_rows)], object)
    return ids, values.astype(np.float32)


def label(task: str, ids: np.ndarray, predictions: np.ndarray, **options) -> PseudoRows:
    return label_rows(ids, predictions, task, np.ones(predictions.shape[2]), **{"threshold": 0.8, **options})


def taken_cells(rows: PseudoRows) -> set[tuple[str, int]]:
    return {(rows.ids[row], column) for row, column in zip(*np.nonzero(rows.weights), strict=True)}


# Selection


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=15)
@given(seed=seeds, top_share=st.sampled_from([0.0, 0.3]), per_class=limits, kind=st.sampled_from(["hard", "soft"]))
def test_the_order_of_the_rows_changes_nothing(task, seed, top_share, per_class, kind):
    ids, predictions = make_predictions(task, seed)
    order = np.random.default_rng(seed + 1).permutation(len(ids))
    options = {"top_share": top_share, "per_class": per_class, "kind": kind}
    first = label(task, ids, predictions, **options)
    second = label(task, ids[order], predictions[:, order], **options)
    for name in ("ids", "targets", "weights", "confidence"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=15)
@given(seed=seeds, low=st.floats(0, 1), high=st.floats(0, 1), per_class=limits)
def test_a_lower_threshold_takes_all_that_a_higher_one_takes(task, seed, low, high, per_class):
    ids, predictions = make_predictions(task, seed)
    low, high = sorted((low, high))
    few = label(task, ids, predictions, threshold=high)
    many = label(task, ids, predictions, threshold=low)
    assert taken_cells(few) <= taken_cells(many)
    limited = [label(task, ids, predictions, threshold=value, per_class=per_class) for value in (high, low)]
    assert taken_cells(limited[0]) <= taken_cells(limited[1])


@settings(max_examples=30)
@given(seed=seeds, share=shares)
def test_a_top_share_keeps_the_mix_of_the_predicted_classes(seed, share):
    ids, predictions = make_predictions("multiclass", seed)
    predicted = np.bincount(predictions.mean(axis=0, dtype=np.float64).astype(np.float32).argmax(axis=1), minlength=3)
    taken = rows_per_class(label("multiclass", ids, predictions, top_share=share), "multiclass", NAMES)
    for count, of_class in zip(taken.values(), predicted, strict=True):
        assert abs(count - share * of_class) <= 0.5 or count == 1
        assert (count > 0) == (of_class > 0)


@settings(max_examples=20)
@given(seed=seeds, share=shares)
def test_a_top_share_of_a_regression_is_spread_over_the_range_of_the_values(seed, share):
    generator = np.random.default_rng(seed)
    values = generator.permutation(200).astype(np.float32)
    doubt = values / 200  # sure of small values only
    predictions = np.stack([values - doubt, values + doubt])[:, :, None]
    rows = label("regression", np.arange(200).astype(str).astype(object), predictions, top_share=share)
    deciles = np.bincount((rows.targets[:, 0].round() // 20).astype(int), minlength=NUM_BINS)
    assert (deciles == max(1, round(share * 20))).all()


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
@settings(max_examples=15)
@given(seed=seeds, per_class=st.integers(1, 8), share=st.sampled_from([0.0, 0.7]))
def test_no_class_has_more_rows_than_its_limit_and_none_left_out_is_surer(task, seed, per_class, share):
    ids, predictions = make_predictions(task, seed)
    names = NAMES[: predictions.shape[2]]
    limited = label(task, ids, predictions, threshold=0.6, top_share=share, per_class=per_class)
    free = label(task, ids, predictions, threshold=0.6, top_share=share)
    all_counts = rows_per_class(free, task, names)
    assert rows_per_class(limited, task, names) == {name: min(n, per_class) for name, n in all_counts.items()}
    mean = predictions.mean(axis=0, dtype=np.float64).astype(np.float32)
    sure = confidence(predictions, task, np.ones(3))
    weights = select(ids, mean, sure, task, 0.6, share, per_class)
    allowed = select(ids, mean, sure, task, 0.6, share)
    for column in range(mean.shape[1]):
        classes = mean.argmax(axis=1) if task == "multiclass" else mean[:, column] >= 0.5
        for number in np.unique(classes):
            ours = (classes == number) & (allowed[:, column] > 0)
            inside, outside = (sure[ours & (weights[:, column] == kept), column] for kept in (1, 0))
            assert not len(outside) or inside.min() >= outside.max()


def test_equally_sure_rows_are_chosen_by_id_and_not_in_the_order_of_the_alphabet():
    ids = np.array([f"t{number:03}" for number in range(40)], object)
    predictions = np.ones((1, 40, 1), np.float32)
    taken = label("binary", ids, predictions, per_class=10).ids
    assert len(taken) == 10
    assert list(taken) != list(ids[:10])
    assert list(taken) == list(label("binary", ids[::-1], predictions, per_class=10).ids)


def test_confidence_is_that_of_the_teachers_mean():
    one = np.array([[[0.7, 0.2, 0.1]], [[0.1, 0.8, 0.1]]], np.float32)
    np.testing.assert_allclose(confidence(one, "multiclass", np.ones(3)), [[0.5, 0.5, 0.5]])
    np.testing.assert_allclose(confidence(one, "multilabel", np.ones(3)), [[0.6, 0.5, 0.9]])
    values = np.array([[[1.0, 5.0]], [[3.0, 5.0]]], np.float32)  # standard deviations 1 and 0
    np.testing.assert_allclose(confidence(values, "regression", np.array([4.0, 0.0])), [[0.75, 1.0]])
    np.testing.assert_allclose(confidence(values, "regression", np.array([0.5, 1.0])), [[0.0, 1.0]])
    with pytest.raises(UserError, match=r"one teacher cannot say how sure it is.*--run"):
        confidence(values[:1], "regression", np.ones(2))


def test_a_threshold_takes_the_probability_that_equals_it():
    ids, predictions = np.array(["a", "b"], object), np.array([[[0.9], [0.89]]], np.float32)
    assert list(label("binary", ids, predictions, threshold=0.9).ids) == ["a"]


def test_hard_targets_are_the_likeliest_class_and_soft_ones_the_mean():
    mean = np.array([[0.2, 0.7, 0.1], [0.6, 0.3, 0.1]], np.float32)
    np.testing.assert_array_equal(make_targets(mean, "multiclass", "hard"), [[0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(make_targets(mean, "multilabel", "hard"), [[0, 1, 0], [1, 0, 0]])
    for task, kind in (("multiclass", "soft"), ("multilabel", "soft"), ("regression", "hard"), ("regression", "soft")):
        np.testing.assert_array_equal(make_targets(mean, task, kind), mean)


def test_a_row_of_labels_is_taken_cell_by_cell_with_the_mean_confidence_of_its_cells():
    predictions = np.array([[[0.98, 0.5, 0.04], [0.6, 0.5, 0.5]]], np.float32)
    rows = label("multilabel", np.array(["a", "b"], object), predictions, threshold=0.9)
    assert list(rows.ids) == ["a"]  # no cell of b is sure
    np.testing.assert_array_equal(rows.weights, [[1, 0, 1]])
    np.testing.assert_allclose(rows.confidence, [0.97], atol=1e-6)
    assert rows_per_class(rows, "multilabel", NAMES) == {
        "cat=1": 1, "cat=0": 0, "dog=1": 0, "dog=0": 0, "NA=1": 0, "NA=0": 1
    }  # fmt: skip


# Teachers


def facts_of(run: str = "baseline", without: int | None = 1, weights: str = "a" * 64) -> TeacherFacts:
    return TeacherFacts(run, ALL_DATA if without is None else without, without, weights)


def manifest_of(**changes) -> dict:
    return {
        "run": "baseline",
        "trained_without_fold": 1,
        "fold_stamp": STAMP,
        "weights_sha256": "a" * 64,
        **changes,
    }


def test_the_folds_own_model_of_a_run_may_teach():
    refuse_unsafe_teacher(manifest_of(), "baseline", 1, STAMP)
    assert teacher_facts(manifest_of()) == facts_of()
    assert teacher_facts(manifest_of(trained_without_fold=None)) == facts_of(without=None)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "fold 1: is not trained"),
        (
            manifest_of(trained_without_fold=0),
            "unsafe teacher: .* trained without fold 0, so it saw fold 1",
        ),
        (manifest_of(trained_without_fold=None), "trained on all rows, so it saw fold 1"),
        (manifest_of(fold_stamp="0" * 64), "other folds than those of folds.csv"),
        (manifest_of(fitted_on_oof=True), "fitted on out-of-fold rows.*name the runs that it is made of"),
        (manifest_of(run="old"), "its manifest is of run old"),
    ],
)
def test_a_teacher_that_saw_the_fold_is_refused(manifest, message):
    with pytest.raises(UserError, match=message):
        refuse_unsafe_teacher(manifest, "baseline", 1, STAMP)


def test_any_model_of_these_folds_may_teach_the_full_data_fit():
    for manifest in (manifest_of(), manifest_of(trained_without_fold=None), manifest_of(fitted_on_oof=True)):
        refuse_unsafe_teacher(manifest, "baseline", ALL_DATA, STAMP)
    with pytest.raises(UserError, match="other folds"):
        refuse_unsafe_teacher(manifest_of(fold_stamp="0" * 64), "baseline", ALL_DATA, STAMP)


# The file

TEACHERS = (facts_of(), facts_of("second", weights="b" * 64))
TEST_IDS, TRAIN_IDS = ["000123", "NA", "é 汉", "t4"], ["1", "2"]


def some_rows(**changes) -> PseudoRows:
    rows = PseudoRows(
        np.array(["000123", "NA", "é 汉"], object),
        np.eye(3, dtype=np.float32),
        np.ones((3, 3), np.float32),
        np.array([0.9, 0.95, 1.0], np.float32),
    )
    return replace(rows, **changes)


def write(path, rows=None, teachers=TEACHERS, stamp=STAMP, task="multiclass", names=NAMES):
    write_pseudo(path, rows or some_rows(), teachers, stamp, task, names, "hash")


def read(path, fold=1, teachers=TEACHERS, test_ids=TEST_IDS, train_ids=TRAIN_IDS):
    return read_pseudo(path, fold, STAMP, "multiclass", NAMES, teachers, test_ids, train_ids)


def refusal(path, **options) -> str:
    with pytest.raises(UserError) as refused:
        read(path, **options)
    assert all(str(path) in problem and "\n" not in problem for problem in refused.value.problems)
    assert "pseudo_label.py" in str(refused.value) or "train its fold" in str(refused.value)
    return str(refused.value)


def test_rows_come_back_as_they_were_with_the_origin_of_each(tmp_path):
    path = tmp_path / "pseudo.parquet"
    write(path)
    rows = read(path)
    for name in ("ids", "targets", "weights", "confidence"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(some_rows(), name))
    table = pq.read_table(path).to_pandas()
    assert set(table["teacher_run"]) == {"baseline+second"}
    assert set(table["teacher_fold"]) == {1}
    assert set(table["teacher_weights_sha256"]) == {"a" * 64 + "+" + "b" * 64}
    first = path.read_bytes()
    write(path)
    assert path.read_bytes() == first


def test_the_origin_is_what_the_manifests_say_and_not_the_folder(tmp_path):
    path = tmp_path / "pseudo.parquet"
    for teachers, fold in (([facts_of(without=0), facts_of(without=1)], -1), ([facts_of(without=None)], -1)):
        write(path, teachers=teachers)
        assert set(pq.read_table(path).to_pandas()["teacher_fold"]) == {fold}
        assert len(read(path, fold=ALL_DATA, teachers=teachers).ids) == 3


def restamped(table: pa.Table) -> pa.Table:
    """As someone would write it who also mends the stamp of the content."""
    content = content_sha256(table.replace_schema_metadata(None))
    return table.replace_schema_metadata({**table.schema.metadata, b"kfold.content": content.encode()})


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    """Before its fold is trained, no manifest vouches for the file."""
    path = tmp_path / "pseudo.parquet"
    write(path)
    whole, noise = path.read_bytes(), np.random.default_rng(0)
    expected = read_stamped(path)[0]
    for place in range(0, len(whole), 11):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(noise.integers(8))
        path.write_bytes(damaged)
        try:
            found = read_stamped(path)[0]
        except UserError:
            continue
        pd.testing.assert_frame_equal(found, expected)


def test_a_missing_and_a_damaged_file_are_named(tmp_path):
    path = tmp_path / "pseudo.parquet"
    assert "no such file: run pseudo_label.py" in refusal(path)
    write(path)
    path.write_bytes(path.read_bytes()[:-9])
    assert "damaged" in refusal(path)
    pq.write_table(restamped(pq_table(tmp_path).drop_columns(["w_dog"])), path)
    assert "column 'w_dog' is missing" in refusal(path)


def pq_table(tmp_path) -> pa.Table:
    path = tmp_path / "whole.parquet"
    write(path)
    return pq.read_table(path)


def test_other_folds_tasks_and_names_are_refused(tmp_path):
    path = tmp_path / "pseudo.parquet"
    write(path, stamp="0" * 64)
    assert "other folds" in refusal(path)
    write(path, task="multilabel")
    assert "other targets" in refusal(path)
    write(path, names=("cat", "dog", "bird"))
    assert "other targets" in refusal(path)


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        ([facts_of(without=0)], "its teacher saw fold 1: it was trained without fold 0"),
        ([facts_of(without=None)], "its teacher saw fold 1: it was trained without any fold"),
        ([facts_of(without=0), facts_of(without=1)], "its teacher saw fold 1"),
        ([facts_of(), facts_of("third")], "its teacher 'third' is not in pseudo_from"),
        ([facts_of()], "labelled by baseline alone, but pseudo_from has baseline, second"),
        ([facts_of(weights="0" * 64), TEACHERS[1]], "stale: baseline[+]second has other weights now"),
    ],
)
def test_labels_of_a_teacher_that_saw_the_fold_or_is_not_the_one_named_are_refused(tmp_path, teachers, message):
    path = tmp_path / "pseudo.parquet"
    write(path, teachers=teachers)
    with pytest.raises(UserError, match=rf"id '000123' \(3 such rows\): .*{message}.*pseudo_label.py"):
        read(path)


def test_one_row_by_a_foreign_teacher_spoils_the_file(tmp_path):
    path = tmp_path / "pseudo.parquet"
    table = pq_table(tmp_path)
    folds = pa.array([1, 0, 1], pa.int32())
    mixed = table.set_column(table.column_names.index("teacher_fold"), "teacher_fold", folds)
    pq.write_table(mixed, path)
    assert "its content is not what it is stamped with" in refusal(path)
    pq.write_table(restamped(mixed), path)
    assert "id 'NA' (1 such rows): its teacher saw fold 1: it was trained without fold 0" in refusal(path)


def test_teachers_that_saw_the_fold_are_refused_even_where_the_file_says_otherwise(tmp_path):
    path = tmp_path / "pseudo.parquet"
    write(path)
    assert "saw fold 1" in refusal(path, teachers=[facts_of(without=2), TEACHERS[1]])
    stacked = replace(TEACHERS[0], fitted_on_oof=True)
    with pytest.raises(UserError, match="name the runs that it is made of"):
        read(path, teachers=[stacked, TEACHERS[1]])


def test_bad_rows_are_refused_with_the_id(tmp_path):
    path = tmp_path / "pseudo.parquet"
    cases = [
        ({"ids": np.array(["NA", "NA", "t4"], object)}, {}, "id 'NA' occurs twice"),
        ({}, {"test_ids": TEST_IDS[1:]}, "id '000123' is not a test id (1 such rows)"),
        ({}, {"train_ids": ["é 汉"]}, "id 'é 汉' is a training id"),
        ({"targets": np.full((3, 3), np.nan, np.float32)}, {}, "id '000123' has a target, weight or confidence"),
        ({"weights": np.full((3, 3), np.inf, np.float32)}, {}, "not finite"),
        ({"weights": np.full((3, 3), -1, np.float32)}, {}, "weight outside 0 to 1"),
    ]
    for changes, options, message in cases:
        write(path, some_rows(**changes))
        assert message in refusal(path, **options)


def test_a_file_fits_the_settings_and_teachers_it_was_made_with(tmp_path):
    path = tmp_path / "pseudo.parquet"
    checks = (1, STAMP, "multiclass", NAMES, TEACHERS, TEST_IDS, TRAIN_IDS)
    assert not fits(path, "hash", *checks)
    write(path)
    assert fits(path, "hash", *checks)
    assert not fits(path, "other", *checks)
    assert not fits(path, "hash", 1, STAMP, "multiclass", NAMES, TEACHERS[:1], TEST_IDS, TRAIN_IDS)


# The canary: near copies of training rows in the test set

NUM_TRAIN, NUM_TEST, NUM_FRESH, NUM_FOLDS, NUM_SEEDS = 400, 400, 2000, 4, 6


def draw(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, 8) and labels (N,) that follow the first feature in 75% of the rows, and chance in the others."""
    features = generator.normal(size=(count, 8))
    labels = (features[:, 0] > 0).astype(int)
    noisy = generator.random(count) < 0.5
    return features, np.where(noisy, generator.integers(0, 2, count), labels)


def network(features: np.ndarray, labels: np.ndarray) -> KNeighborsClassifier:
    """The stand-in: like a network trained long enough, it knows its training rows by heart."""
    return KNeighborsClassifier(n_neighbors=5, weights="distance").fit(features, labels)


def run_loop(seed: int, honest: bool, tmp_path) -> tuple[float, float, int]:
    """Accuracy out of fold, accuracy on fresh rows, and refused files, after one round of pseudo-labels.

    honest: fold k's labels come from fold k's own model; else from the mean of all folds' models.
    """
    generator = np.random.default_rng(seed)
    features, labels = draw(generator, NUM_TRAIN)
    copied = generator.permutation(NUM_TRAIN)[: NUM_TEST // 2]  # half of the test rows are near copies
    copies = features[copied] + 0.01 * generator.normal(size=(len(copied), 8))
    test = np.concatenate([copies, draw(generator, NUM_TEST - len(copied))[0]])
    fresh, fresh_labels = draw(generator, NUM_FRESH)
    fold = generator.permutation(NUM_TRAIN) % NUM_FOLDS
    test_ids = np.array([f"test{number}" for number in range(NUM_TEST)], object)
    train_ids = [f"train{number}" for number in range(NUM_TRAIN)]

    teachers = [network(features[fold != k], labels[fold != k]) for k in range(NUM_FOLDS)]
    facts = [facts_of(without=k, weights=f"{k:064}") for k in range(NUM_FOLDS)]
    by_fold = np.stack([teacher.predict_proba(test) for teacher in teachers])
    right, fresh_scores, num_refused = 0, [], 0
    for k in range(NUM_FOLDS):
        chosen = [k] if honest else list(range(NUM_FOLDS))
        mean = by_fold[chosen].mean(axis=0)[None]
        rows = label_rows(test_ids, mean, "multiclass", np.ones(2), threshold=0.7)
        path = tmp_path / "pseudo.parquet"
        write_pseudo(path, rows, [facts[number] for number in chosen], STAMP, "multiclass", ("0", "1"))
        try:
            rows = read_pseudo(path, k, STAMP, "multiclass", ("0", "1"), [facts[k]], test_ids, train_ids)
        except UserError:
            num_refused += 1
        position = {name: row for row, name in enumerate(test_ids)}
        pseudo = test[[position[name] for name in rows.ids]]
        student = network(
            np.concatenate([features[fold != k], pseudo]),
            np.concatenate([labels[fold != k], rows.targets.argmax(axis=1)]),
        )
        right += (student.predict(features[fold == k]) == labels[fold == k]).sum()
        fresh_scores.append((student.predict(fresh) == fresh_labels).mean())
    return right / NUM_TRAIN, float(np.mean(fresh_scores)), num_refused


@pytest.mark.parametrize("honest", [True, False])
def test_pseudo_labels_leak_through_near_copies_unless_each_fold_has_its_own_teacher(honest, tmp_path):
    results = np.array([run_loop(seed, honest, tmp_path) for seed in range(NUM_SEEDS)])
    optimism = (results[:, 0] - results[:, 1]).mean()
    print(f"honest={honest}: out of fold {results[:, 0].mean():.3f}, fresh {results[:, 1].mean():.3f}")
    if honest:
        # 3 standard errors of 6 x 400 rows at 65% right: 3 * sqrt(0.65 * 0.35 / 2400) = 0.029
        assert abs(optimism) < 0.03
        assert results[:, 2].sum() == 0
    else:
        assert optimism > 0.1  # the leak is real
        assert (results[:, 2] == NUM_FOLDS).all()  # and every such file is refused
