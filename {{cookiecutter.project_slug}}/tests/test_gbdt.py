"""kfold/ensemble/gbdt.py: what the stacker learns, what it must not see, and that it comes out the same every time."""

import lightgbm
import numpy as np
import pandas as pd
import pytest

from kfold.ensemble import gbdt
from kfold.ensemble.gbdt import encode, fit_encoder, fit_lightgbm, importance_table
from kfold.ensemble.second_level import Rows
from kfold.metrics import TASKS, resolve_metric
from kfold.report.pictures import importance_picture


@pytest.fixture(autouse=True)
def _one_thread_and_few_rounds(monkeypatch):
    monkeypatch.setitem(gbdt.PARAMETERS, "num_threads", 1)  # small tables; other tests run beside
    monkeypatch.setattr(gbdt, "MAX_ROUNDS", 200)
    monkeypatch.setattr(gbdt, "PATIENCE", 10)


def make_rows(task="multiclass", num_rows=240, num_runs=2, seed=0, features=None) -> tuple[Rows, np.ndarray]:
    """Noisy predictions of every run, better than chance, in four folds, and the targets (N, C)."""
    generator = np.random.default_rng(seed)
    num_columns = {"multiclass": 3, "binary": 1, "multilabel": 2, "regression": 2}[task]
    noise = generator.normal(size=(num_runs, num_rows, num_columns))
    if task == "regression":
        targets = generator.normal(size=(num_rows, num_columns)) * 10
        predictions = targets + 3 * noise
    elif task == "multiclass":
        targets = np.eye(num_columns)[generator.integers(num_columns, size=num_rows)]
        scores = np.exp(targets + noise)
        predictions = scores / scores.sum(axis=2, keepdims=True)
    else:
        targets = (generator.random((num_rows, num_columns)) < 0.4).astype(float)
        predictions = 1 / (1 + np.exp(-(3 * targets - 1.5 + noise)))
    fold = generator.permutation(num_rows) % 4
    return Rows(predictions.astype(np.float32), fold, features), targets.astype(np.float32)


def fit(rows, targets, task="multiclass"):
    return fit_lightgbm(rows, targets, task, resolve_metric("auto", task))


@pytest.mark.parametrize("task", TASKS)
def test_the_stacker_beats_the_mean_of_all_targets_on_a_fold_it_never_saw(task):
    rows, targets = make_rows(task)
    held_out = rows.fold == 3
    predictions = fit(rows.take(~held_out), targets[~held_out], task).predict(rows.take(held_out))
    assert predictions.shape == targets[held_out].shape
    assert predictions.dtype == np.float32
    error = np.square(predictions - targets[held_out]).mean()
    assert error < 0.8 * np.square(targets[~held_out].mean(axis=0) - targets[held_out]).mean()
    if task == "multiclass":
        np.testing.assert_allclose(predictions.sum(axis=1), 1, atol=1e-5)
    elif task != "regression":
        assert ((predictions > 0) & (predictions < 1)).all()


@pytest.mark.parametrize("task", TASKS)
def test_the_same_fit_gives_the_same_bytes_and_saved_text_the_same_predictions(task):
    rows, targets = make_rows(task)
    first, second = fit(rows, targets, task), fit(rows, targets, task)
    assert first.model.texts == second.model.texts
    matrix = encode(first.model.encoder, rows)
    loaded = [lightgbm.Booster(model_str=text).predict(matrix) for text in first.model.texts]
    loaded = loaded[0] if task == "multiclass" else np.column_stack(loaded)
    np.testing.assert_array_equal(loaded.astype(np.float32), first.predict(rows))


def test_rounds_are_found_on_the_lowest_fold_by_trees_that_never_saw_it(monkeypatch):
    seen, boosters = [], []
    train = lightgbm.train

    def spy(parameters, data, num_rounds, valid_sets=(), **options):
        seen.append((data.data.copy(), [valid.data.copy() for valid in valid_sets], num_rounds))
        boosters.append(train(parameters, data, num_rounds, valid_sets=list(valid_sets), **options))
        return boosters[-1]

    monkeypatch.setattr(lightgbm, "train", spy)
    rows, targets = make_rows()
    held_out = rows.fold == 0
    fitted = fit(rows.take(~held_out), targets[~held_out])
    matrix = encode(fitted.model.encoder, rows)
    (search, (valid,), _), (whole, none, num_rounds) = seen
    # Ranks are within a fold, so a row is the same numbers whatever rows stand beside it.
    np.testing.assert_allclose(valid, matrix[rows.fold == 1])
    np.testing.assert_allclose(search, matrix[rows.fold > 1])
    np.testing.assert_allclose(whole, matrix[~held_out])
    assert none == []
    assert 1 < num_rounds < gbdt.MAX_ROUNDS
    score = resolve_metric("log_loss", "multiclass").function
    after = range(1, num_rounds + 1)
    losses = [score(targets[rows.fold == 1], boosters[0].predict(valid, num_iteration=rounds)) for rounds in after]
    assert np.argmin(losses) == num_rounds - 1
    assert fitted.note.endswith(f"rounds {num_rounds}")
    assert fitted.model.outputs[0].num_trees() == 3 * num_rounds


def test_rows_of_a_single_fold_take_a_fixed_number_of_rounds():
    rows, targets = make_rows("binary")
    chosen = rows.fold == 2
    assert fit(rows.take(chosen), targets[chosen], "binary").note.endswith(f"rounds {gbdt.ROUNDS_OF_ONE_FOLD}")


@pytest.mark.parametrize("value", [0, 1])
def test_a_label_with_one_class_is_predicted_as_a_constant_that_is_never_certain(value):
    rows, targets = make_rows("multilabel")
    targets[:, 1] = value
    fitted = fit(rows, targets, "multilabel")
    expected = (240 * value + 1) / 242
    np.testing.assert_allclose(fitted.predict(rows)[:, 1], expected, rtol=1e-6)
    assert float(fitted.model.texts[1]) == pytest.approx(expected)
    targets[:, 0] = value
    assert fit(rows, targets, "multilabel").model.importances["gain"].sum() == 0


def test_a_label_that_occurs_in_the_lowest_fold_only_can_be_fitted():
    rows, targets = make_rows("binary")
    targets[rows.fold > 0] = 0
    targets[np.flatnonzero(rows.fold == 0)[:40]] = 1
    assert np.isfinite(fit(rows, targets, "binary").predict(rows)).all()


def test_a_class_absent_from_the_fit_rows_keeps_its_column():
    rows, targets = make_rows()
    chosen = targets[:, 2] == 0
    predictions = fit(rows.take(chosen), targets[chosen]).predict(rows)
    assert predictions.shape == (240, 3)
    assert (predictions[:, 2] < 0.01).all()
    assert np.isfinite(predictions).all()


def test_a_constant_regression_target_is_predicted():
    rows, targets = make_rows("regression")
    targets[:, 0] = 7
    np.testing.assert_allclose(fit(rows, targets, "regression").predict(rows)[:, 0], 7, rtol=1e-6)


# Features


def metadata(targets: np.ndarray, seed=0) -> pd.DataFrame:
    """A category that says the class in two thirds of the rows, blanks, a number with NaN, an awkward name."""
    generator = np.random.default_rng(seed)
    site = np.array(["a", "b", "c"])[targets.argmax(axis=1)].astype(object)
    site[generator.random(len(site)) < 1 / 3] = None
    age = generator.normal(size=len(site))
    age[::3] = np.nan
    site = pd.Categorical(site, categories=["a", "b", "c", "test only"])
    return pd.DataFrame({"metadata_site": site, 'metadata_{"age": [1, 2]}': age})


def test_metadata_with_blanks_unseen_categories_and_awkward_names_are_learned_from():
    plain, targets = make_rows()
    rows = Rows(plain.predictions, plain.fold, metadata(targets))
    held_out = rows.fold == 3
    fitted = fit(rows.take(~held_out), targets[~held_out])
    assert 'metadata_{"age": [1, 2]}' in fitted.model.feature_map.values()
    with_metadata = np.square(fitted.predict(rows.take(held_out)) - targets[held_out]).mean()
    alone = fit(plain.take(~held_out), targets[~held_out]).predict(plain.take(held_out))
    assert with_metadata < 0.8 * np.square(alone - targets[held_out]).mean()
    assert "metadata_site" in importance_table([fitted])["name"][:5].tolist()

    test = rows.take(held_out)
    unseen, blank = (
        fitted.predict(Rows(test.predictions, test.fold, test.features.assign(metadata_site=pd.Categorical(texts))))
        for texts in (["never heard of"] * len(test.fold), [None] * len(test.fold))
    )
    np.testing.assert_array_equal(unseen, blank)
    assert np.isfinite(unseen).all()


def test_a_category_means_the_same_whatever_the_order_of_categories_and_columns():
    rows, targets = make_rows()
    rows = Rows(rows.predictions, rows.fold, metadata(targets))
    fitted = fit(rows, targets)
    reordered = rows.features.assign(
        metadata_site=rows.features["metadata_site"].cat.reorder_categories(["test only", "c", "a", "b"])
    )
    other = Rows(rows.predictions, rows.fold, reordered[reordered.columns[::-1]])
    np.testing.assert_array_equal(fitted.predict(other), fitted.predict(rows))


def make_embeddings(num_rows=240, num_columns=40, seed=1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_rows, num_columns)).astype(np.float32)


def test_the_pca_is_fitted_without_the_held_out_rows():
    rows, targets = make_rows()
    held_out = rows.fold == 3
    values = make_embeddings()
    predictions = []
    for scale in (1, 1000):
        values[held_out] *= scale  # would turn every component, had the PCA seen these rows
        features = pd.DataFrame(values).add_prefix("embedding_")
        everything = Rows(rows.predictions, rows.fold, features)
        fitted = fit(everything.take(~held_out), targets[~held_out])
        predictions.append(fitted.model.texts)
        mean = np.asarray(values[~held_out], np.float64).mean(axis=0)
        np.testing.assert_allclose(fitted.model.encoder.pca.mean_, mean, atol=1e-9)
        pca, matrix = fitted.model.encoder.pca, encode(fitted.model.encoder, everything.take(held_out))
        np.testing.assert_allclose(matrix[:, -32:], pca.transform(np.asarray(values[held_out], np.float64)))
    assert predictions[0] == predictions[1]


def test_embeddings_become_at_most_32_components_and_an_unreadable_image_has_none():
    rows, _ = make_rows()
    values = make_embeddings()
    values[5] = np.nan
    rows = Rows(rows.predictions, rows.fold, pd.DataFrame(values).add_prefix("embedding_"))
    encoder = fit_encoder(rows, "multiclass")
    assert encoder.names[-1] == "embedding component 31"
    components = encode(encoder, rows)[:, -32:]
    assert np.isnan(components[5]).all()
    assert np.isfinite(np.delete(components, 5, axis=0)).all()
    few = Rows(rows.predictions[:, :10], rows.fold[:10], rows.features.iloc[:10])
    assert fit_encoder(few, "multiclass").pca.n_components_ == 8  # nine rows can be read
    none = Rows(rows.predictions[:, 5:7], rows.fold[5:7], rows.features.iloc[5:7])
    assert fit_encoder(none, "multiclass").pca is None
    assert np.isfinite(encode(fit_encoder(none, "multiclass"), none)).all()


# Importances


def test_importances_are_averaged_over_folds_and_a_lacking_feature_counts_as_zero():
    rows, targets = make_rows()
    with_metadata = Rows(rows.predictions, rows.fold, metadata(targets))
    folds = [fit(rows, targets), fit(with_metadata, targets)]
    table = importance_table(folds).set_index("name")
    one, two = (fit.model.importances.set_index("name")["gain"] for fit in folds)
    assert table["gain"]["metadata_site"] == pytest.approx(two["metadata_site"] / 2)
    assert table["gain"]["run0 margin"] == pytest.approx((one["run0 margin"] + two["run0 margin"]) / 2)
    assert table["gain"].is_monotonic_decreasing
    assert folds[1].model.importances["feature"][3] == "f3"
    assert folds[1].model.feature_map["f3"] == folds[1].model.importances["name"][3]


def test_the_picture_of_importances_is_the_same_bytes_and_takes_any_name():
    names = [r"$5 or \$", r"$\no formula$", "名前", "x" * 200, *(f"feature {number}" for number in range(40))]
    table = pd.DataFrame({"name": names, "gain": np.linspace(5, 0, len(names)), "splits": 1})
    picture = importance_picture(table, "stacker $ and $")
    assert picture.startswith(b"\x89PNG")
    assert importance_picture(table, "stacker $ and $") == picture
    assert importance_picture(table[:30], "stacker $ and $") == picture  # 30 bars at most
    assert importance_picture(table[:29], "stacker $ and $") != picture
