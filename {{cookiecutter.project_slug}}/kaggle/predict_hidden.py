"""Predict the hidden test images with the runs of a bundle, in the time that is left; for the inference notebook.

Command  python kaggle/predict_hidden.py --time-limit 8h30m --spent 40s, in /kaggle/temp/repository
Reads    bundle.json, runs/<run>/ (settings, weights, out-of-fold predictions), the competition's test images
Writes   runs/<run>/fold<k>/test.parquet and the fold's manifest, plan.json: which runs were predicted

The hidden test set may have other images, ten times as many, or three: everything on test rows is made anew. Where the
time does not suffice, views at test time are dropped, then the models that help least.
"""
# ruff: noqa: E402

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import competition
from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import load_competition
from kfold.data.folds import read_folds
from kfold.data.tables import read_test_ids
from kfold.engines.held import Held, memory_for_models
from kfold.errors import run_stage
from kfold.files import atomic_write
from kfold.inference import predict_test
from kfold.kaggle import hidden_rows
from kfold.kaggle.budget import SHARE, Cost, Planned, fit_into, order_by_use, total
from kfold.kaggle.inputs import KaggleTree
from kfold.kaggle.repository import read_marker
from kfold.prediction_files import put_priors
from kfold.prediction_job import Job
from kfold.runs import read_oof_values
from kfold.stopping import describe_seconds, parse_seconds
from kfold.training.precision import choose_device


def main(tree: KaggleTree, time_limit: str = "", spent: str = "0s") -> None:
    """test.parquet of each fold of the runs that fit into the time. spent: what earlier cells took."""
    workspace, marker = Workspace(tree.repository), read_marker(tree.repository)
    jobs, useful_first = open_runs(workspace, marker)
    num_images = len(next(iter(jobs.values())).test_ids)
    planned = [Planned(run, True, 0.0) for run in useful_first]
    if time_limit and num_images > hidden_rows.NUM_TIMED:
        left = max(0.0, parse_seconds(time_limit) - parse_seconds(spent))
        costs = {run: hidden_rows.measure(jobs[run]) for run in useful_first}
        planned = fit_into(costs, num_images, SHARE * left)
        print("\n".join(describe_plan(costs, planned, num_images, left)))
    pending = [fold for one in planned for fold in hidden_rows.to_predict(jobs[one.run], one.with_views)]
    for fold, test, unreadable in predict_test(pending):
        put_priors(fold, test, unreadable)
        hidden_rows.write_test(fold, test)
    plan = {"predicted": [one.run for one in planned]}
    atomic_write(tree.plan_path, json.dumps(plan) + "\n")
    print(f"{len(planned)} of {len(useful_first)} runs are predicted, {num_images} images each")


def open_runs(workspace: Workspace, marker: Mapping) -> tuple[dict[str, Job], list[str]]:
    """The trained runs of the bundle, ready to predict, and their names, the most useful first."""
    facts = load_competition(workspace.competition_path)
    folds = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    targets, metric = competition.decode_targets(folds.table, facts), competition.metric(facts)
    test_csv, sample_csv = (workspace.data_path(facts, name) for name in (facts.test_csv, facts.sample_submission_csv))
    test_ids = np.array(read_test_ids(test_csv, sample_csv, facts.id_column), object)
    held = Held(memory_for_models(choose_device()))
    runs = [run for run in marker["runs"] if not artifacts.stack_of(workspace, run)]
    oof = {run: read_oof_values(workspace, run, folds, targets, facts.task) for run in runs}
    jobs = {
        run: hidden_rows.open_run(workspace, run, facts, folds, targets, metric, test_ids, held, marker["all_data"])
        for run in runs
    }
    return jobs, order_by_use(oof, targets.values, metric)


def describe_plan(costs: Mapping[str, Cost], planned: Sequence[Planned], num_images: int, left: float) -> list[str]:
    """Lines of a table: the measured speed of each run, and what becomes of it."""
    taken = {one.run: one for one in planned}
    lines = [f"{num_images} images, {describe_seconds(left)} left, {SHARE:.0%} of it for predictions"]
    lines.append(f"  {'run':<24} {'images/s':>9} {'without views':>14} {'forecast':>9}")
    for run, cost in costs.items():
        one = taken.get(run)
        fate = describe_seconds(one.seconds) if one else "left out"
        views = " without views" if one and not one.with_views and cost.plain < cost.with_views else ""
        lines.append(f"  {run:<24} {1 / cost.with_views:>9.1f} {1 / cost.plain:>14.1f} {fate:>9}{views}")
    lines.append(f"  together {describe_seconds(total(planned))}")
    if not planned:
        lines.append("warning: not even one run fits into the time: the prior submission stays")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", default="", help="of the whole notebook, such as 8h30m (default: none)")
    parser.add_argument("--spent", default="0s", help="how much of it is over (default: 0s)")
    arguments = parser.parse_args()
    run_stage(lambda: main(KaggleTree.of_this_machine(), arguments.time_limit, arguments.spent))
