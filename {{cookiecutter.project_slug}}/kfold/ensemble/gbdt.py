"""LightGBM as the second level: trees on the runs' predictions and whatever else is known of a row.

Everything that is fitted (trees, number of rounds, PCA of embeddings) is fitted on the rows given, so that a caller
who holds a fold out gets predictions that never saw it. G. Ke et al., "LightGBM", NeurIPS 2017.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import lightgbm
import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from kfold.config import Task
from kfold.ensemble.features import EMBEDDING, oof_features
from kfold.ensemble.second_level import Fitted, Rows
from kfold.metrics import Metric

MAX_COMPONENTS = 32  # of the embeddings' PCA
MAX_ROUNDS, PATIENCE = 1000, 50  # rounds; stop after so many without a smaller loss
ROUNDS_OF_ONE_FOLD = 100  # where no fold can be held out to find the number of rounds
# Fixed, since sums that are split over another number of threads may round otherwise. 1,500 rows of 10 classes take
# 1.5 s with one thread and 1.2 s with two, 20,000 rows 10.8 s and 6.2 s.
NUM_THREADS = 2
PARAMETERS = {
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 20,
    "min_data_per_group": 20,  # rows of a category; the default of 100 never splits small tables
    "max_bin": 63,
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
    "seed": 0,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": NUM_THREADS,
    "verbosity": -1,
}
OBJECTIVES: dict[Task, str] = {
    "multiclass": "multiclass",
    "binary": "binary",
    "multilabel": "binary",
    "regression": "regression",
}


@dataclass(frozen=True)
class Encoder:
    """How rows become numbers. names: F readable names; column i is f<i> to LightGBM.

    categories: of the categorical columns, by name, in the order of their codes. pca: of the embeddings, or None.
    """

    task: Task
    names: tuple[str, ...]
    categories: dict[str, list]
    pca: PCA | None


@dataclass(frozen=True)
class Stacker:
    """A fitted stacker. outputs: one for all classes, else one a column: a Booster, or a constant prediction.

    importances: feature (f0...), name, gain (summed over splits and outputs), splits.
    """

    encoder: Encoder
    outputs: tuple[lightgbm.Booster | float, ...]
    importances: pd.DataFrame

    @property
    def texts(self) -> tuple[str, ...]:
        """What `lightgbm.Booster(model_str=...)` reads, per output; a constant is its number."""
        return tuple(
            output.model_to_string() if isinstance(output, lightgbm.Booster) else repr(output)
            for output in self.outputs
        )

    @property
    def feature_map(self) -> dict[str, str]:
        """f0 -> readable name. LightGBM refuses names with []{}":, so it never sees the readable ones."""
        return {f"f{position}": name for position, name in enumerate(self.encoder.names)}


def fit_lightgbm(rows: Rows, targets: np.ndarray, task: Task, metric: Metric) -> Fitted:
    """Trees fitted on these rows; `model` of the result is a Stacker.

    The number of rounds is where the objective's loss is least on the lowest of the rows' folds, by trees of the
    others; then all rows are fitted with it. The loss, not `metric`, which may be undefined or flat on few rows.
    """
    encoder = fit_encoder(rows, task)
    matrix = encode(encoder, rows)
    columns = [targets.argmax(axis=1)] if task == "multiclass" else list(np.ascontiguousarray(targets.T))
    parameters = PARAMETERS | {"objective": OBJECTIVES[task]}
    if task == "multiclass":
        parameters["num_class"] = targets.shape[1]
    is_held_out = rows.fold == rows.fold.min()
    outputs, notes = [], []
    for column in columns:
        if task in ("binary", "multilabel") and column.min() == column.max():
            # Laplace's rule of succession: a certain 0 or 1 would cost the logarithmic loss without bound.
            outputs.append(float((column.sum() + 1) / (len(column) + 2)))
            notes.append("constant")
            continue
        num_rounds = find_rounds(matrix, column, is_held_out, encoder, parameters)
        outputs.append(lightgbm.train(parameters, dataset(matrix, column, encoder), num_rounds))
        notes.append(str(num_rounds))
    stacker = Stacker(encoder, tuple(outputs), importances(encoder, outputs))
    listed = " ".join(notes[:8]) + (" ..." if len(notes) > 8 else "")
    note = f"{len(encoder.names)} features, rounds {listed}"
    return Fitted(lambda rows: predict(stacker, rows), note, stacker)


def find_rounds(
    matrix: np.ndarray, column: np.ndarray, is_held_out: np.ndarray, encoder: Encoder, parameters: dict
) -> int:
    """Rounds until the loss on the held-out rows stops falling; a fixed number where the others cannot be fitted."""
    others = column[~is_held_out]
    if not len(others) or (parameters["objective"] == "binary" and others.min() == others.max()):
        return ROUNDS_OF_ONE_FOLD
    train = dataset(matrix[~is_held_out], others, encoder)
    valid = train.create_valid(matrix[is_held_out], column[is_held_out])
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    booster = lightgbm.train(parameters, train, MAX_ROUNDS, valid_sets=[valid], callbacks=[stop])
    return max(1, booster.best_iteration)


def dataset(matrix: np.ndarray, column: np.ndarray, encoder: Encoder) -> lightgbm.Dataset:
    categorical = [position for position, name in enumerate(encoder.names) if name in encoder.categories]
    names = [f"f{position}" for position in range(len(encoder.names))]
    return lightgbm.Dataset(matrix, column, feature_name=names, categorical_feature=categorical)


def predict(stacker: Stacker, rows: Rows) -> np.ndarray:
    """Probabilities, or values for regression, (N, C) float32."""
    matrix = encode(stacker.encoder, rows)
    columns = [
        np.full(len(matrix), output) if isinstance(output, float) else output.predict(matrix)
        for output in stacker.outputs
    ]
    return (columns[0] if stacker.encoder.task == "multiclass" else np.column_stack(columns)).astype(np.float32)


# Rows to numbers


def fit_encoder(rows: Rows, task: Task) -> Encoder:
    """The categories and the embeddings' PCA of these rows; rows with NaN embeddings are left out of the PCA."""
    names = list(oof_features(rows, task).columns)
    categories, pca = {}, None
    if rows.features is not None:
        plain = [name for name in rows.features.columns if not name.startswith(EMBEDDING)]
        names += plain
        for name in plain:
            if isinstance(rows.features[name].dtype, pd.CategoricalDtype):
                categories[name] = rows.features[name].cat.categories.tolist()
        pca = fit_pca(raw_embeddings(rows.features))
        names += [] if pca is None else [f"embedding component {number}" for number in range(pca.n_components_)]
    return Encoder(task, tuple(names), categories, pca)


def raw_embeddings(features: pd.DataFrame) -> np.ndarray:
    """(N, D) float64; D = 0 where there are none."""
    return features[[name for name in features.columns if name.startswith(EMBEDDING)]].to_numpy(np.float64)


def fit_pca(embeddings: np.ndarray) -> PCA | None:
    whole = embeddings[np.isfinite(embeddings).all(axis=1)]
    num_components = min(MAX_COMPONENTS, len(whole) - 1, whole.shape[1])  # n points span n - 1 directions
    return PCA(num_components, random_state=0).fit(whole) if num_components > 0 else None


def encode(encoder: Encoder, rows: Rows) -> np.ndarray:
    """The matrix (N, F) that LightGBM takes; NaN where a value is missing or a category is unknown to the fit."""
    parts = [oof_features(rows, encoder.task)]
    if rows.features is not None:
        for name in [name for name in rows.features.columns if name in encoder.names]:
            column = rows.features[name]
            if name in encoder.categories:
                codes = pd.Index(encoder.categories[name], dtype=object).get_indexer(column.astype(object))
                column = pd.Series(np.where(codes < 0, np.nan, codes), name=name)
            parts.append(column)
    if encoder.pca is not None:
        parts.append(project(encoder.pca, raw_embeddings(rows.features)))
    return pd.concat(parts, axis=1)[list(encoder.names)].to_numpy(np.float64)


def project(pca: PCA, embeddings: np.ndarray) -> pd.DataFrame:
    is_whole = np.isfinite(embeddings).all(axis=1)
    components = np.full((len(embeddings), pca.n_components_), np.nan)
    if is_whole.any():
        components[is_whole] = pca.transform(embeddings[is_whole])
    return pd.DataFrame(components).add_prefix("embedding component ")


# What the trees looked at


def importances(encoder: Encoder, outputs: Sequence[lightgbm.Booster | float]) -> pd.DataFrame:
    boosters = [output for output in outputs if isinstance(output, lightgbm.Booster)]
    gain, splits = (
        np.sum([booster.feature_importance(kind) for booster in boosters], axis=0) + np.zeros(len(encoder.names))
        for kind in ("gain", "split")
    )
    features = [f"f{position}" for position in range(len(encoder.names))]
    return pd.DataFrame({"feature": features, "name": encoder.names, "gain": gain, "splits": splits.astype(int)})


def importance_table(fitted: Sequence[Fitted]) -> pd.DataFrame:
    """Feature by feature the mean gain and splits over the folds' stackers, most gain first: name, gain, splits.

    A feature that a fold lacks counts as 0 there. Components of embeddings differ between folds: only their sum tells.
    """
    tables = pd.concat([fit.model.importances for fit in fitted])
    means = tables.groupby("name", sort=False)[["gain", "splits"]].sum() / len(fitted)
    return means.reset_index().sort_values(["gain", "name"], ascending=[False, True], ignore_index=True)
