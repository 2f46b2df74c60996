"""Linear stackers on log probabilities: a pool with one weight a run, and regressions with one a run and class."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from kfold.config import Task
from kfold.ensemble.blend import SMALLEST, weights_text
from kfold.ensemble.second_level import Fitted, Rows
from kfold.metrics import Metric

PENALTY = 1e-4  # of the pool's weights away from equal ones, and of its biases away from 0
ALPHAS = np.logspace(-3, 3, 13)  # ridge penalties to choose from


def log_linear_pool(rows: Rows, targets: np.ndarray, task: Task, metric: Metric) -> Fitted:
    """One weight a run and one bias a class on log probabilities (binary, multilabel: on logits), by least log loss.

    The logarithmic opinion pool with free weights: Genest and Zidek, Combining Probability Distributions, Statistical
    Science 1986. Weights may leave the simplex: their sum sharpens or softens all predictions. `model`: (weights (M,),
    biases (C,)).
    """
    scores = to_scores(rows.predictions, task)
    num_runs, _, num_columns = scores.shape
    flat = scores.reshape(num_runs, -1)  # a matrix product is many times faster than einsum
    equal = np.full(num_runs, 1 / num_runs)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, biases = parameters[:num_runs], parameters[num_runs:]
        pooled = (weights @ flat).reshape(targets.shape) + biases
        value, slope = log_loss_and_slope(pooled, targets, task)
        away = weights - equal
        value += PENALTY * (away @ away + biases @ biases)
        by_weight = flat @ slope.ravel() + 2 * PENALTY * away
        return value, np.concatenate([by_weight, slope.sum(axis=0) + 2 * PENALTY * biases])

    start = np.concatenate([equal, np.zeros(num_columns)])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    weights, biases = found[:num_runs], found[num_runs:]

    def predict(rows: Rows) -> np.ndarray:
        pooled = np.einsum("m,mnc->nc", weights, to_scores(rows.predictions, task)) + biases
        probabilities = softmax(pooled, axis=1) if task == "multiclass" else expit(pooled)
        return np.clip(probabilities, SMALLEST, 1 - SMALLEST).astype(np.float32)  # float32 would round some to 1

    return Fitted(predict, weights_text(weights), (weights, biases))


def to_scores(predictions: np.ndarray, task: Task) -> np.ndarray:
    """Log probabilities (binary, multilabel: logits), float64, of predictions (M, N, C)."""
    probabilities = np.clip(predictions.astype(np.float64), SMALLEST, 1 - SMALLEST)
    return np.log(probabilities) if task == "multiclass" else logit(probabilities)


def log_loss_and_slope(scores: np.ndarray, targets: np.ndarray, task: Task) -> tuple[float, np.ndarray]:
    """Mean log loss over rows (binary, multilabel: cells) of scores (N, C), and its gradient (N, C)."""
    if task == "multiclass":
        logs = log_softmax(scores, axis=1)
        return float(-(targets * logs).sum() / len(scores)), (np.exp(logs) - targets) / len(scores)
    losses = np.logaddexp(0, scores) - targets * scores
    return float(losses.mean()), (expit(scores) - targets) / scores.size


def linear(rows: Rows, targets: np.ndarray, task: Task, metric: Metric) -> Fitted:
    """Logistic regression on all runs' log probabilities, or ridge regression on their values; inputs standardised.

    Multilabel: one a label. A class that the rows lack gets 1 / (N + classes), as by Laplace's rule of succession: a
    certain 0 would cost the log loss without bound. `model`: scikit-learn's pipelines, or the only class of a column.
    """
    inputs = flatten(rows.predictions, task)
    if task == "regression":
        model = make_pipeline(StandardScaler(), RidgeCV(ALPHAS)).fit(inputs, targets)
        note = f"ridge penalty {model[-1].alpha_:.3g}"
        return Fitted(
            lambda rows: (
                model.predict(flatten(rows.predictions, task)).reshape(-1, targets.shape[1]).astype(np.float32)
            ),
            note,
            model,
        )
    if task == "multiclass":
        columns, num_classes = [targets.argmax(axis=1)], targets.shape[1]
    else:
        columns, num_classes = list(targets.T.astype(np.int64)), 2
    models = [fit_classes(inputs, column) for column in columns]
    least = 1 / (len(targets) + num_classes)

    def predict(rows: Rows) -> np.ndarray:
        inputs = flatten(rows.predictions, task)
        parts = [class_probabilities(model, inputs, num_classes, least) for model in models]
        return (parts[0] if task == "multiclass" else np.column_stack([part[:, 1] for part in parts])).astype(
            np.float32
        )

    return Fitted(predict, f"{inputs.shape[1]} inputs", models)


def flatten(predictions: np.ndarray, task: Task) -> np.ndarray:
    """(M, N, C) -> (N, M x C) float64: log probabilities, logits, or values."""
    scores = predictions.astype(np.float64) if task == "regression" else to_scores(predictions, task)
    return scores.transpose(1, 0, 2).reshape(predictions.shape[1], -1)


def fit_classes(inputs: np.ndarray, classes: np.ndarray) -> Pipeline | int:
    """A pipeline fitted on class numbers (N,); the number itself where there is but one class."""
    if classes.min() == classes.max():
        return int(classes[0])
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)).fit(inputs, classes)


def class_probabilities(model: Pipeline | int, inputs: np.ndarray, num_classes: int, least: float) -> np.ndarray:
    """(N, num_classes); `least` for each class that the fit never saw, the others scaled to fill the rest."""
    seen = [model] if isinstance(model, int) else model.classes_
    of_seen = 1.0 if isinstance(model, int) else model.predict_proba(inputs)
    probabilities = np.full((len(inputs), num_classes), least)
    probabilities[:, seen] = of_seen * (1 - least * (num_classes - len(seen)))
    return probabilities
