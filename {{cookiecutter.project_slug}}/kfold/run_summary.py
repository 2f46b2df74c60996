"""What the folds of a run come to together: their table and, once all are there, the run's row of the ledger."""

import numpy as np

from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import Competition, Config, load_config, settings_hash
from kfold.data.folds import Folds
from kfold.data.targets import Targets
from kfold.intervals import score_folds
from kfold.ledger import read_ledger, record_run
from kfold.metrics import Metric
from kfold.report.tables import cv_table, fold_table
from kfold.settings import difference
from kfold.tracking import Subject, telling


def tracked_part(workspace: Workspace, facts: Competition, config: Config, run: str, part: str, stamp: str) -> Subject:
    settings = config.model_dump(mode="json")
    stamp = f"{settings_hash(config)} {stamp}"
    return Subject(workspace.tracking_dir, facts.project_name, run, part, settings, stamp)


def describe_trained(workspace: Workspace, run: str, num_folds: int, metric_name: str) -> str:
    """The scores of the folds that are trained, and what to do about the others."""
    numbers = workspace.trained_folds(run)
    scores = {number: artifacts.read_manifest(workspace.fold_dir(run, number))["score"] for number in numbers}
    others = ", ".join(str(number) for number in range(num_folds) if number not in numbers)
    return f"\n{fold_table(metric_name, scores)}\nnext: the same command with --fold all (fold {others} to train)"


def summarize_run(
    workspace: Workspace,
    run: str,
    facts: Competition,
    config: Config,
    folds: Folds,
    targets: Targets,
    metric: Metric,
    trained: bool,
) -> None:
    """Print the table of the folds that are trained; once all are there, add the run's row to the ledger if a fold was
    trained now, or it has none."""
    if workspace.trained_folds(run) != list(range(folds.num_folds)):
        print(describe_trained(workspace, run, folds.num_folds, metric.name))
        return
    manifests = [artifacts.read_manifest(workspace.fold_dir(run, number)) for number in range(folds.num_folds)]
    if not all("oof.parquet" in manifest["files"] for manifest in manifests):
        print(f"run {run}: its predictions were interrupted; next: python predict.py --run {run}")
        return
    oof = artifacts.read_oof(workspace, run, folds.ids, folds.fold, folds.stamp)
    scores = score_folds(metric, targets.values, oof.aligned_to(folds.ids), folds.fold, folds.group_or_none)
    origin = f"weights={oof.stamps['weights']}, tta={oof.stamps['tta']}"
    print(f"\nrun {run}, out of fold, {origin}:\n{cv_table(metric.name, scores)}")
    if config.select == "best":
        print("  optimistic: select=best chose the epoch on the fold that it is scored on; select=last does not")
    if config.early_stopping:
        print("  optimistic: early_stopping chose the length on the fold that is scored; early_stopping=0 does not")
    if trained or run not in {row["run"] for row in read_ledger(workspace.ledger_path)}:  # killed before its row
        baseline_path = workspace.run_config_path("baseline")
        baseline = load_config(baseline_path) if baseline_path.exists() else Config()
        speeds = [manifest["images_per_second"] for manifest in manifests]
        row = {
            "run": run,
            "config_difference": difference(config, baseline),
            "metric": metric.name,
            "oof": scores.pooled,
            "oof_low": scores.low,
            "oof_high": scores.high,
            "fold_scores": " ".join(f"{score:.5f}" for score in scores.by_fold.values()),
            "minutes": round(sum(manifest["minutes"] for manifest in manifests), 2),
            "images_per_second": round(float(np.mean(speeds)), 1),
        }
        record_run(workspace.ledger_path, row)
        numbers = {name: row[name] for name in ("oof", "oof_low", "oof_high", "minutes")}
        subject = tracked_part(workspace, facts, config, run, "summary", f"{folds.stamp} {row['oof']}")
        with telling(config.tracker, subject) as tell:
            tell(numbers, config.epochs)
    print(f"next: python predict.py --run {run}")
