"""Take over runs of a teammate, after checking that they belong to the same folds, ids and targets.

Command  python import_run.py TEAMMATE_DIR          or --runs a b, --as NAME for one, --prefix anna- for several
Reads    TEAMMATE_DIR, a repository or its runs folder, which is not changed; folds.csv, the CSVs of data/
Writes   runs/<name>/ with imported.json (where it comes from), runs/ledger.csv

Every file is hashed, every score computed again by our targets; what does not fit is said at once, all of it, and then
nothing is taken. Without --runs: all trained runs that are finished, no stacks. No pickle is read or copied. What a
check cannot see is whether fold k's model really never saw fold k: that is the teammate's word.
"""

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

import competition
from kfold import artifacts
from kfold.artifacts import ALL_DATA, Workspace
from kfold.config import Competition, Config, load_competition, load_config
from kfold.data.folds import Folds, read_folds, take_rows
from kfold.data.tables import read_test_ids
from kfold.ensemble.pseudo_rounds import Data
from kfold.errors import UserError, one_line, run_stage
from kfold.files import file_sha256, locked, sync
from kfold.intervals import FoldScores
from kfold.ledger import record_run
from kfold.report.tables import cv_table
from kfold.seals import refuse_broken_seal, write_sealed
from kfold.settings import Settings, difference
from kfold.team_checks import check_ancestors, check_run, compare_facts, compare_folds, notes_of, same_code
from kfold.team_files import MANIFEST, copy_run, find_runs_dir, runs_in
from kfold.verify import read_settings

ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Import:
    """One run that lies copied in the staging folder and fits. name: the one that it gets here."""

    run: str
    name: str
    settings: Settings
    manifests: Mapping[int, dict]
    scores: FoldScores
    minutes: float
    notes: Sequence[str]


def main(folder: Path, runs: Sequence[str] = (), name: str = "", prefix: str = "", root: Path = ROOT) -> None:
    """Copy runs of `folder` into runs/, all of them or, with a UserError that lists every problem, none."""
    workspace = Workspace(root)
    facts = load_competition(workspace.competition_path)
    source = find_runs_dir(folder)
    if source.resolve() == workspace.runs_dir.resolve():
        raise UserError(f"{folder}: is this repository itself: name a teammate's")
    names = new_names(workspace, source, facts.num_folds, runs, name, prefix)
    folds = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    if not same_code(source.parent / "competition.py", root / "competition.py"):
        print("note: their competition.py differs from ours: what it makes of targets and predictions may, too")

    with locked(workspace.importing_dir):
        staged = Workspace(workspace.importing_dir)
        shutil.rmtree(staged.runs_dir, ignore_errors=True)  # what a killed import left
        ready, problems = [], []
        for run, new in names.items():
            if was_imported(workspace, source / run, new, folds.num_folds):
                print(f"run {new}: imported before, nothing to do")
                continue
            try:
                ready.append(check(workspace, staged, source, run, new, facts, folds, list(names)))
            except UserError as error:
                problems += [in_words(problem, staged, source, run) for problem in error.problems]
        if problems:
            shutil.rmtree(staged.runs_dir, ignore_errors=True)
            raise UserError(problems)
        for one in ready:
            put_in_place(workspace, staged, source, one, competition.metric(facts).name)
        shutil.rmtree(staged.runs_dir, ignore_errors=True)
    print("next: python stack.py")


def new_names(
    workspace: Workspace, source: Path, num_folds: int, runs: Sequence[str], name: str, prefix: str
) -> dict[str, str]:
    """The runs to take and their names here. Raises UserError for names that are odd, absent or taken."""
    there = runs_in(source)
    if not runs:
        runs = [run for run in there if is_finished_training(source / run, workspace, num_folds)]
        left_out = [run for run in there if run not in runs]
        if left_out:
            print(f"left out, because unfinished or a stack: {one_line(', '.join(left_out))} (--runs names them)")
    if name and (len(runs) != 1 or prefix):
        raise UserError(f"--as {name}: names one run: give --runs with one of {', '.join(there)}, or --prefix")
    names = {run: name or prefix + run for run in runs}
    problems = [f"run {run!r}: not in {source}: there are {', '.join(there)}" for run in runs if run not in there]
    for run, new in names.items():
        try:
            artifacts.refuse_odd_name(run)
            artifacts.refuse_odd_name(new)
            artifacts.refuse_ablation(new)
            if "stack" == new != run:
                raise UserError("--as stack: stack.py puts its results there: take another name")
        except UserError as error:
            problems += error.problems
        is_taken = workspace.run_dir(new).exists() and not workspace.origin_path(new).exists()
        if not problems and is_taken:
            problems.append(f"run {new}: there is one of this name here: take it --as another name, or with --prefix")
    if not names and not problems:
        problems.append(f"{source}: no finished run: name one with --runs to see what it lacks")
    if problems:
        raise UserError(problems)
    return names


def is_finished_training(source: Path, workspace: Workspace, num_folds: int) -> bool:
    """Whether the run's folder looks like one that stack.py would take; `check` looks closer."""
    try:
        load_config(source / "config.yaml")
    except UserError:
        return False  # a stack, or of other code
    names = {workspace.fold_dir("any", number).name for number in range(num_folds)}
    return names <= manifest_digests(workspace, source, num_folds).keys()


def was_imported(workspace: Workspace, source: Path, name: str, num_folds: int) -> bool:
    """Raises UserError where the name was imported from other files."""
    path = workspace.origin_path(name)
    if not path.exists():
        return False
    refuse_broken_seal(path)
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["manifests"]
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{path}: damaged: delete the run's folder, and import it again") from None
    if before == manifest_digests(workspace, source, num_folds):
        return True
    raise UserError(f"run {name}: imported before from other files: take this one --as another name, or delete that")


def manifest_digests(workspace: Workspace, source: Path, num_folds: int) -> dict[str, str]:
    """sha256 of the manifest of each fold in the run's folder."""
    names = [workspace.fold_dir("any", number).name for number in (*range(num_folds), ALL_DATA)]
    return {name: file_sha256(source / name / MANIFEST) for name in names if (source / name / MANIFEST).is_file()}


def check(
    workspace: Workspace,
    staged: Workspace,
    source: Path,
    run: str,
    new: str,
    facts: Competition,
    folds: Folds,
    with_it: Sequence[str],
) -> Import:
    """Copy a run beside ours and look at the copy. Raises UserError that lists all its problems."""
    copied = copy_run(source / run, staged, run, folds.num_folds)
    problems = copied.problems
    try:
        stamps = {manifest["fold_stamp"] for manifest in copied.manifests.values()}
        for stamp in sorted(stamps - {folds.stamp}):
            problems += compare_folds(source.parent / "folds.csv", stamp, folds)
        if problems:
            raise UserError(problems)
        problems, notes = compare_facts(staged, run, facts)
        settings = read_settings(staged, run)
        of_ancestors, more = check_ancestors(workspace, settings, copied.manifests, with_it if new == run else ())
        if problems := problems + of_ancestors:
            raise UserError(problems)
        data = read_data(workspace, facts, folds, settings.limit)
        problems, scores = check_run(staged, run, settings, data, copied.manifests)
        minutes = sum(float(manifest.get("minutes", 0)) for manifest in copied.manifests.values())
        notes += more + notes_of(staged, run, settings, copied.manifests)
    # A stranger's JSON and tables may hold anything: 10^400 overflows, a nested column is not implemented.
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, NotImplementedError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{source / run}: says things that no stage writes ({reason})") from None
    if problems:
        raise UserError(problems)
    return Import(run, new, settings, copied.manifests, scores, minutes, notes)


def read_data(workspace: Workspace, facts: Competition, every: Folds, limit: int) -> Data:
    folds = take_rows(every, limit)
    test_csv, sample_csv = (workspace.data_path(facts, name) for name in (facts.test_csv, facts.sample_submission_csv))
    test_ids = np.array(read_test_ids(test_csv, sample_csv, facts.id_column), object)
    targets = competition.decode_targets(folds.table, facts)
    return Data(facts, folds, targets, competition.metric(facts), test_ids, every.ids)


def in_words(problem: str, staged: Workspace, source: Path, run: str) -> str:
    """A problem of a copy, told of the teammate's file."""
    told = problem.replace(str(staged.run_dir(run)), str(source / run))
    return told if str(source) in told else f"run {run}: {told}"


def put_in_place(workspace: Workspace, staged: Workspace, source: Path, one: Import, metric: str) -> None:
    """Give the copied run its name and origin, and its place among ours: by one rename, so whole or not at all."""
    folder = staged.run_dir(one.run)
    for number, manifest in one.manifests.items():
        if one.name != one.run:
            artifacts.save_manifest(staged.fold_dir(one.run, number), {**manifest, "run": one.name})
    origin = {
        "run": one.run,
        "from": str(source),
        "imported_at": datetime.now().isoformat(sep=" ", timespec="seconds"),
        "manifests": {
            staged.fold_dir(one.run, number).name: hashlib.sha256(
                artifacts.manifest_text(manifest).encode()
            ).hexdigest()
            for number, manifest in one.manifests.items()  # what was checked: theirs may have changed since
        },
    }
    write_sealed(staged.origin_path(one.run), json.dumps(origin, indent=1) + "\n")
    record_run(workspace.ledger_path, ledger_row(workspace, one, metric))  # first: a row too many does no harm
    try:
        os.replace(folder, workspace.run_dir(one.name))
    except OSError as error:
        raise UserError(f"{workspace.run_dir(one.name)}: cannot be put in place ({error.strerror})") from None
    sync(workspace.runs_dir)
    print(f"run {one.name}: imported from {source / one.run}\n{cv_table(metric, one.scores)}")
    for note in one.notes:
        print(f"  {one_line(note)}")


def ledger_row(workspace: Workspace, one: Import, metric: str) -> dict[str, object]:
    settings, scores = one.settings, one.scores
    if isinstance(settings, Config):
        path = workspace.run_config_path("baseline")
        changed = difference(settings, load_config(path) if path.exists() else Config())
    else:
        changed = f"stack of {' '.join(settings.stack_of)}: method={settings.method}"
    return {
        "run": one.name,
        "config_difference": changed,
        "metric": metric,
        "oof": scores.pooled,
        "oof_low": scores.low,
        "oof_high": scores.high,
        "fold_scores": " ".join(f"{score:.5f}" for score in scores.by_fold.values()),
        "minutes": round(one.minutes, 2),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="TEAMMATE_DIR", help="their repository, or its runs folder")
    parser.add_argument("--runs", nargs="+", default=[], help="which (default: all trained ones that are finished)")
    parser.add_argument("--as", dest="name", default="", metavar="NAME", help="the name of a single run here")
    parser.add_argument("--prefix", default="", help="in front of each name, such as anna-")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    run_stage(lambda: main(arguments.folder, arguments.runs, arguments.name, arguments.prefix), keeps_parts=False)
