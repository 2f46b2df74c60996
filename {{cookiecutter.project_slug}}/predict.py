"""Predict the validation and test rows of every trained fold, with test-time augmentation (TTA).

Command  python predict.py               or --run <name> --weights last,ema,swa,snapshots --tta auto
Reads    runs/<name>/ (config, weights), folds.csv, data/ (train and test images)
Writes   runs/<name>/fold<k>/{oof,test}.parquet and the fold's manifest, runs/<name>/choices.csv

Several weights or views (auto: all there are) are scored out of fold first; the simplest within noise of the best is
taken. A single one is taken as asked for, and compared with the plain one. Weights of --fold all-data predict the test
rows only.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd

import competition
from kfold import artifacts
from kfold.artifacts import ALL_DATA, Workspace
from kfold.config import Config, load_competition, load_config
from kfold.data.folds import read_folds, take_rows
from kfold.data.tables import read_test_ids
from kfold.ensemble.choice import OPTIMISTIC, choice_table, compare_candidates, read_wishes
from kfold.ensemble.tta import TTA_TRANSFORMS
from kfold.errors import UserError, run_stage
from kfold.files import locked
from kfold.inference import Job, fold_predictions, mix, out_of_fold, predict_images, shares_of
from kfold.intervals import score_folds
from kfold.ledger import COLUMNS, read_ledger, record_run
from kfold.model.build import has_fixed_input
from kfold.predictions import Predictions, ids_sha256, write_predictions
from kfold.report.spreadsheet import to_spreadsheet
from kfold.runs import OPTIMISM
from kfold.seals import write_sealed

ROOT = Path(__file__).resolve().parent
KINDS = ("last", "ema", "swa", "snapshots", "climbed", "best")  # in order of simplicity; best is optimistic


def main(run: str = "baseline", weights: str = "", tta: str = "", overwrite: bool = False, root: Path = ROOT) -> None:
    """Write oof.parquet and test.parquet of each trained fold of `run`, from the chosen weights and views."""
    workspace = Workspace(root)
    facts = load_competition(workspace.competition_path)
    artifacts.refuse_odd_name(run)
    artifacts.refuse_stack(workspace, run)
    artifacts.refuse_ablation(run)
    numbers = workspace.trained_folds(run)
    full = [ALL_DATA] if workspace.has_full_fit(run) else []
    if not numbers + full:
        found = ", ".join(workspace.run_names()) or "none yet"
        raise UserError(f"run {run}: no trained fold in {workspace.run_dir(run)}: run train.py first; runs: {found}")
    config = load_config(workspace.run_config_path(run))
    folds = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    folds = take_rows(folds, config.limit)
    targets = competition.decode_targets(folds.table, facts)
    test_csv, sample_csv = (workspace.data_path(facts, name) for name in (facts.test_csv, facts.sample_submission_csv))
    test_ids = np.array(read_test_ids(test_csv, sample_csv, facts.id_column), object)

    with ExitStack() as locks:
        for number in numbers + full:
            locks.enter_context(locked(workspace.fold_dir(run, number)))
        manifests = read_manifests(workspace, run, numbers + full, folds.stamp)
        metric = competition.metric(facts)
        job = Job(workspace, run, facts, config, folds, targets, metric, numbers, manifests)
        earlier = manifests[(numbers + full)[0]].get("predicted", {})  # run again, it keeps the choices of before
        kinds = choose_from(weights or earlier.get("weights", config.select), offered_kinds(manifests), "--weights")
        views = choose_from(tta or earlier.get("tta", config.tta), offered_views(config), "--tta")
        request = {"weights": kinds[0], "tta": views[0], "test_ids": ids_sha256(test_ids)}
        is_done = all(is_predicted(manifest, request) for manifest in manifests.values())
        if len(kinds) == len(views) == 1 and is_done and not overwrite:
            print(f"run {run}: predicted before with weights={kinds[0]}, tta={views[0]} (--overwrite does it again)")
        else:
            kind, view = choose(job, kinds, views) if numbers else (kinds[0], views[0])
            request |= {"weights": kind, "tta": view}
            for number in numbers + full:
                if overwrite or not is_predicted(manifests[number], request):
                    write_fold(job, number, kind, view, request, test_ids)
    if numbers:
        print(f"next: python submit.py --run {run}")
    else:
        print(f"weights={kinds[0]}, tta={views[0]}: the full-data fit alone has no out-of-fold rows to choose by")
        print("next: python train.py --fold all for the same run, which gives scores; then submit.py --all-data")


def refuse_settings(words: Sequence[str]) -> None:
    """Raise UserError for key=value words: a run is predicted with the settings that it was trained with."""
    options = {"tta": "--tta", "select": "--weights", "weights": "--weights"}
    problems = []
    for key, _, value in (word.partition("=") for word in words):
        remedy = f"write {options[key]} {value}" if key in options else "leave it out"
        problems.append(f"'{key}={value}': settings are given to train.py, here they are the run's own: {remedy}")
    if problems:
        raise UserError(problems)


def read_manifests(workspace: Workspace, run: str, numbers: Sequence[int], fold_stamp: str) -> dict[int, dict]:
    manifests = {}
    for number in numbers:
        folder = workspace.fold_dir(run, number)
        artifacts.is_done(workspace, run, number, fold_stamp)  # refuses other folds and settings: they would leak
        manifests[number] = artifacts.read_manifest(folder)
        artifacts.verify_files(folder, manifests[number])
    return manifests


def offered_kinds(manifests: Mapping[int, Mapping]) -> list[str]:
    """The kinds of weights that every fold has; the full-data fit alone has no best epoch."""
    folds = [manifest for number, manifest in manifests.items() if number != ALL_DATA] or list(manifests.values())
    names = set.intersection(*(set(manifest["files"]) for manifest in folds))
    num_snapshots = sum(name.startswith("snapshot") for name in names)
    there = {name.removesuffix(".safetensors") for name in names if name.endswith(".safetensors")}
    if num_snapshots:
        there.add("snapshots")
    if num_snapshots > 1 and len(folds) > 1:
        there.add("climbed")
    return [kind for kind in KINDS if kind in there]


def offered_views(config: Config) -> list[str]:
    """All sets of views, without other sizes where the backbone takes one size only."""
    return [name for name in TTA_TRANSFORMS if name != "scales" or not has_fixed_input(config.backbone)]


def choose_from(wish: str, offered: Sequence[str], option: str) -> list[str]:
    try:
        return read_wishes(wish, offered)
    except ValueError as error:
        raise UserError(f"{option} '{error}': there are {', '.join(offered)}, several with commas, or auto") from None


def is_predicted(manifest: Mapping, request: Mapping[str, str]) -> bool:
    return manifest.get("predicted") == request and not manifest["unreadable_test_ids"]


# The choice


def choose(job: Job, kinds: Sequence[str], views: Sequence[str]) -> tuple[str, str]:
    """One kind of weights, then one set of views; prints and saves what was compared."""
    tables = []
    plain_view = views[0] if len(views) == 1 else "none"
    kind, table = choose_one(job, "weights", with_plain(kinds, "last"), lambda name: (name, plain_view), kinds)
    tables.append(table)
    view, table = choose_one(job, "tta", with_plain(views, "none"), lambda name: (kind, name), views)
    tables.append(table)
    write_sealed(job.workspace.choices_path(job.run), to_spreadsheet(pd.concat(tables, ignore_index=True)))
    taken = table[table["chosen"]].iloc[0]
    print(
        f"run {job.run}, out of fold, weights={kind}, tta={view}: {job.metric.name} {taken['score']:.5f}, 95% interval "
        f"{taken['low']:.5f} to {taken['high']:.5f}, {taken['milliseconds']:.2f} ms an image"
        + (f"; {OPTIMISM}" if kind in OPTIMISTIC or job.config.early_stopping else "")
    )
    if len(job.numbers) == job.folds.num_folds:
        update_ledger(job, out_of_fold(job, kind, view).predictions)
    return kind, view


def update_ledger(job: Job, predictions: np.ndarray) -> None:
    """The run's row gets the scores of the weights and views that were taken."""
    rows = {row["run"]: row for row in read_ledger(job.workspace.ledger_path)}
    if job.run in rows:
        groups = job.folds.group_or_none
        scores = score_folds(job.metric, job.targets.values, predictions, job.folds.fold, groups)
        known = {key: cell for key, cell in rows[job.run].items() if key in COLUMNS}
        found = {"oof": scores.pooled, "oof_low": scores.low, "oof_high": scores.high}
        by_fold = " ".join(f"{score:.5f}" for score in scores.by_fold.values())
        record_run(job.workspace.ledger_path, {**known, **found, "fold_scores": by_fold})


def with_plain(wishes: Sequence[str], plain: str) -> list[str]:
    """A single wish is compared with the plain one."""
    return [plain, *wishes] if len(wishes) == 1 and wishes[0] != plain else list(wishes)


def choose_one(
    job: Job, what: str, names: Sequence[str], pair_of: Callable[[str], tuple[str, str]], wishes: Sequence[str]
) -> tuple[str, pd.DataFrame]:
    rows, groups = job.rows, job.folds.group_or_none
    candidates = {name: out_of_fold(job, *pair_of(name)) for name in names}
    wish = wishes[0] if len(wishes) == 1 else ""
    chosen, table = compare_candidates(
        candidates, job.targets.values[rows], job.metric, groups[rows] if groups is not None else None, wish
    )
    kind, view = pair_of(chosen)
    if len(names) > 1:
        other = f"tta={view}" if what == "weights" else f"weights={kind}"
        print(f"run {job.run}, out of fold, {other}:\n{choice_table(what, job.metric.name, table)}")
        if not wish:
            print(f"  {what}={chosen} is the simplest within noise of the best (a choice made on these rows)")
    return chosen, table.assign(what=what)


# Files


def write_fold(job: Job, number: int, kind: str, view: str, request: Mapping[str, str], test_ids: np.ndarray) -> None:
    """The fold's oof.parquet (not of the full-data fit) and test.parquet, and its manifest."""
    folder, valid = job.workspace.fold_dir(job.run, number), job.folds.fold == number
    manifest = job.manifests[number]
    shares = shares_of(job, kind, view, number)
    weights_sha256 = artifacts.mix_sha256(shares, manifest["files"])
    stamps = artifacts.stamps(job.folds.stamp, job.config, job.facts.task, weights_sha256, kind, view)
    unreadable: dict[int, str] = {}
    tests = [predict_images(job, number, name, view, test_ids, job.facts.test_images, unreadable) for name in shares]
    test = mix(tests, shares)
    for row, reason in unreadable.items():
        test[row] = job.targets.values[~valid].mean(axis=0)  # the prior: a submission must have every row
        print(f"warning: {reason}: id '{test_ids[row]}' gets the prior prediction", file=sys.stderr)

    facts_of_fold = artifacts.forget_predictions(folder, manifest)
    files = facts_of_fold.pop("files")
    oof_path, test_path = (job.workspace.predictions_path(job.run, number, rows) for rows in ("oof", "test"))
    names = [test_path.name]
    if number != ALL_DATA:
        values = mix([fold_predictions(job, number, name, view)[0] for name in shares], shares)
        fold_column = np.full(len(values), number)
        write_predictions(oof_path, Predictions(job.folds.ids[valid], values, job.targets.names, stamps, fold_column))
        names.append(oof_path.name)
        facts_of_fold["score"] = job.metric.function(job.targets.values[valid], values)
    write_predictions(test_path, Predictions(test_ids, test, job.targets.names, stamps))
    facts_of_fold |= {
        "kind": kind,
        "weights": dict(shares),
        "weights_sha256": weights_sha256,
        "fitted_on_oof": kind == "climbed",
        "predicted": dict(request),
        "unreadable_test_ids": [str(test_ids[row]) for row in unreadable],
    }
    artifacts.write_manifest(folder, facts_of_fold, names, files)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", default=["baseline"], help="folders of runs/ (default: baseline)")
    parser.add_argument(
        "--weights", default="", help=f"of {', '.join(KINDS)}, or auto (default: as before, else the config's select)"
    )
    parser.add_argument(
        "--tta", default="", help=f"of {', '.join(TTA_TRANSFORMS)}, or auto (default: as before, else the config's)"
    )
    parser.add_argument("--overwrite", action="store_true", help="predict again what is done")
    words = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]  # --run must not take them
    arguments = parser.parse_args([word for word in sys.argv[1:] if word not in words])
    arguments.settings = words
    return arguments


if __name__ == "__main__":
    arguments = parse_arguments()

    def main_of_each() -> None:
        refuse_settings(arguments.settings)
        for run in arguments.run:
            main(run, arguments.weights, arguments.tta, arguments.overwrite)

    run_stage(main_of_each)
