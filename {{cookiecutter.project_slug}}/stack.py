"""Blend the runs and stack LightGBM on them, honestly scored; the simplest method within noise of the best is kept.

Command  python stack.py                 or --runs baseline efficientnet_b0 --name stack --method mean
Reads    runs/<run>/fold<k>/{oof,test}.parquet, folds.csv, the CSVs of data/, the images (their statistics, once),
         embeddings.parquet with --features embeddings
Writes   runs/<name>/fold<k>/: oof.parquet, test.parquet, lightgbm.txt, feature_map.csv, manifest.json (last: "done")
         runs/<name>/: config.yaml, blend.csv, correlation.csv, importance.csv and .png, tuned.json; runs/ledger.csv
         runs/image_statistics_{train,test}.parquet

Every method is fitted on K-1 folds' out-of-fold predictions and scored on the fold that is left: fold k's oof.parquet
and test.parquet come from the fit without fold k. The result is a run like any other: submit it, or stack it again.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import competition
from kfold.artifacts import Workspace
from kfold.config import load_competition
from kfold.data.folds import read_folds
from kfold.data.tables import read_test_ids, shorten
from kfold.ensemble.nested import BEST_SINGLE, METHODS, Comparison, compare, comparison_table, fitting_methods
from kfold.ensemble.second_level import Fitted
from kfold.ensemble.stack_files import Stack, StackFold, find_changes, refuse_name, write_stack
from kfold.ensemble.stack_inputs import FEATURE_GROUPS, fingerprint, is_fitted, read_inputs, read_runs, read_sources
from kfold.ensemble.stack_settings import StackSettings
from kfold.ensemble.tuning import tune
from kfold.errors import UserError, run_stage
from kfold.files import locked
from kfold.intervals import score_folds
from kfold.ledger import record_run
from kfold.report.tables import cv_table
from kfold.runs import OPTIMISM, is_optimistic

ROOT = Path(__file__).resolve().parent
DEFAULT_FEATURES = FEATURE_GROUPS[:-1]  # embeddings need embed.py first


def main(
    runs: Sequence[str] = (),
    name: str = "stack",
    method: str = "auto",
    features: Sequence[str] = DEFAULT_FEATURES,
    embeddings: Path | None = None,
    overwrite: bool = False,
    root: Path = ROOT,
    alone: bool = False,
) -> None:
    """Make the stack `name` of `runs` (default: every finished one but stacks); one that is done is left alone.

    alone: fit `method` without comparing it with the others, as it was chosen before.
    """
    started = time.perf_counter()
    workspace = Workspace(root)
    facts = load_competition(workspace.competition_path)
    refuse_name(workspace, name)

    folds = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    targets = competition.decode_targets(folds.table, facts)
    metric = competition.metric(facts)
    test_csv, sample_csv = (workspace.data_path(facts, name) for name in (facts.test_csv, facts.sample_submission_csv))
    test_ids = np.array(read_test_ids(test_csv, sample_csv, facts.id_column), object)
    oof = read_runs(workspace, runs, name, folds, targets, facts)
    fitted_runs, optimistic = find_doubtful(workspace, list(oof))
    methods = fitting_methods(facts.task, len(oof), bool(fitted_runs))
    refuse_wishes(method, features, methods)
    methods = [one for one in methods if one == method or not alone]
    features = [group for group in FEATURE_GROUPS if group in features or (group == "embeddings" and embeddings)]
    sources = read_sources(workspace, facts, folds, test_ids, features, embeddings or workspace.embeddings_path)
    made_of = {"runs": " ".join(oof), "method": method, "features": " ".join(features), "metric": metric.name}
    made_of |= fingerprint(workspace, facts, folds, targets, list(oof), sources)

    with ExitStack() as locks:
        for number in range(folds.num_folds):
            locks.enter_context(locked(workspace.fold_dir(name, number)))
        if is_up_to_date(name, None if overwrite else find_changes(workspace, name, folds.num_folds, made_of)):
            return
        print(f"stack {name}: {len(methods)} methods on {', '.join(oof)}", flush=True)
        inputs = read_inputs(workspace, facts, folds, targets, oof, sources, features)
        groups = folds.group_or_none
        comparison = compare(inputs.rows, list(oof), targets.values, facts.task, metric, groups, methods, optimistic)
        chosen = comparison.chosen if method == "auto" else method
        print(comparison_table(comparison, metric.name))
        if chosen != comparison.chosen:
            print(f"{chosen} is taken, as asked for; by itself it would be {comparison.chosen}")
        nested, fitted = take_method(comparison, chosen, oof)
        settings = StackSettings(stack_of=tuple(oof), method=chosen, asked=method, features=tuple(features))
        tuned = tune(facts.task, metric, nested, targets.values, folds.fold, groups, targets.names)
        print(tuned.describe())
        trees = comparison.fitted.get("lightgbm", {})
        parts = []
        for number in range(folds.num_folds):
            test = fitted[number].predict(inputs.test_rows(number))
            parts.append(StackFold(number, fitted[number], nested[folds.fold == number], test, trees.get(number)))
        stack = Stack(workspace, name, settings, facts, folds, targets, metric, test_ids, made_of)
        minutes = (time.perf_counter() - started) / 60
        write_stack(stack, parts, comparison.table, oof, tuned, minutes)
        summarize(stack, nested, minutes)


def is_up_to_date(name: str, changes: Sequence[str] | None) -> bool:
    """Whether the stack is done, and of these runs; it is said. changes: since it was made; None: it is to be made."""
    if changes == []:
        print(f"stack {name}: done before, of the same runs (--overwrite makes it again)")
        print(f"next: python submit.py --run {name}")
        return True
    if changes:
        print(f"stack {name}: made again, because these changed: {', '.join(shorten(changes, limit=5))}")
    return False


def find_doubtful(workspace: Workspace, runs: Sequence[str]) -> tuple[list[str], list[str]]:
    """The runs that were fitted on out-of-fold rows, and those whose score is optimistic; both are said."""
    fitted_runs = [run for run in runs if is_fitted(workspace, run)]
    optimistic = [run for run in runs if is_optimistic(workspace, run)]
    if fitted_runs:
        print(
            f"{', '.join(fitted_runs)}: fitted on out-of-fold rows already; what is fitted on top could not be scored "
            f"nested, so only means are offered (name the runs that it is made of for the others)"
        )
    for run in optimistic:
        print(f"run {run}: {OPTIMISM}; blends with it are a little optimistic, too")
    return fitted_runs, optimistic


def refuse_wishes(method: str, features: Sequence[str], methods: Sequence[str]) -> None:
    known = ["auto", BEST_SINGLE, *methods]
    if method not in known:
        reason = "does not fit this task and these runs" if method in METHODS else "unknown"
        raise UserError(f"--method {method}: {reason}: choose {', '.join(known)}")
    for group in features:
        if group not in FEATURE_GROUPS:
            raise UserError(f"--features {group}: unknown: choose of {', '.join(FEATURE_GROUPS)}")


def take_method(
    comparison: Comparison, chosen: str, oof: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, Mapping[int, Fitted]]:
    """Nested predictions (N, C) of the chosen method, and its fits by fold."""
    if chosen != BEST_SINGLE:
        return comparison.nested[chosen], comparison.fitted[chosen]
    place = list(oof).index(comparison.best_single)
    fitted = Fitted(lambda rows: rows.predictions[place], f"run {comparison.best_single} alone")
    return oof[comparison.best_single], defaultdict(lambda: fitted)


def summarize(stack: Stack, nested: np.ndarray, minutes: float) -> None:
    """Print the table of all folds, and write the stack's row of the ledger."""
    settings, name, metric = stack.settings, stack.name, stack.metric
    scores = score_folds(metric, stack.targets.values, nested, stack.folds.fold, stack.folds.group_or_none)
    origin = "chosen as the best on these rows" if settings.method == BEST_SINGLE else "nested"
    print(f"\nstack {name}, {settings.method}, out of fold, {origin}:\n{cv_table(metric.name, scores)}")
    row = {
        "run": name,
        "config_difference": f"stack of {' '.join(settings.stack_of)}: method={settings.method}",
        "metric": metric.name,
        "oof": scores.pooled,
        "oof_low": scores.low,
        "oof_high": scores.high,
        "fold_scores": " ".join(f"{score:.5f}" for score in scores.by_fold.values()),
        "minutes": round(minutes, 2),
    }
    record_run(stack.workspace.ledger_path, row)
    print(f"next: python submit.py --run {name}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=[], help="folders of runs/ (default: all finished, but stacks)")
    parser.add_argument("--name", default="stack", help="name of the stack (default: stack)")
    parser.add_argument("--method", default="auto", help=f"auto (default), {BEST_SINGLE}, {', '.join(METHODS)}")
    parser.add_argument(
        "--features", nargs="+", default=list(DEFAULT_FEATURES), help="of LightGBM: " + ", ".join(FEATURE_GROUPS)
    )
    parser.add_argument("--embeddings", type=Path, help="a file of embed.py (default with --features embeddings)")
    parser.add_argument("--overwrite", action="store_true", help="make it again though it is done")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    run_stage(
        lambda: main(
            arguments.runs,
            arguments.name,
            arguments.method,
            arguments.features,
            arguments.embeddings,
            arguments.overwrite,
        )
    )
