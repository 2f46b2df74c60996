"""Measure what each switch is worth: alone against the baseline, on the same rows and seeds, with its noise and cost.

Command  python ablate.py --config configs/baseline.yaml --fold 0 --seeds 3 loss=focal mixing=mixup \\
             "loss=focal focal_gamma=1" "ema_decay=0.99 select=ema"
         a switch is key=value, or several in quotes; --base key=value changes the baseline of all; --fold 0,1 or all
Reads    competition.yaml, configs/<name>.yaml, folds.csv, data/train.csv, data/train_images/
Writes   runs/ablations/<name>.csv, .md and .png: gain with 95% interval, verdict and cost in time of each switch;
         runs/ablations/ablation-<digest of the settings>-seed<s>/: the trainings, without their weights

The trainings are train.py's, but no runs to stack or submit: train the switch that helps under a name of its own. Each
is done once: with more seeds (--seeds 5) or more switches, the same command trains only what is missing, and the
baseline's trainings serve all. After an interruption (exit code 75) it goes on. A training that fails takes its switch
out of the table; the exit code is 2 then. The formula of the interval is in kfold/ablation.py.
"""

import argparse
import shlex
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

import competition
import train
from kfold import artifacts
from kfold.ablation import effect_of, resampled_scores
from kfold.ablation_plan import BASELINE, Variant, parse_seeds, plan_variants
from kfold.artifacts import ALL_DATA, Workspace
from kfold.config import Competition, Config, load_competition, load_config
from kfold.data.folds import Folds, read_folds, take_rows
from kfold.data.targets import Targets
from kfold.errors import UserError, run_stage
from kfold.files import file_sha256, locked
from kfold.metrics import Metric
from kfold.numbers import whole
from kfold.report.ablation import Ablation, Outcome, ablation_csv, best_first, command_of, markdown, terminal_table
from kfold.report.pictures import effects_picture
from kfold.report.spreadsheet import to_spreadsheet
from kfold.runs import by_name, is_optimistic
from kfold.seals import write_sealed
from kfold.stopping import Stop, describe_seconds, parse_seconds

ROOT = Path(__file__).resolve().parent
SAME = 1e-6  # predictions nearer than this differ by rounding alone


@dataclass
class Job:
    """What all trainings and scores of an ablation share."""

    workspace: Workspace
    config_path: Path
    facts: Competition
    folds: Folds
    numbers: list[int]  # folds that are trained
    seeds: list[int]
    variants: list[Variant]  # the baseline first
    stop: Stop
    resume_from: Path | None
    failed: dict[str, str] = field(default_factory=dict)  # name of a variant -> its problem


def main(
    switches: Sequence[str] = (),
    config_path: Path | None = None,
    fold: str = "0",
    seeds: str = "3",
    base: Sequence[str] = (),
    name: str = "",
    overwrite: bool = False,
    root: Path = ROOT,
    stop: Stop | None = None,
    resume_from: Path | None = None,
) -> None:
    """Train what is missing, then write and print the table. Raises UserError at the end if a training failed."""
    if overwrite and resume_from is not None:
        raise UserError("--overwrite starts anew and --resume-from takes over earlier work: leave out one of them")
    workspace = Workspace(root)
    facts = load_competition(workspace.competition_path)
    config_path = config_path or workspace.config_path("baseline")
    name = name or config_path.stem
    artifacts.refuse_odd_name(name)
    numbers_of_seeds = parse_seeds(seeds)
    every = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    num_outputs = len(competition.decode_targets(every.table, facts).names)
    refuse_wrong = partial(train.refuse_wrong_choices, facts=facts, num_outputs=num_outputs)
    numbers = choose_folds(fold, every, load_config(config_path))
    files_below = partial(stands_on, workspace, numbers)
    variants = plan_variants(config_path, base, switches, facts, every.stamp, refuse_wrong, files_below)
    folds = take_rows(every, variants[0].config.limit)
    job = Job(
        workspace, config_path, facts, folds, numbers, numbers_of_seeds, variants, stop or Stop(), resume_from
    )  # fmt: skip
    command = describe_command(config_path, root, fold, seeds, base, name, switches)
    if overwrite:
        forget_trainings(job)
    else:
        refuse_lost_lines(workspace.ablation_path(name, "md"), command)
    train_missing(job)
    found = compare(job, command)
    write_tables(workspace, name, found)
    print(f"\n{terminal_table(found)}\n{workspace.ablation_path(name, 'md')}: written, with .csv and .png beside it")
    if job.failed:
        raise UserError([f"switch '{switch}' failed: {problem}" for switch, problem in job.failed.items()])


def stands_on(workspace: Workspace, numbers: Sequence[int], config: Config) -> list[str]:
    """sha256 of the weights that the trainings start from, or learn from, in these folds. Raises UserError."""
    digests = []
    if config.pretrained_path:
        path = Path(config.pretrained_path)
        if not path.is_file():
            raise UserError(f"pretrained_path '{path}': no such file: mend the path")
        digests.append(file_sha256(path))
    for run in (*config.distill_from, *config.clean_labels_from):
        for number in numbers:
            folder = workspace.fold_dir(run, number)
            if (manifest := artifacts.read_manifest(folder)) is None:
                raise UserError(f"{folder}: run {run} is not trained there: run train.py for it")
            digests.append(manifest["weights_sha256"])
    return digests


def choose_folds(wish: str, folds: Folds, config: Config) -> list[int]:
    """`0`, `0,1` or `all` -> fold numbers in order."""
    numbers = [number for part in wish.split(",") for number in train.choose_folds(part, folds, config)]
    if ALL_DATA in numbers:
        raise UserError("--fold all-data holds no row out to compare on: take a fold, several (0,1), or all")
    return sorted(set(numbers))


def describe_command(
    config_path: Path, root: Path, fold: str, seeds: str, base: Sequence[str], name: str, switches: Sequence[str]
) -> str:
    """The words that do this again."""
    path = config_path.relative_to(root) if config_path.is_relative_to(root) else config_path
    words = ["--config", path.as_posix(), "--fold", fold, "--seeds", seeds]
    words += [word for text in base for word in ("--base", text)]
    words += [] if name == config_path.stem else ["--name", name]
    return f"python ablate.py {shlex.join([*words, *switches])}"


def refuse_lost_lines(path: Path, command: str) -> None:
    """Raise UserError where the table of this name has lines that `command` does not make again."""
    before = command_of(path.read_text()) if path.exists() else ""
    if not before:
        return
    old, new = (parse_arguments(shlex.split(text)[2:]) for text in (before, command))
    is_alike = (old.config, old.fold, old.base) == (new.config, new.fold, new.base)
    if not is_alike or not set(old.switches) <= set(new.switches):
        raise UserError(
            f"{path}: holds the table of another command: give this one a --name, or add to that one, whose trainings "
            f"are kept: {before}"
        )


# The trainings


def trainings_of(job: Job) -> list[tuple[Variant, int, int]]:
    """(variant, seed, fold) in order: seed by seed, so that failures show early and times of a seed are neighbours."""
    return [(variant, seed, number) for seed in job.seeds for variant in job.variants for number in job.numbers]


def forget_trainings(job: Job) -> None:
    for variant, seed, number in trainings_of(job):
        with locked(job.workspace.fold_dir(variant.run(seed), number)):
            artifacts.forget_fold(job.workspace, variant.run(seed), number)


def train_missing(job: Job) -> None:
    """Train all that is not done, and note what fails. Raises UserError where the baseline fails."""
    trainings = trainings_of(job)
    missing = [training for training in trainings if not is_done(job, *training)]
    for variant, seed, number in set(trainings) - set(missing):
        artifacts.forget_weights(job.workspace.fold_dir(variant.run(seed), number))  # a kill may have come before it
    print(
        f"{len(job.variants) - 1} switches and the baseline, {len(job.seeds)} seeds, {len(job.numbers)} folds: "
        f"{len(trainings)} trainings, of which {len(trainings) - len(missing)} were done before"
    )
    seconds: list[float] = []
    for position, (variant, seed, number) in enumerate(missing):
        if variant.name in job.failed:
            continue  # its line is lost, whatever the others say
        what = f"{variant.name}, seed {seed}, fold {number}"
        print(f"\ntraining {position + 1} of {len(missing)}: {what}{forecast(seconds, len(missing) - position)}")
        started = time.monotonic()
        try:
            train_one(job, variant, seed, number)
        except UserError as error:
            job.failed[variant.name] = f"seed {seed}, fold {number}: {to_line(job, error)}"
        except Exception as error:  # a fault of the code of one switch should not cost the night of the others
            traceback.print_exc()
            job.failed[variant.name] = f"seed {seed}, fold {number}: {type(error).__name__}: {error}"
        seconds.append(time.monotonic() - started)
        if variant.name in job.failed:
            print(f"{what} failed: {job.failed[variant.name]}")
        if BASELINE in job.failed:
            raise UserError(f"the baseline failed, so there is nothing to compare with: {job.failed[BASELINE]}")


def to_line(job: Job, error: UserError) -> str:
    """For a table that is pasted elsewhere: paths as seen from the repository."""
    return "; ".join(error.problems).replace(f"{job.workspace.root}/", "")


def is_done(job: Job, variant: Variant, seed: int, number: int) -> bool:
    return (job.workspace.fold_dir(variant.run(seed), number) / "manifest.json").exists()


def forecast(seconds: Sequence[float], num_left: int) -> str:
    """seconds: of each training of this session."""
    return f" (about {describe_seconds(np.mean(seconds) * num_left)} left)" if seconds else ""


def train_one(job: Job, variant: Variant, seed: int, number: int) -> None:
    run = variant.run(seed)
    train.main(
        fold=str(number),
        config_path=job.config_path,
        overrides=(*variant.words, f"seed={seed}"),
        name=run,
        root=job.workspace.root,
        stop=job.stop,
        resume_from=job.resume_from,
    )
    # They are never predicted with: 12 switches with 3 seeds would keep 72 files of a backbone's size.
    artifacts.forget_weights(job.workspace.fold_dir(run, number))


# The comparison


def compare(job: Job, command: str) -> Ablation:
    """Score every training that is done, on the same rows and the same resamples. Raises UserError for the baseline."""
    facts, folds = job.facts, job.folds
    metric = competition.metric(facts)
    targets = competition.decode_targets(folds.table, facts)
    groups = folds.group_or_none
    rows = np.isin(folds.fold, job.numbers)
    if groups is not None:
        groups = groups[rows]
    measured = {}
    for variant in tqdm(job.variants, "comparing", unit="switch", disable=None, leave=False):
        try:
            if variant.name not in job.failed:
                measured[variant.name] = measure(job, variant, rows, targets, metric, groups)
        except UserError as error:
            if variant.name == BASELINE:
                raise
            job.failed[variant.name] = to_line(job, error)
    baseline = measured[BASELINE]
    outcomes = [
        to_outcome(variant.name, measured.get(variant.name), baseline, metric, job.failed.get(variant.name, ""))
        for variant in job.variants[1:]
    ]
    what = f"fold {', '.join(map(str, job.numbers))}: {rows.sum()} rows, fold stamp {folds.stamp[:12]}"
    return Ablation(
        title=f"Ablation of {job.config_path.stem}",
        command=command,
        metric=metric.name,
        greater_is_better=metric.greater_is_better,
        rows=what if groups is None else f"{what} in groups, which are resampled whole",
        seeds=tuple(job.seeds),
        baseline=tuple(map(float, baseline.scores[:, 0])),
        outcomes=best_first(outcomes),
        is_optimistic=any(is_optimistic(job.workspace, variant.run(job.seeds[0])) for variant in job.variants),
        versions=artifacts.environment(),
    )


@dataclass(frozen=True)
class Measured:
    predictions: np.ndarray  # (S, N, C)
    scores: np.ndarray  # (S, 1 + R), see resampled_scores
    seconds: np.ndarray  # (S * folds,): of each training


def measure(
    job: Job, variant: Variant, rows: np.ndarray, targets: Targets, metric: Metric, groups: np.ndarray | None
) -> Measured:
    """rows: (N of all folds,) bool, those that are compared."""
    predictions = []
    for seed in job.seeds:
        run, ids = variant.run(seed), job.folds.ids[rows]
        oof = artifacts.read_oof(job.workspace, run, ids, job.folds.fold[rows], job.folds.stamp)
        predictions.append(by_name(oof, run, targets, job.facts.task, ids))
    truth = targets.values[rows]
    scores = [resampled_scores(metric, truth, values, groups) for values in predictions]
    return Measured(np.stack(predictions), np.stack(scores), training_seconds(job, variant))


def training_seconds(job: Job, variant: Variant) -> np.ndarray:
    """Of each training, (S * folds,): all epochs. What is compared with it, of the same seed, ran next to it."""
    seconds = []
    for seed in job.seeds:
        for number in job.numbers:
            folder, path = (of(variant.run(seed), number) for of in (job.workspace.fold_dir, job.workspace.log_path))
            artifacts.verify_files(folder, artifacts.read_manifest(folder), [path.name])
            seconds.append(pd.read_csv(path)["seconds"].sum())
    return np.array(seconds)


def to_outcome(
    switch: str, measured: Measured | None, baseline: Measured, metric: Metric, problem: str
) -> Outcome:  # fmt: skip
    if measured is None:
        return Outcome(switch, problem=problem)
    return Outcome(
        switch,
        effect_of(measured.scores, baseline.scores, metric.greater_is_better),
        tuple(map(float, measured.scores[:, 0])),
        float(np.median(measured.seconds / baseline.seconds)),
        np.allclose(measured.predictions, baseline.predictions, rtol=0, atol=SAME),
    )


def write_tables(workspace: Workspace, name: str, found: Ablation) -> None:
    table = ablation_csv(found)
    picture = effects_picture(table, found.baseline_deviation, found.title, found.metric)
    for suffix, content in (("csv", to_spreadsheet(table)), ("md", markdown(found)), ("png", picture)):
        write_sealed(workspace.ablation_path(name, suffix), content)


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="the baseline (default: configs/baseline.yaml)")
    parser.add_argument("--fold", default="0", help="a fold (default: 0), several such as 0,1, or all")
    parser.add_argument("--seeds", default="3", help="how many, from 2 (default: 3), or a range such as 4..6")
    parser.add_argument("--base", action="append", default=[], metavar="key=value", help="a change of the baseline")
    parser.add_argument("--limit", type=whole, help="so many rows, for all: --base limit=<N>")
    parser.add_argument("--name", default="", help="name of the table (default: the config's file name)")
    parser.add_argument("--overwrite", action="store_true", help="train again what is done (after a change of code)")
    parser.add_argument("--time-limit", help="save and stop with exit code 75 after this time, e.g. 8h30m")
    parser.add_argument("--resume-from", type=Path, help="a folder that holds runs/ of an earlier session")
    parser.add_argument("switches", nargs="*", metavar="switch", help="key=value, or several in quotes")
    return parser.parse_intermixed_args(words)


if __name__ == "__main__":
    arguments = parse_arguments()
    run_stage(
        lambda: main(
            arguments.switches,
            arguments.config,
            arguments.fold,
            arguments.seeds,
            arguments.base + ([] if arguments.limit is None else [f"limit={arguments.limit}"]),
            arguments.name,
            arguments.overwrite,
            stop=Stop(None if arguments.time_limit is None else parse_seconds(arguments.time_limit)),
            resume_from=arguments.resume_from,
        )
    )
