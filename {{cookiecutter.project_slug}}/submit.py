"""Write submission.csv from a run's test predictions, check it, and upload it if asked to.

Command  python submit.py                or --run <name> --all-data --output <file> --upload -m "what is new"
Reads    runs/<name>/fold<k>/{oof,test}.parquet (--all-data: all-data/test.parquet), runs/<name>/tuned.json of a stack,
         folds.csv, the CSVs of data/, competition.yaml, competition.py
Writes   submission.csv: first a valid one from the class shares, in case of a stop; the real one takes its place

Without --run: the finished run with the best pooled out-of-fold score; a single run where a stack is no better.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

import competition
from kfold.artifacts import Workspace
from kfold.config import Competition, load_competition
from kfold.data.folds import Folds, read_folds, take_rows
from kfold.data.tables import read_table, read_test_ids
from kfold.data.targets import Targets
from kfold.ensemble.tuning import Tuned
from kfold.errors import UserError, run_stage
from kfold.files import atomic_write
from kfold.intervals import bootstrap_interval, score_folds
from kfold.metrics import Metric
from kfold.predictions import PREFIX
from kfold.report.tables import cv_table
from kfold.runs import (
    OPTIMISM,
    best_trained_run,
    choose_run,
    is_optimistic,
    read_full_fit_values,
    read_oof_values,
    read_run_tuned,
    read_test_values,
    refuse_stale_stack,
    run_limit,
)
from kfold.submission import Form, format_submission, make_form, prediction_table, prior_submission, submission_ids
from kfold.submission_check import check_submission, compare_with_sample, refuse_changed
from kfold.submission_report import changes_since, prediction_mix
from kfold.upload import upload as upload_file

ROOT = Path(__file__).resolve().parent


def main(
    run: str = "",
    output: Path | None = None,
    upload: bool = False,
    message: str = "",
    root: Path = ROOT,
    all_data: bool = False,
    only: str = "",
) -> None:
    """Write and check the submission of `run` (default: the best finished one). only: prior or check, see --only."""
    # Over 60 lines on purpose: the way to a checked file, and what is to be known of it, read top to bottom.
    workspace = Workspace(root)
    facts = load_competition(workspace.competition_path)
    output = output or workspace.submission_path
    refuse_unnamed_full_fit(workspace, run, all_data)
    refuse_raw_data(output, workspace.data_path(facts, ""))
    sample_path = workspace.data_path(facts, facts.sample_submission_csv)

    folds = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    folds = take_rows(folds, run_limit(workspace, run) if run else 0)
    targets = competition.decode_targets(folds.table, facts)
    metric = competition.metric(facts)
    test_ids = read_test_ids(workspace.data_path(facts, facts.test_csv), sample_path, facts.id_column)
    sample = read_table(sample_path, [facts.id_column])
    form = make_form(sample, targets, facts.task, metric, facts.id_column)
    ids = submission_ids(sample[facts.id_column], test_ids)
    if only == "check":
        print(describe_valid(output, form, ids))
        return
    before = secure_valid_file(output, form, targets, ids)
    if only == "prior":
        return

    if not run:
        run, lines = choose_run(workspace, folds, targets, facts.task, metric)
        print("\n".join(lines), end="\n" if lines else "")
    refuse_stale_stack(workspace, run)
    oof = read_oof_values(workspace, run, folds, targets, facts.task)
    scores = score_folds(metric, targets.values, oof, folds.fold, folds.group_or_none)
    score = f"{metric.name} {scores.pooled:.5f}, 95% interval {scores.low:.5f} to {scores.high:.5f}"
    print(f"run {run}, out of fold: {score}" + (f"; {OPTIMISM}" if is_optimistic(workspace, run) else ""))
    tuned = read_run_tuned(workspace, run, folds, targets, facts.task, metric)
    if not tuned.is_neutral:
        print(tuned.describe())

    values = (read_full_fit_values if all_data else read_test_values)(workspace, run, folds, targets, facts.task, ids)
    if all_data:
        print("the submission is of the full-data fit; the scores are those of the folds' models, which saw fewer rows")
    predictions = competition.postprocess(prediction_table(ids, values, targets.names), facts, tuned)
    refuse_changed(predictions, targets.names, ids)
    table = format_submission(predictions, form, ids)
    warnings = replace_checked(output, table, form, ids, before)

    final = predictions.set_index("id").loc[ids, [PREFIX + name for name in targets.names]].to_numpy()
    classes = targets.labels[1:] if facts.task == "binary" else targets.names
    print("\n".join(prediction_mix(facts.task, classes, final, tuned.apply(oof), targets.values)))
    for warning in [*compare_with_sample(sample, form, test_ids), *warnings]:
        print(f"warning: {warning}")
    if before is not None:
        print(f"since the {output.name} of before: {changes_since(before, table, form)}")
    print_hidden_scores(workspace, run, final, folds, targets, facts, metric, ids)
    print(f"\nrun {run}, fold by fold:\n{cv_table(metric.name, scores)}\n")
    print(f"{output}: checked, {len(table)} rows of {','.join(form.columns[:6])} ({form.content})")
    print(hand_over(facts, output, upload, message or f"{run}: out of fold {score}"))


def hand_over(facts: Competition, output: Path, upload: bool, message: str) -> str:
    """Upload the file where that is asked for; what came of it, or how it is done."""
    if upload:
        return upload_file(facts.kaggle_competition, output, message)
    if facts.kaggle_competition:
        return 'next: python submit.py --upload -m "what is new"'
    return f"next: upload {output.name} by hand, or name kaggle_competition in competition.yaml for --upload"


def refuse_unnamed_full_fit(workspace: Workspace, run: str, all_data: bool) -> None:
    if all_data and not run:
        fitted = [name for name in workspace.run_names() if workspace.has_full_fit(name)]
        raise UserError(f"--all-data: say of which --run; with a full-data fit there are {', '.join(fitted) or 'none'}")


def refuse_raw_data(output: Path, data_dir: Path) -> None:
    if output.resolve().is_relative_to(data_dir.resolve()):
        raise UserError(f"{output}: lies among the competition's own files: give --output another folder")


def describe_valid(output: Path, form: Form, ids: list[str]) -> str:
    """A line on a valid file. Raises UserError for any other."""
    problems, warnings = check_submission(output, form, ids)
    if problems:
        raise UserError([problem if str(output) in problem else f"{output}: {problem}" for problem in problems])
    found = f"{output}: valid, {len(ids)} rows of {','.join(form.columns[:6])} ({form.content})"
    return "\n".join([found, *(f"warning: {warning}" for warning in warnings)])


def secure_valid_file(output: Path, form: Form, targets: Targets, ids: list[str]) -> pd.DataFrame | None:
    """See to it that a valid submission lies there before anything can fail; the earlier one, where it is valid."""
    if output.exists():
        problems, _ = check_submission(output, form, ids)
        if not problems:
            return read_table(output, [])
        print(f"{output}: the earlier one is not valid ({problems[0]})")
    prior = prior_submission(targets, form, ids)
    problems, _ = check_submission(prior, form, ids)
    if problems:
        raise UserError(problems)
    write_table(output, prior)
    print(f"{output}: holds a prior submission (means of the training targets) until the real one is ready")
    return None


def replace_checked(
    output: Path, table: pd.DataFrame, form: Form, ids: list[str], before: pd.DataFrame | None
) -> list[str]:
    """Put a table in place if it passes the check, and check the file again; the warnings."""
    problems, warnings = check_submission(table, form, ids)
    if problems:
        kept = "the prior submission" if before is None else "the submission of before"
        raise UserError([*problems, f"{output}: not replaced, still holds {kept}, which is valid"])
    write_table(output, table)
    problems, _ = check_submission(output, form, ids)
    if problems or not read_table(output, []).equals(table):
        raise UserError([*problems, f"{output}: does not read back as it was written: check the disk, run it again"])
    return warnings


def write_table(path: Path, table: pd.DataFrame) -> None:
    atomic_write(path, table.to_csv(index=False, lineterminator="\n"))


def print_hidden_scores(
    workspace: Workspace,
    run: str,
    final: np.ndarray,
    folds: Folds,
    targets: Targets,
    facts: Competition,
    metric: Metric,
    ids: list[str],
) -> None:
    """The score on solution.csv, where there is one, of the submission and of the best run that is no stack."""
    path = workspace.data_path(facts, "solution.csv")
    if not path.exists():
        return
    submissions = {"hidden labels of the demo": final}
    try:
        truth = read_solution(path, folds, targets, facts, ids)
        single = best_trained_run(workspace, folds, targets, facts.task, metric)
        if single not in (None, run):
            values = read_test_values(workspace, single, folds, targets, facts.task, ids)
            untuned = Tuned(task=facts.task, names=targets.names)
            table = competition.postprocess(prediction_table(ids, values, targets.names), facts, untuned)
            columns = [PREFIX + name for name in targets.names]
            submissions[f"the best single run, {single}"] = table.set_index("id").loc[ids, columns].to_numpy()
    except UserError as error:  # the submission is written and good
        print("\n".join(f"warning: no score on hidden labels: {problem}" for problem in error.problems))
        return
    for what, predictions in submissions.items():
        low, high = bootstrap_interval(metric, truth, predictions)
        score = metric.function(truth, predictions)
        print(f"{path}: {metric.name} {score:.5f}, 95% interval {low:.5f} to {high:.5f} ({what})")


def read_solution(path: Path, folds: Folds, targets: Targets, facts: Competition, ids: list[str]) -> np.ndarray:
    """The hidden targets (len(ids), C). Their cells are decoded together with train.csv's. Raises UserError."""
    columns = [facts.id_column, *facts.target_columns]
    solution = read_table(path, columns).set_index(facts.id_column, drop=False)
    if set(solution.index) != set(ids):
        raise UserError(f"{path}: its ids are not those of the test set")
    both = pd.concat([folds.table[columns], solution.loc[ids, columns]], ignore_index=True)
    decoded = competition.decode_targets(both, facts)
    if decoded.names != targets.names:
        raise UserError(f"{path}: has classes that train.csv lacks")
    return decoded.values[-len(ids) :]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="", help="a folder of runs/ (default: the best finished one)")
    parser.add_argument("--output", type=Path, help="where to write (default: submission.csv)")
    parser.add_argument("--all-data", action="store_true", help="submit the full-data fit instead of the folds' models")
    parser.add_argument("--upload", action="store_true", help="submit it with the `kaggle` command")
    parser.add_argument("-m", "--message", default="", help="what Kaggle shows beside it (default: run and score)")
    parser.add_argument(
        "--only",
        choices=["prior", "check"],
        default="",
        help="stop after the first, valid one; or look at what is there",
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: this file's folder)")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    run_stage(
        lambda: main(
            arguments.run,
            arguments.output,
            arguments.upload,
            arguments.message,
            arguments.root,
            arguments.all_data,
            arguments.only,
        )
    )
