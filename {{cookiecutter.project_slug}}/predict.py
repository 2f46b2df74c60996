"""Predict the validation and test rows of every trained fold, with test-time augmentation (TTA).

Command  python predict.py               or --run <name> <name> --weights last,ema,swa,snapshots --tta auto
         python predict.py --oof, then --shard 1/16 to --shard 16/16 on as many machines, then --merge
Reads    runs/<name>/ (config, weights), folds.csv, data/ (train and test images)
Writes   runs/<name>/fold<k>/{oof,test}.parquet and the fold's manifest, runs/<name>/choices.csv

Several weights or views (auto: all there are) are scored out of fold first; the simplest within noise of the best is
taken. A single one is taken as asked for, and compared with the plain one. Weights of --fold all-data predict the test
rows only. Each test image is read once, for all views of all folds, and of all runs whose images are read alike.
Merged shards are the file that one pass writes: --oof chooses for all of them, and predicts the held-out rows once.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

import competition
from kfold import artifacts
from kfold.artifacts import ALL_DATA, Workspace, is_predicted
from kfold.config import Competition, Config, load_competition, load_config
from kfold.data.folds import read_folds, take_rows
from kfold.data.tables import read_test_ids
from kfold.engines.held import Held, memory_for_models
from kfold.engines.inference import ENGINES, Inference
from kfold.ensemble.choice import read_wishes
from kfold.ensemble.tta import TTA_TRANSFORMS
from kfold.errors import UserError, run_stage
from kfold.files import locked
from kfold.inference import Pending, predict_test, shares_of
from kfold.inference_choice import NO_WISH, Wish, say_fallbacks, settle_inference
from kfold.model.build import has_fixed_input
from kfold.numbers import decimal
from kfold.prediction_choice import choose
from kfold.prediction_files import merge_fold, write_fold, write_plan, write_shard
from kfold.prediction_job import Job
from kfold.predictions import ids_sha256
from kfold.shard_jobs import find_shards, planned_folds, shard_problems, shards_to_predict
from kfold.shards import Shard, parse_shard
from kfold.training.precision import choose_device

ROOT = Path(__file__).resolve().parent
KINDS = ("last", "ema", "swa", "snapshots", "climbed", "best")  # in order of simplicity; best is optimistic


def main(
    run: str | Sequence[str] = "baseline",
    weights: str = "",
    tta: str = "",
    overwrite: bool = False,
    root: Path = ROOT,
    wish: Wish = NO_WISH,
    only_oof: bool = False,
) -> None:
    """Write oof.parquet and test.parquet of each trained fold of `run`, or of several, from the chosen weights and
    views. only_oof: choose, and leave the test rows to shards."""
    workspace, runs = Workspace(root), as_list(run)
    refuse_untrained(workspace, runs)
    is_done = is_planned if only_oof else is_predicted
    with ExitStack() as locks:
        lock_folds(workspace, runs, locks)
        pending: list[Pending] = []
        for job in open_jobs(workspace, runs):
            pending += folds_to_predict(job, weights, tta, overwrite, wish, is_done)
        if only_oof:
            for fold in pending:
                write_plan(fold)
            print(f"next: python predict.py --run {' '.join(runs)} --shard 1/16, and so on to 16/16")
            return
        for fold, test, unreadable in predict_test(pending):
            write_fold(fold, test, unreadable)
    for name in runs:
        say_next(workspace, name)


def say_next(workspace: Workspace, run: str) -> None:
    if workspace.trained_folds(run):
        print(f"next: python submit.py --run {run}")
    else:
        print(f"run {run}: the full-data fit alone has no out-of-fold rows to choose by")
        print("next: python train.py --fold all for the same run, which gives scores; then submit.py --all-data")


def as_list(run: str | Sequence[str]) -> list[str]:
    return [run] if isinstance(run, str) else list(dict.fromkeys(run))


def lock_folds(workspace: Workspace, runs: Sequence[str], locks: ExitStack) -> None:
    for name in runs:
        for number in folds_of(workspace, name):
            locks.enter_context(locked(workspace.fold_dir(name, number)))


def refuse_untrained(workspace: Workspace, runs: Sequence[str]) -> None:
    for run in runs:
        artifacts.refuse_odd_name(run)
        artifacts.refuse_stack(workspace, run)
        artifacts.refuse_ablation(run)
        if not folds_of(workspace, run):
            found = ", ".join(workspace.run_names()) or "none yet"
            raise UserError(
                f"run {run}: no trained fold in {workspace.run_dir(run)}: run train.py first; runs: {found}"
            )


def folds_of(workspace: Workspace, run: str) -> list[int]:
    return workspace.trained_folds(run) + ([ALL_DATA] if workspace.has_full_fit(run) else [])


def open_jobs(workspace: Workspace, runs: Sequence[str]) -> list[Job]:
    facts = load_competition(workspace.competition_path)
    test_csv, sample_csv = (workspace.data_path(facts, name) for name in (facts.test_csv, facts.sample_submission_csv))
    test_ids = np.array(read_test_ids(test_csv, sample_csv, facts.id_column), object)
    held = Held(memory_for_models(choose_device()))
    return [open_job(workspace, name, facts, test_ids, held) for name in runs]


def open_job(workspace: Workspace, run: str, facts: Competition, test_ids: np.ndarray, held: Held) -> Job:
    config = load_config(workspace.run_config_path(run))
    folds = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    folds = take_rows(folds, config.limit)
    targets = competition.decode_targets(folds.table, facts)
    manifests = read_manifests(workspace, run, folds_of(workspace, run), folds.stamp)
    metric, numbers = competition.metric(facts), workspace.trained_folds(run)
    return Job(workspace, run, facts, config, folds, targets, metric, numbers, manifests, test_ids, held)


def is_planned(manifest: Mapping, request: Mapping[str, object]) -> bool:
    return artifacts.plan_of(manifest).get("request") == request


def folds_to_predict(
    job: Job, weights: str, tta: str, overwrite: bool, wish: Wish, is_done: Callable[[Mapping, Mapping], bool]
) -> list[Pending]:
    """The folds that are to be predicted, and with what, chosen out of fold; none where all is done."""
    manifests = job.manifests
    # Run again, it keeps the choices of before.
    earlier = next((plan["request"] for plan in map(artifacts.plan_of, manifests.values()) if plan), {})
    kinds = choose_from(weights or earlier.get("weights", job.config.select), offered_kinds(manifests), "--weights")
    views = choose_from(tta or earlier.get("tta", job.config.tta), offered_views(job.config), "--tta")
    request = {"weights": kinds[0], "tta": views[0], "test_ids": ids_sha256(job.test_ids)}
    if "inference" in earlier:
        request["inference"] = earlier["inference"]
    before = Inference(**earlier["inference"]) if "inference" in earlier else None
    are_done = all(is_done(manifest, request) for manifest in manifests.values())
    if len(kinds) == len(views) == 1 and are_done and not overwrite and wish.agrees(before or Inference()):
        print(f"run {job.run}: predicted before with weights={kinds[0]}, tta={views[0]} (--overwrite does it again)")
        return []
    job.inference = settle_inference(job, wish, None if overwrite else before, kinds, views)
    if job.inference.is_plain:
        say_fallbacks(job)
    kind, view = choose(job, kinds, views) if job.numbers else (kinds[0], views[0])
    request |= {"weights": kind, "tta": view, "inference": asdict(job.inference)}
    return [
        Pending(job, number, kind, view, shares_of(job, kind, view, number), request)
        for number, manifest in manifests.items()
        if overwrite or not is_done(manifest, request)
    ]


def refuse_settings(words: Sequence[str]) -> None:
    """Raise UserError for key=value words: a run is predicted with the settings that it was trained with."""
    options = {"tta": "--tta", "select": "--weights", "weights": "--weights"}
    problems = []
    for key, _, value in (word.partition("=") for word in words):
        remedy = f"write {options[key]} {value}" if key in options else "leave it out"
        problems.append(f"'{key}={value}': settings are given to train.py, here they are the run's own: {remedy}")
    if problems:
        raise UserError(problems)


def refuse_choices(arguments: argparse.Namespace) -> None:
    """Raise UserError for a choice that is given to a shard or to the merge: --oof makes it, once for all of them."""
    names = [name for name in ("weights", "tta", "speed", "engine") if getattr(arguments, name)]
    if names:
        part = "--merge" if arguments.merge else f"--shard {arguments.shard}"
        raise UserError(f"{part} --{names[0]}: chosen once for all shards: give it to predict.py --oof")


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


# Shards of the test rows


def predict_shard(run: str | Sequence[str], shard: Shard, overwrite: bool = False, root: Path = ROOT) -> None:
    """Write one shard's test.parquet of each fold of the runs, by the weights, views and way that --oof has chosen."""
    workspace, runs = Workspace(root), as_list(run)
    refuse_untrained(workspace, runs)
    with ExitStack() as locks:
        for name in runs:
            for number in folds_of(workspace, name):
                locks.enter_context(locked(workspace.shard_dir(name, number, shard)))
        jobs = [replace(job, shard=shard) for job in open_jobs(workspace, runs)]
        pending = [fold for job in jobs for fold in shards_to_predict(job, overwrite)]
        for fold, test, unreadable in predict_test(pending):
            write_shard(fold, test, unreadable)
    again = " --overwrite" if overwrite else ""
    print(f"next, when all {shard.count} shards are there: python predict.py --run {' '.join(runs)} --merge{again}")


def merge_shards(run: str | Sequence[str], overwrite: bool = False, root: Path = ROOT) -> None:
    """Write test.parquet of each fold of the runs from its shards. Raises UserError that lists all that does not
    fit."""
    workspace, runs = Workspace(root), as_list(run)
    refuse_untrained(workspace, runs)
    with ExitStack() as locks:
        lock_folds(workspace, runs, locks)
        problems, ready = [], []
        for job in open_jobs(workspace, runs):
            ids = pa.array(job.test_ids.tolist(), pa.string())
            for fold in planned_folds(job):
                shards, manifest = find_shards(fold), job.manifests[fold.number]
                if is_predicted(manifest, fold.request) and not overwrite:
                    print(f"{fold.folder}: all test rows are predicted, nothing to merge")
                    artifacts.delete_shards(fold.folder)  # a merge that was killed may have left some
                    continue
                problems += shard_problems(fold, shards, ids)
                ready.append((fold, shards))
        if problems:
            raise UserError(problems)
        for fold, shards in ready:
            merge_fold(fold, shards)
            print(f"{fold.folder}: {len(shards)} shards merged, {len(fold.job.test_ids):,} ids")
    for name in runs:
        say_next(workspace, name)


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
    parser.add_argument(
        "--speed",
        choices=("auto", "plain"),
        default="",
        help="auto: the fastest way by a short trial; plain: PyTorch as it was trained (default: as before, else auto "
        "where there is much to predict)",
    )
    parser.add_argument(
        "--engine", choices=ENGINES, default="", help="openvino, onnxruntime: optional packages, on the CPU"
    )
    parser.add_argument(
        "--tolerance",
        type=decimal,
        default=NO_WISH.tolerance,
        help="how far a trial's number format of less than float32 may move a probability, or a value in standard "
        f"deviations (default: {NO_WISH.tolerance})",
    )
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--oof", action="store_true", help="choose, and predict the held-out rows alone; shards follow")
    part.add_argument("--shard", default="", metavar="I/N", help="a part of the test rows, such as 3/16")
    part.add_argument("--merge", action="store_true", help="join the shards, each id once")
    words = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]  # --run must not take them
    arguments = parser.parse_args([word for word in sys.argv[1:] if word not in words])
    arguments.settings = words
    return arguments


if __name__ == "__main__":
    arguments = parse_arguments()

    def main_of_all() -> None:
        refuse_settings(arguments.settings)
        wish = Wish(arguments.speed, arguments.engine, arguments.tolerance)
        if arguments.shard or arguments.merge:
            refuse_choices(arguments)
        if arguments.shard:
            predict_shard(arguments.run, parse_shard(arguments.shard), arguments.overwrite)
        elif arguments.merge:
            merge_shards(arguments.run, arguments.overwrite)
        else:
            main(arguments.run, arguments.weights, arguments.tta, arguments.overwrite, ROOT, wish, arguments.oof)

    run_stage(main_of_all)
