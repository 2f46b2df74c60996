"""Train on the test rows that a run is sure of, round by round: recursive pseudo-labels, without a leak.

Command  python pseudo_label.py --run baseline          or --run baseline second --rounds 3 --thresholds 0.9 0.85
         any setting as key=value, e.g. pseudo_per_class=50 pseudo_targets=soft cooldown_epochs=1; --dry-run counts only
Reads    runs/<run>/ (settings, test predictions of each fold), folds.csv, data/
Writes   runs/<run>-p<r>/: fold<k>/pseudo.parquet (and all-data/, for train.py --fold all-data), then what train.py and
         predict.py write, round.json last

Fold k's student learns from labels of the teachers' own models of fold k, which never saw that fold. In each round the
student takes the first run's place as a teacher. A round is kept if its pooled out-of-fold score gains beyond noise;
else the loop stops, and the run of before stays the current one. A kept round has a full-data fit like any run:
train.py --config runs/<run>-p<r>/config.yaml --name <run>-p<r> --fold all-data
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import competition
import predict
import train
from kfold import artifacts
from kfold.artifacts import ALL_DATA, Workspace
from kfold.config import Competition, load_competition, load_config
from kfold.data.folds import read_folds, take_rows
from kfold.data.tables import read_test_ids
from kfold.ensemble.pseudo_rounds import (
    Data,
    Labels,
    Round,
    class_counts,
    describe,
    judge,
    label_folds,
    read_verdict,
    selection_table,
    write_labels,
)
from kfold.errors import UserError, run_stage
from kfold.numbers import decimal, whole
from kfold.runs import run_limit
from kfold.seals import write_sealed
from kfold.settings import parse_overrides
from kfold.stopping import Stop, parse_seconds

ROOT = Path(__file__).resolve().parent


def main(
    runs: Sequence[str] = ("baseline",),
    rounds: int = 1,
    thresholds: Sequence[float] = (),
    overrides: Sequence[str] = (),
    dry_run: bool = False,
    overwrite: bool = False,
    root: Path = ROOT,
    stop: Stop | None = None,
    resume_from: Path | None = None,
) -> None:
    """Train the students of `runs`, the first of which lends its settings; rounds that are judged are left alone."""
    workspace = Workspace(root)
    for run in runs:
        artifacts.refuse_odd_name(run)
        artifacts.refuse_stack(workspace, run)
    facts = load_competition(workspace.competition_path)
    refuse_contradictions(runs, rounds, thresholds, overrides)
    data = read_data(workspace, facts, run_limit(workspace, runs[0]))
    current = runs[0]
    for number in range(1, rounds + 1):
        this = plan_round(workspace, number, runs, current, thresholds, overrides)
        verdict = read_verdict(workspace, this, data) if not overwrite else None
        if verdict is None:
            labels = label_folds(workspace, this, data)
            print(selection_table(this, data, labels))
            if reason := nothing_taken(this, labels):
                print(reason)
                break
            if dry_run:
                print("dry run: nothing was written\nnext: the same command without --dry-run")
                return
            refuse_other_weights(workspace, this)
            write_labels(workspace, this, data, labels, overwrite)
            train_student(workspace, this, runs[0], overwrite, stop, resume_from)
            verdict = judge(workspace, this, data, class_counts(data, labels))
            write_sealed(workspace.round_path(this.student), json.dumps(verdict, indent=1) + "\n")
        print(describe(verdict, this, data.metric.name))
        if others := [word for word in overrides if not word.startswith(("pseudo_", "cooldown_"))]:
            print(f"  the student also differs in {' '.join(others)}: the difference is not of the pseudo-labels alone")
        if not verdict["kept"]:
            break
        current = this.student
    print(f"current run: {current}\nnext: python submit.py --run {current}")


def refuse_contradictions(
    runs: Sequence[str], rounds: int, thresholds: Sequence[float], overrides: Sequence[str]
) -> None:
    values = parse_overrides(overrides)
    students = [f"{runs[0]}-p{number}" for number in range(1, rounds + 1)]
    problems = []
    if rounds < 1:
        problems.append(f"--rounds {rounds}: one or more")
    if len(thresholds) > max(rounds, 1):
        problems.append(f"--thresholds: {len(thresholds)} for {rounds} rounds: say --rounds {len(thresholds)}")
    if thresholds and (values.get("pseudo_top_share") or "pseudo_threshold" in values):
        problems.append("--thresholds: give it alone, without pseudo_threshold and pseudo_top_share")
    for key, instead in (
        ("pseudo_from", "name the teachers with --run"),
        ("limit", "the first run's holds"),
        ("tta", "the student is predicted with the first run's views: change those by predict.py --tta"),
    ):
        if key in values:
            problems.append(f"{key}={values[key]}: {instead}")
    for run in sorted({run for run in runs if list(runs).count(run) > 1}):
        problems.append(f"--run: {run} is named twice")
    for run in [run for run in runs[1:] if run in students]:
        problems.append(f"--run: {run} is the student of a round itself: leave it out")
    if problems:
        raise UserError(problems)


def read_data(workspace: Workspace, facts: Competition, limit: int) -> Data:
    every = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    folds = take_rows(every, limit)
    test_csv, sample_csv = (workspace.data_path(facts, name) for name in (facts.test_csv, facts.sample_submission_csv))
    test_ids = np.array(read_test_ids(test_csv, sample_csv, facts.id_column), object)
    targets = competition.decode_targets(folds.table, facts)
    return Data(facts, folds, targets, competition.metric(facts), test_ids, every.ids)


def plan_round(
    workspace: Workspace,
    number: int,
    runs: Sequence[str],
    current: str,
    thresholds: Sequence[float],
    overrides: Sequence[str],
) -> Round:
    """thresholds: one a round; the last one goes on."""
    teachers = (current, *runs[1:])
    words = [f"pseudo_from={json.dumps(teachers)}"]  # JSON is YAML, and quotes a run named 2024
    if thresholds:
        words.append(f"pseudo_threshold={thresholds[min(number, len(thresholds)) - 1]}")
    words += overrides
    config = load_config(workspace.run_config_path(runs[0]), words)
    if thresholds and config.pseudo_top_share:
        raise UserError(f"--thresholds: run {runs[0]} has pseudo_top_share, which takes the place of a threshold")
    return Round(number, f"{runs[0]}-p{number}", teachers, tuple(words), config)


def nothing_taken(this: Round, labels: Labels) -> str:
    """Why the round cannot be trained; "" where every fold has rows."""
    empty = [str(fold) for fold, (rows, _) in labels.items() if fold != ALL_DATA and not len(rows.ids)]
    if not empty:
        return ""
    return (
        f"round {this.number}: no test row is sure enough in fold {', '.join(empty)}: the loop stops; lower the "
        f"threshold (pseudo_threshold={this.config.pseudo_threshold}), or take a share (pseudo_top_share=0.2)"
    )


def refuse_other_weights(workspace: Workspace, this: Round) -> None:
    """The student is compared with its first teacher by the same kind of weights, so it must make that kind."""
    config = this.config
    cycles = config.num_cycles if config.schedule == "cosine_cycles" else 0
    made = {"ema": config.ema_decay > 0, "swa": config.swa_from_epoch > 0, "snapshots": cycles > 0}
    kind = predicted_with(workspace, this)[0]
    if not made.get(kind, True):
        raise UserError(f"{this.teachers[0]} predicts with weights={kind}, which these settings do not make: mend them")


def predicted_with(workspace: Workspace, this: Round) -> tuple[str, str]:
    """The first teacher's kind of weights and views."""
    manifest = artifacts.read_manifest(workspace.fold_dir(this.teachers[0], 0)) or {}
    earlier = manifest.get("predicted", {})
    return earlier.get("weights", ""), earlier.get("tta", "")


def train_student(
    workspace: Workspace, this: Round, first: str, overwrite: bool, stop: Stop | None, resume_from: Path | None
) -> None:
    """Train all folds, and predict with the kind of weights and the views of the run that it is compared with."""
    train.main(
        fold="all",
        config_path=workspace.run_config_path(first),
        overrides=this.words,
        name=this.student,
        overwrite=overwrite,
        root=workspace.root,
        stop=stop,
        resume_from=resume_from,
    )
    if stop is not None:
        stop.check()
    weights, tta = predicted_with(workspace, this)
    predict.main(run=this.student, weights=weights, tta=tta, root=workspace.root)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", default=["baseline"], help="the teachers (default: baseline)")
    parser.add_argument("--rounds", type=whole, default=1, help="students one after another at most (default: 1)")
    parser.add_argument("--thresholds", nargs="+", type=decimal, default=[], help="one a round; the last one goes on")
    parser.add_argument("--dry-run", action="store_true", help="print how many rows would be taken, write nothing")
    parser.add_argument("--overwrite", action="store_true", help="make rounds again that are done")
    parser.add_argument("--time-limit", help="save and stop with exit code 75 after this time, e.g. 8h30m")
    parser.add_argument("--resume-from", type=Path, help="a folder that holds runs/ of an earlier session")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of kfold/config.py, e.g. epochs=5")
    words = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]  # --run must not take them
    arguments = parser.parse_args([word for word in sys.argv[1:] if word not in words])
    arguments.overrides += words
    return arguments


if __name__ == "__main__":
    arguments = parse_arguments()
    run_stage(
        lambda: main(
            arguments.run,
            arguments.rounds,
            arguments.thresholds,
            arguments.overrides,
            arguments.dry_run,
            arguments.overwrite,
            stop=Stop(None if arguments.time_limit is None else parse_seconds(arguments.time_limit)),
            resume_from=arguments.resume_from,
        )
    )
