"""The one Python file that you are expected to edit: what this competition does differently from others.

Every stage asks these three functions. Each has a working default; the examples show how others are written.
"""

import pandas as pd

from kfold.config import Competition
from kfold.data import targets
from kfold.data.targets import Targets
from kfold.ensemble.tuning import Tuned
from kfold.metrics import Metric, resolve_metric
from kfold.predictions import PREFIX


def decode_targets(table: pd.DataFrame, facts: Competition) -> Targets:
    """Targets of train.csv's rows. `table`: its columns as text, one row an image.

    Example: the cells say "grade 0" to "grade 4", and the classes should be 0 to 4:

        grades = table["label"].str.removeprefix("grade ")
        return targets.decode(table.assign(label=grades), facts)
    """
    return targets.decode(table, facts)


def metric(facts: Competition) -> Metric:
    """The competition's score, by default the `metric` of competition.yaml.

    Example: accuracy among the three most probable classes; targets are one-hot (N, C), predictions (N, C):

        def top_3_accuracy(targets, predictions):
            best_three = (-predictions).argsort(axis=1)[:, :3]
            return float((best_three == targets.argmax(axis=1)[:, None]).any(axis=1).mean())

        return Metric("top_3_accuracy", top_3_accuracy, greater_is_better=True, takes="probabilities")

    `takes` decides what submit.py writes: "labels", "probabilities", or "values" (regression).
    """
    return resolve_metric(facts.metric, facts.task)


def postprocess(predictions: pd.DataFrame, facts: Competition, tuned: Tuned) -> pd.DataFrame:
    """Last changes to the averaged test predictions: columns `id` and p_<class, label or target>, one row an id.

    By default, what stack.py fitted on out-of-fold predictions (thresholds, cuts between grades, a temperature); most
    runs have none, and stay as they are.
    Keep the ids and the columns. Examples: counts are whole numbers from 0; a class that the rules exclude:

        predictions["p_count"] = predictions["p_count"].round().clip(lower=0)
        predictions["p_background"] = 0.0
    """
    columns = [PREFIX + name for name in tuned.names]
    predictions[columns] = tuned.apply(predictions[columns].to_numpy())
    return predictions
