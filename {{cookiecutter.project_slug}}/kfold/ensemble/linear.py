"""Linear stackers on log probabilities: a pool with one weight a run, and regressions with one a run and class."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
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
    equal = np.full(num_runs, 1 / num_runs)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, biases = parameters[:num_runs], parameters[num_runs:]
        pooled = np.einsum("m,mnc->nc", weights, scores) + biases
        value, slope = log_loss_and_slope(pooled, targets, task)
        away = weights - equal
        value += PENALTY * (away @ away + biases @ biases)
        by_weight = np.einsum("mnc,nc->m", scores, slope) + 2 * PENALTY * away
        return value, np.concatenate([by_weight, slope.sum(axis=0) + 2 * PENALTY * biases])

    start = np.concatenate([equal, np.zeros(num_columns)])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    weights, biases = found[:num_runs], found[num_runs:]

    def predict(rows: Rows) -> np.ndarray:
        pooled = np.einsum("m,mnc->nc", weights, to_scores(rows.predictions, task)) + biases
        return (softmax(pooled, axis=1) if task == "multiclass" else expit(pooled)).astype(np.float32)

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

    Multilabel: one a label. A class that the rows lack keeps the least probability. `model`: scikit-learn's pipelines.
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

    def predict(rows: Rows) -> np.ndarray:
        inputs = flatten(rows.predictions, task)
        parts = [class_probabilities(model, inputs, num_classes) for model in models]
        return (parts[0] if task == "multiclass" else np.column_stack([part[:, 1] for part in parts])).astype(
            np.float32
        )

    return Fitted(predict, f"{inputs.shape[1]} inputs", models)


def flatten(predictions: np.ndarray, task: Task) -> np.ndarray:
    """(M, N, C) -> (N, M x C) float64: log probabilities, logits, or values."""
    scores = predictions.astype(np.float64) if task == "regression" else to_scores(predictions, task)
    return scores.transpose(1, 0, 2).reshape(predictions.shape[1], -1)


def fit_classes(inputs: np.ndarray, classes: np.ndarray):
    """A pipeline fitted on class numbers (N,); the number itself where there is but one class."""
    if classes.min() == classes.max():
        return int(classes[0])
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)).fit(inputs, classes)


def class_probabilities(model, inputs: np.ndarray, num_classes: int) -> np.ndarray:
    """(N, num_classes): also of classes that the fit never saw."""
    probabilities = np.full((len(inputs), num_classes), SMALLEST)
    if isinstance(model, int):
        probabilities[:, model] = 1 - SMALLEST
    else:
        probabilities[:, model.classes_] = model.predict_proba(inputs)
    return probabilities / probabilities.sum(axis=1, keepdims=True)
