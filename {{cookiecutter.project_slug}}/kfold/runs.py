"""Which run to go on with, and its predictions in the order of the rows and the targets at hand."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import Task
from kfold.data.folds import Folds
from kfold.data.targets import Targets
from kfold.ensemble.tuning import Tuned, read_tuned
from kfold.errors import UserError
from kfold.intervals import paired_difference, simplest_within_noise, verdict
from kfold.metrics import Metric
from kfold.predictions import Predictions
from kfold.seals import refuse_broken_seal
from kfold.strict_yaml import read_yaml

OPTIMISM = (
    "its score is optimistic, its epochs were chosen on these rows "
    "(not so with predict.py --weights last of a run without early_stopping)"
)


def run_limit(workspace: Workspace, run: str) -> int:
    """Rows that a trial run was made with; 0: all. Raises UserError when there is no such run."""
    if not workspace.run_config_path(run).exists():
        names = ", ".join(workspace.run_names())
        found = f"there are {names}" if names else "there is no finished run yet: run train.py"
        raise UserError(f"run '{run}': no such run in {workspace.runs_dir}: {found}")
    path = workspace.run_config_path(run)
    return limit_of(read_yaml(path), path)


def limit_of(settings: Mapping[str, object], path: Path) -> int:
    """`limit` of a run's settings, which were read from `path`. Raises UserError for what no stage writes."""
    limit = settings.get("limit", 0)
    if type(limit) is not int or limit < 0:
        raise UserError(f"{path}: damaged, its limit is no number of rows: make the run again with --overwrite")
    return limit


def choose_run(
    workspace: Workspace, folds: Folds, targets: Targets, task: Task, metric: Metric
) -> tuple[str, list[str]]:
    """The finished run with the best pooled out-of-fold score, and a line on each other run.

    A run of fewer models is preferred where the best, a stack, does not beat it beyond noise. Runs that are unfinished
    or rejected, or whose OOF files cannot be trusted, are left out by name. Raises UserError when none is left.
    """
    candidates, lines = read_candidates(workspace, folds, targets, task)
    if not candidates:
        raise UserError(lines or f"{workspace.runs_dir}: no finished run: run train.py and predict.py first")
    honest = {run: oof for run, oof in candidates.items() if not is_optimistic(workspace, run)}
    if honest:
        lines += [f"run {run} is left out: {OPTIMISM}" for run in candidates if run not in honest]
        candidates = honest
    sizes = {run: num_models(workspace, run) for run in candidates}
    best_first = sort_by_score(candidates, targets, metric)
    simplest_first = sorted(best_first, key=lambda run: sizes[run])  # stable: the best first among equals
    in_order = {run: candidates[run] for run in simplest_first}
    chosen = simplest_within_noise(metric, targets.values, in_order, folds.group_or_none)
    for run in candidates:
        if run != chosen:
            difference = paired_difference(
                metric, targets.values, candidates[chosen], candidates[run], folds.group_or_none
            )
            gain, low, high = difference
            simpler = f", and fewer models are simpler ({sizes[chosen]} against {sizes[run]} a fold)"
            lines.append(
                f"run {chosen} is chosen; minus {run} {gain:+.5f}, 95% interval {low:+.5f} to {high:+.5f}: "
                + verdict(metric, difference)
                + (simpler if best_first.index(run) < best_first.index(chosen) else "")
            )
    return chosen, lines


def best_trained_run(
    workspace: Workspace, folds: Folds, targets: Targets, task: Task, metric: Metric
) -> str | None:  # fmt: skip
    """The run with the best pooled OOF score among those that are no stacks; None where there is none."""
    candidates, _ = read_candidates(workspace, folds, targets, task, with_stacks=False)
    return next(iter(sort_by_score(candidates, targets, metric)), None)


def read_candidates(
    workspace: Workspace, folds: Folds, targets: Targets, task: Task, with_stacks: bool = True
) -> tuple[dict[str, np.ndarray], list[str]]:
    """OOF predictions (N, C) of the runs that can be submitted or stacked, and a line on each that cannot."""
    candidates, lines = {}, []
    for run in workspace.run_names():
        try:
            if artifacts.stack_of(workspace, run) and not with_stacks:
                continue
            refuse_rejected(workspace, run)
            refuse_unfinished(workspace, run, sorted(set(folds.fold.tolist())))
            candidates[run] = read_oof_values(workspace, run, folds, targets, task)
        except UserError as error:
            lines += [f"run {run} is left out: {problem}" for problem in error.problems]
    return candidates, lines


def sort_by_score(candidates: Mapping[str, np.ndarray], targets: Targets, metric: Metric) -> list[str]:
    """Names, the best pooled score first; equal ones in their order, undefined ones last."""
    scores = {run: metric.function(targets.values, oof) for run, oof in candidates.items()}
    sign = -1 if metric.greater_is_better else 1
    return sorted(scores, key=lambda run: (np.isnan(scores[run]), sign * np.nan_to_num(scores[run])))


def num_models(workspace: Workspace, run: str) -> int:
    """Trained runs that a run stands on: 1, or those of a stack, each counted once."""
    within = artifacts.runs_within(workspace, run)
    return sum(not artifacts.stack_of(workspace, name) for name in within)


def is_optimistic(workspace: Workspace, run: str) -> bool:
    """Whether the run, or one that it stands on, predicts with epochs that were chosen on the rows it is scored on."""
    return any(
        knows_its_rows(artifacts.read_manifest(workspace.fold_dir(name, fold)) or {})
        for name in artifacts.runs_within(workspace, run)
        for fold in workspace.trained_folds(name)
    )


def knows_its_rows(manifest: Mapping) -> bool:
    """Whether the fold's model was the best epoch of these rows, or stopped by them."""
    return manifest.get("kind") == "best" or bool(manifest.get("length_from_validation"))


def refuse_rejected(workspace: Workspace, run: str) -> None:
    """Raise UserError for a round of pseudo-labels that gained nothing beyond noise."""
    path = workspace.round_path(run)
    if not path.exists():
        if read_yaml(workspace.run_config_path(run)).get("pseudo_from"):
            raise UserError("its round of pseudo-labels is not judged: run pseudo_label.py again")
        return
    refuse_broken_seal(path)
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))["kept"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged: run pseudo_label.py for this round again with --overwrite") from None
    if not kept:
        raise UserError("its round of pseudo-labels gained nothing beyond noise (name it to take it all the same)")


def refuse_half_made_stack(workspace: Workspace, run: str, folds: Sequence[int]) -> None:
    parts = artifacts.stack_of(workspace, run)
    if parts and not set(folds) <= set(workspace.trained_folds(run)):
        raise UserError(f"this stack was not finished: run stack.py --name {run} --runs {' '.join(parts)}")


def refuse_stale_stack(workspace: Workspace, run: str) -> None:
    """Raise UserError for a stack of predictions that were made again since."""
    folds = workspace.trained_folds(run)
    made_of = (artifacts.read_manifest(workspace.fold_dir(run, folds[0])) or {}).get("made_of", {}) if folds else {}
    for key, sha256 in made_of.items():
        if match := re.fullmatch(r"run (\S+), fold (\d+), (\S+)", key):
            manifest = artifacts.read_manifest(workspace.fold_dir(match[1], int(match[2])))
            if manifest and manifest["files"].get(match[3], {}).get("sha256") != sha256:
                raise UserError(f"run {run}: {key} is another one since this stack was made: run stack.py --name {run}")


def refuse_unfinished(workspace: Workspace, run: str, folds: Sequence[int]) -> None:
    """Raise UserError unless the run has test predictions of every fold, from training on all rows."""
    limit = run_limit(workspace, run)
    refuse_half_made_stack(workspace, run, folds)
    refuse_stale_stack(workspace, run)
    if limit:
        raise UserError(f"a trial run on {limit} rows: train it on all (submit.py --run {run} takes it all the same)")
    for fold in folds:
        manifest = artifacts.read_manifest(workspace.fold_dir(run, fold))
        if manifest is None:
            raise UserError(f"fold {fold} is not trained: run train.py --fold {fold}")
        if workspace.predictions_path(run, fold, "test").name not in manifest["files"]:
            raise UserError(f"fold {fold} has no test predictions: run predict.py --run {run}")


def read_oof_values(workspace: Workspace, run: str, folds: Folds, targets: Targets, task: Task) -> np.ndarray:
    """All OOF predictions of a run, (N, C) in the order of folds.ids and targets.names."""
    refuse_half_made_stack(workspace, run, sorted(set(folds.fold.tolist())))
    predictions = artifacts.read_oof(workspace, run, folds.ids, folds.fold, folds.stamp)
    return by_name(predictions, run, targets, task, folds.ids)


def read_test_values(
    workspace: Workspace, run: str, folds: Folds, targets: Targets, task: Task, ids: Sequence[str]
) -> np.ndarray:
    """The mean over all folds of a run's test predictions, (len(ids), C) in the order of ids and targets.names."""
    numbers = sorted(set(folds.fold.tolist()))
    predictions = artifacts.read_test(workspace, run, numbers, np.array(ids, dtype=object), folds.stamp)
    return by_name(predictions, run, targets, task, ids)


def read_test_by_fold(
    workspace: Workspace, run: str, folds: Folds, targets: Targets, task: Task, ids: Sequence[str]
) -> dict[int, np.ndarray]:
    """A run's test predictions fold by fold, each (len(ids), C) by that fold's own model."""
    numbers, wanted = sorted(set(folds.fold.tolist())), np.array(ids, dtype=object)
    parts = [artifacts.read_trusted(workspace, run, number, "test", folds.stamp, wanted) for number in numbers]
    artifacts.refuse_mixed(parts, run)
    return {number: by_name(part, run, targets, task, ids) for number, part in zip(numbers, parts, strict=True)}


def read_full_fit_values(
    workspace: Workspace, run: str, folds: Folds, targets: Targets, task: Task, ids: Sequence[str]
) -> np.ndarray:
    """Test predictions (len(ids), C) of the model that was fitted on all rows."""
    artifacts.refuse_stack(workspace, run)
    if not workspace.has_full_fit(run):
        raise UserError(f"run {run}: no full-data fit: run train.py --fold all-data and predict.py for it first")
    wanted = np.array(ids, dtype=object)
    predictions = artifacts.read_trusted(workspace, run, artifacts.ALL_DATA, "test", folds.stamp, wanted)
    return by_name(predictions, run, targets, task, ids)


def read_run_tuned(workspace: Workspace, run: str, folds: Folds, targets: Targets, task: Task, metric: Metric) -> Tuned:
    """The run's tuning; neutral where it has none. Raises UserError when it was fitted for other columns or another
    metric."""
    text = artifacts.read_tuned_text(workspace, run, int(folds.fold.min()))
    if not text:
        return Tuned(task=task, names=targets.names)
    path = workspace.tuned_path(run)
    tuned = read_tuned(text, str(path))
    if (tuned.task, tuned.names) != (task, targets.names):
        raise UserError(f"{path}: fitted for other targets than competition.yaml and train.csv now give: stack again")
    if not tuned.is_neutral and tuned.metric != metric.name:
        raise UserError(f"{path}: tuned for {tuned.metric}, the metric is {metric.name} now: run stack.py --name {run}")
    return tuned


def by_name(predictions: Predictions, run: str, targets: Targets, task: Task, ids: Sequence[str]) -> np.ndarray:
    found = predictions.stamps.get("task")
    if found != task or set(predictions.names) != set(targets.names):
        raise UserError(
            f"run {run}: its predictions are of task {found} with {len(predictions.names)} columns, competition.yaml "
            f"and train.csv now give {task} with {len(targets.names)}: train it again"
        )
    return predictions.aligned_to(ids)[:, [predictions.names.index(name) for name in targets.names]]
