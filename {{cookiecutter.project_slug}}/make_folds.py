"""Check the competition's data and freeze the folds.

    python make_folds.py              check, then write folds.csv and print the fold card
    python make_folds.py --check      only check (folds.csv, too, and the machine); exit code 2 if there are errors
    python make_folds.py --verify     hash and score every file of all runs again, or of those that are named

Reads data/*.csv, the images and competition.yaml; writes folds.csv, and what it found to data_check.json. Put
folds.csv under version control: every result carries its sha256, and runs made with other folds are refused.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

import competition
from kfold.artifacts import Workspace, refuse_odd_name
from kfold.config import Competition, load_competition
from kfold.data.assign import choose_scheme, make_folds
from kfold.data.card import fold_card
from kfold.data.check import Check, check_data
from kfold.data.folds import Folds, cut_groups, read_folds, take_rows
from kfold.data.tables import read_table, read_test_ids
from kfold.doctor import CHECKS, examine
from kfold.ensemble.pseudo_rounds import Data
from kfold.errors import UserError, one_line, run_stage
from kfold.files import atomic_write
from kfold.report.tables import cv_table
from kfold.seals import check_seals
from kfold.submission import make_form

ROOT = Path(__file__).resolve().parent


def main(root: Path = ROOT, overwrite: bool = False, check_only: bool = False) -> None:
    """Write folds.csv unless it is there. Raises UserError that lists every error of the data."""
    workspace = Workspace(root)
    facts = load_competition(workspace.competition_path)
    exists = workspace.folds_path.exists()
    if exists and not (overwrite or check_only):
        print(f"{workspace.folds_path} is already there, nothing to do (--overwrite makes it anew)")
        print("next: python train.py --fold 0")
        return
    data = check_data(workspace, facts, competition.decode_targets)
    content = b""
    with data.collect():
        if data.targets is not None:
            content = make_folds(data.table, data.targets, data.duplicate_group, facts)
    check_sample(data, workspace, facts)
    if exists and check_only:
        check_folds(data, workspace, facts)
    if check_only:
        machine = examine(root, CHECKS)
        data.errors += machine.errors
        data.warnings += machine.warnings
        data.notes += machine.notes
    keep_findings(data, workspace)
    report(data)
    if check_only:
        print("the check of data and machine found no errors")
        print(f"next: python {'train.py --fold 0' if exists else 'make_folds.py'}")
        return
    if exists and content != workspace.folds_path.read_bytes():
        print(
            "warning: the folds change: runs made with the old ones will be refused, train them again", file=sys.stderr
        )
    atomic_write(workspace.folds_path, content)
    folds = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    print(fold_card(folds, competition.decode_targets(folds.table, facts), choose_scheme(facts)))
    print("next: python train.py --fold 0")


def check_sample(data: Check, workspace: Workspace, facts: Competition) -> None:
    """Note a metric that does not fit the task, and warn of a sample submission that submit.py could not follow."""
    path = workspace.data_path(facts, facts.sample_submission_csv)
    with data.collect():
        metric = competition.metric(facts)
        if data.targets is None or not path.exists():
            return
        try:
            make_form(read_table(path, [facts.id_column]), data.targets, facts.task, metric, facts.id_column)
        except UserError as error:
            data.warnings += [line for line in error.problems if not line.startswith(str(path))]  # these are said


def check_folds(data: Check, workspace: Workspace, facts: Competition) -> None:
    """Compare folds.csv with the data as they are now."""
    with data.collect():
        folds: Folds = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
        if data.table is None:
            return
        fold_of = dict(zip(folds.ids, folds.fold, strict=True))
        found = [fold_of.get(image_id, -1) for image_id in data.table[facts.id_column]]
        for group in cut_groups(data.duplicate_group, found):
            data.warnings.append(f"folds.csv: copies of image '{group}' lie in several folds: make it anew --overwrite")


def keep_findings(data: Check, workspace: Workspace) -> None:
    """Write what was found for report.py; nothing where the tables could not be read."""
    if data.table is None:
        return
    kinds = {"errors": data.errors, "warnings": data.warnings, "notes": data.notes}
    lines = {kind: [workspace.without_root(one_line(line)) for line in found] for kind, found in kinds.items()}
    checked_at = datetime.now().isoformat(sep=" ", timespec="minutes")
    atomic_write(workspace.data_check_path, json.dumps({"checked_at": checked_at, **lines}, indent=1) + "\n")


def verify(runs: Sequence[str] = (), root: Path = ROOT) -> None:
    """Prove that runs (default: all) are what they say. Raises UserError that lists every problem of all of them."""
    from kfold.verify import read_settings, verify_run, verify_shared  # here: loads torch, which folds can spare

    workspace = Workspace(root)
    facts = load_competition(workspace.competition_path)
    runs = runs or sorted(path.parent.name for path in workspace.runs_dir.glob("*/config.yaml"))
    if not runs:
        raise UserError(f"{workspace.runs_dir}: no runs yet: run train.py first")
    problems = verify_shared(workspace)
    for run in runs:
        refuse_odd_name(run)
        if not workspace.run_dir(run).is_dir():
            problems.append(
                f"run {run}: no such run in {workspace.runs_dir}: there are {', '.join(workspace.run_names())}"
            )
            continue
        try:
            settings = read_settings(workspace, run)
            data = read_data(workspace, facts, settings.limit)
        except UserError as error:
            problems += error.problems + check_seals(workspace.run_dir(run))[1]
            continue
        found = verify_run(workspace, run, settings, data)
        problems += found.problems
        for line in found.notes:
            print(line)
        what = f"run {run}: {found.num_folds} folds, {found.num_files} files, {found.num_ids} ids"
        print(f"{what}: {f'{len(found.problems)} problems' if found.problems else 'all verified'}")
        if found.scores:
            print(cv_table(data.metric.name, found.scores))
    if problems:
        raise UserError(list(dict.fromkeys(problems)))  # what belongs to all runs is told once


def read_data(workspace: Workspace, facts: Competition, limit: int) -> Data:
    """The rows that a run was made with, as its stages read them."""
    every = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    folds = take_rows(every, limit)
    test_csv, sample_csv = (workspace.data_path(facts, name) for name in (facts.test_csv, facts.sample_submission_csv))
    test_ids = np.array(read_test_ids(test_csv, sample_csv, facts.id_column), object)
    targets = competition.decode_targets(folds.table, facts)
    return Data(facts, folds, targets, competition.metric(facts), test_ids, every.ids)


def report(data: Check) -> None:
    """Print notes and warnings. Raises UserError with all errors."""
    for line in data.notes:
        print(one_line(line))
    for line in data.warnings:
        print(f"warning: {one_line(line)}", file=sys.stderr)
    if data.errors:
        raise UserError(data.errors)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only check data, folds.csv if there, machine")
    parser.add_argument("--overwrite", action="store_true", help="make folds.csv anew")
    parser.add_argument("--verify", nargs="*", metavar="RUN", help="prove that runs (default: all) are what they say")
    arguments = parser.parse_args()
    if arguments.verify is not None:
        run_stage(lambda: verify(arguments.verify))
    else:
        run_stage(lambda: main(overwrite=arguments.overwrite, check_only=arguments.check))
