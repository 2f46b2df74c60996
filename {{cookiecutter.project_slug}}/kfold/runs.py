"""Which run to go on with, and its predictions in the order of the rows and the targets at hand."""

from collections.abc import Sequence

import numpy as np

from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import Task, read_yaml
from kfold.data.folds import Folds
from kfold.data.targets import Targets
from kfold.errors import UserError
from kfold.intervals import paired_difference
from kfold.metrics import Metric
from kfold.predictions import Predictions


def run_limit(workspace: Workspace, run: str) -> int:
    """Rows that a trial run was made with; 0: all. Raises UserError when there is no such run."""
    if not workspace.run_config_path(run).exists():
        found = ", ".join(workspace.run_names()) or "no finished run yet: run train.py"
        raise UserError(f"run '{run}': no such run in {workspace.runs_dir}: there are {found}")
    return int(read_yaml(workspace.run_config_path(run)).get("limit", 0))


def choose_run(
    workspace: Workspace, folds: Folds, targets: Targets, task: Task, metric: Metric
) -> tuple[str, list[str]]:
    """The finished run with the best pooled out-of-fold score, and a line on each other run.

    Runs that are unfinished, or whose OOF files cannot be trusted, are left out by name. Raises UserError when none is
    left.
    """
    candidates, lines = {}, []
    for run in workspace.run_names():
        try:
            refuse_unfinished(workspace, run, sorted(set(folds.fold.tolist())))
            candidates[run] = read_oof_values(workspace, run, folds, targets, task)
        except UserError as error:
            lines += [f"run {run} is left out: {problem}" for problem in error.problems]
    if not candidates:
        raise UserError(lines or f"{workspace.runs_dir}: no finished run: run train.py and predict.py first")
    scores = {run: metric.function(targets.values, oof) for run, oof in candidates.items()}
    best = next(iter(scores))
    for run in scores:
        best = run if metric.better(scores[run], scores[best]) else best
    for run in candidates:
        if run != best:
            gain, low, high = paired_difference(metric, targets.values, candidates[best], candidates[run], folds.group)
            verdict = "within noise" if low <= 0 <= high else "beyond noise"
            lines.append(
                f"run {best} is chosen; minus {run} {gain:+.5f}, 95% interval {low:+.5f} to {high:+.5f}: {verdict}"
            )
    return best, lines


def refuse_unfinished(workspace: Workspace, run: str, folds: Sequence[int]) -> None:
    """Raise UserError unless the run has test predictions of every fold, from training on all rows."""
    limit = run_limit(workspace, run)
    if limit:
        raise UserError(f"a trial run on {limit} rows: --run {run} submits it all the same")
    for fold in folds:
        manifest = artifacts.read_manifest(workspace.fold_dir(run, fold))
        if manifest is None:
            raise UserError(f"fold {fold} is not trained: run train.py --fold {fold}")
        if workspace.predictions_path(run, fold, "test").name not in manifest["files"]:
            raise UserError(f"fold {fold} has no test predictions: run predict.py --run {run}")


def read_oof_values(workspace: Workspace, run: str, folds: Folds, targets: Targets, task: Task) -> np.ndarray:
    """All OOF predictions of a run, (N, C) in the order of folds.ids and targets.names."""
    predictions = artifacts.read_oof(workspace, run, folds.ids, folds.fold, folds.stamp)
    return by_name(predictions, run, targets, task, folds.ids)


def read_test_values(
    workspace: Workspace, run: str, folds: Folds, targets: Targets, task: Task, ids: Sequence[str]
) -> np.ndarray:
    """The mean over all folds of a run's test predictions, (len(ids), C) in the order of ids and targets.names."""
    numbers = sorted(set(folds.fold.tolist()))
    predictions = artifacts.read_test(workspace, run, numbers, np.array(ids, dtype=object), folds.stamp)
    return by_name(predictions, run, targets, task, ids)


def by_name(predictions: Predictions, run: str, targets: Targets, task: Task, ids: Sequence[str]) -> np.ndarray:
    found = predictions.stamps.get("task")
    if found != task or set(predictions.names) != set(targets.names):
        raise UserError(
            f"run {run}: its predictions are of task {found} with {len(predictions.names)} columns, competition.yaml "
            f"and train.csv now give {task} with {len(targets.names)}: train it again"
        )
    return predictions.aligned_to(ids)[:, [predictions.names.index(name) for name in targets.names]]
