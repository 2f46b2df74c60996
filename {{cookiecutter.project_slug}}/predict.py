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
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from kfold.ensemble.blend import hill_climb
from kfold.ensemble.nested import nested_predictions

import competition
from kfold import artifacts
from kfold.artifacts import ALL_DATA, Workspace
from kfold.config import Competition, Config, load_competition, load_config
from kfold.data.augment import eval_transform
from kfold.data.folds import Folds, read_folds, take_rows
from kfold.data.images import image_path
from kfold.data.loader import EpochOrder, Images, make_loader
from kfold.data.tables import read_test_ids
from kfold.data.targets import Targets
from kfold.ensemble.choice import Candidate, choice_table, compare_candidates, read_wishes
from kfold.ensemble.second_level import Rows
from kfold.ensemble.tta import TTA_TRANSFORMS, make_views
from kfold.errors import UserError, run_stage
from kfold.files import atomic_write, locked
from kfold.metrics import Metric
from kfold.model.build import has_fixed_input
from kfold.model.weights import load_model
from kfold.predictions import Predictions, ids_sha256, write_predictions
from kfold.training.loop import predict_logits, to_target_units
from kfold.training.precision import choose_device, choose_precision

ROOT = Path(__file__).resolve().parent
KINDS = ("last", "ema", "swa", "snapshots", "climbed", "best")  # in order of simplicity; best is optimistic
Shares = Mapping[str, float]  # weights files of a fold and their shares in the mean of probabilities


@dataclass
class Job:
    """What every prediction of a run needs, and the out-of-fold predictions that were made so far."""

    workspace: Workspace
    run: str
    facts: Competition
    config: Config
    folds: Folds
    targets: Targets
    metric: Metric
    numbers: list[int]  # trained folds
    manifests: dict[int, dict]
    done: dict[tuple[int, str, str], tuple[np.ndarray, float]] = field(default_factory=dict)

    @property
    def rows(self) -> np.ndarray:
        """Mask (N,): rows of a trained fold."""
        return np.isin(self.folds.fold, self.numbers)


def main(run: str = "baseline", weights: str = "", tta: str = "", overwrite: bool = False, root: Path = ROOT) -> None:
    """Write oof.parquet and test.parquet of each trained fold of `run`, from the chosen weights and views."""
    workspace = Workspace(root)
    facts = load_competition(workspace.competition_path)
    artifacts.refuse_odd_name(run)
    artifacts.refuse_stack(workspace, run)
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
        views = choose_from(tta or earlier.get("tta", config.tta), offered_views(config, tta), "--tta")
        request = {"weights": kinds[0], "tta": views[0], "test_ids": ids_sha256(test_ids)}
        if (
            len(kinds) == len(views) == 1
            and not overwrite
            and all(is_predicted(manifests[n], request) for n in manifests)
        ):
            print(f"run {run}: predicted before with weights={kinds[0]}, tta={views[0]} (--overwrite does it again)")
        else:
            kind, view = choose(job, kinds, views) if numbers else (kinds[-1], views[-1])
            request |= {"weights": kind, "tta": view}
            for number in numbers + full:
                if overwrite or len(kinds) + len(views) > 2 or not is_predicted(manifests[number], request):
                    write_fold(job, number, kind, view, request, test_ids)
    print(f"next: python submit.py --run {run}")


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


def offered_views(config: Config, wish: str) -> list[str]:
    """All sets of views; `auto` leaves out the sizes that a backbone of one size cannot take."""
    is_out = wish == "auto" and has_fixed_input(config.backbone)
    return [name for name in TTA_TRANSFORMS if not (is_out and name == "scales")]


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
    kind, table = choose_one(job, "weights", with_plain(kinds, "last", job), lambda name: (name, plain_view), kinds)
    tables.append(table)
    view, table = choose_one(job, "tta", with_plain(views, "none", job), lambda name: (kind, name), views)
    tables.append(table)
    choices = pd.concat(tables, ignore_index=True)
    atomic_write(job.workspace.choices_path(job.run), choices.to_csv(index=False))
    return kind, view


def with_plain(wishes: Sequence[str], plain: str, job: Job) -> list[str]:
    """A single wish is compared with the plain one, where there is one."""
    is_there = plain != "last" or all("last.safetensors" in manifest["files"] for manifest in job.manifests.values())
    return [plain, *wishes] if len(wishes) == 1 and wishes[0] != plain and is_there else list(wishes)


def choose_one(job: Job, what: str, names: Sequence[str], pair_of, wishes: Sequence[str]) -> tuple[str, pd.DataFrame]:
    rows, groups = job.rows, job.folds.group_or_none
    candidates = {name: out_of_fold(job, *pair_of(name)) for name in names}
    wish = wishes[0] if len(wishes) == 1 else ""
    chosen, table = compare_candidates(
        candidates, job.targets.values[rows], job.metric, groups[rows] if groups is not None else None, wish
    )
    kind, view = pair_of(chosen)
    other = f"tta={view}" if what == "weights" else f"weights={kind}"
    print(f"run {job.run}, out of fold, {other}:\n{choice_table(what, job.metric.name, table)}")
    if not wish and len(names) > 1:
        print(f"  {what}={chosen} is the simplest within noise of the best")
    return chosen, table.assign(what=what)


def out_of_fold(job: Job, kind: str, view: str) -> Candidate:
    """Predictions (rows of trained folds, C) of a kind of weights under a set of views, and what an image costs."""
    merged = np.zeros(job.targets.values.shape, np.float32)
    milliseconds = []
    for number in job.numbers:
        shares = shares_of(job, kind, view, number)
        parts = [fold_predictions(job, number, name, view) for name in shares]
        merged[job.folds.fold == number] = mix([values for values, _ in parts], shares)
        milliseconds.append(sum(cost for _, cost in parts))
    return Candidate(merged[job.rows], float(np.median(milliseconds)))


def mix(parts: Sequence[np.ndarray], shares: Shares) -> np.ndarray:
    """The mean (N, C) of several weights' predictions, by their shares."""
    return np.average(np.array(parts, np.float64), axis=0, weights=list(shares.values())).astype(np.float32)


def shares_of(job: Job, kind: str, view: str, number: int) -> Shares:
    """The weights files of a fold that make up a kind.

    climbed: the snapshots by hill climbing, fitted without the rows of the fold, so that its score stays honest.
    """
    files = sorted(name for name in job.manifests[number]["files"] if name.startswith("snapshot"))
    files.sort(key=len)  # snapshot10 after snapshot9
    if kind == "snapshots":
        return dict.fromkeys(files, 1 / len(files))
    if kind == "best" and number == ALL_DATA:
        kind = "last"  # nothing was held out that could say which epoch is best
    if kind != "climbed":
        return {f"{kind}.safetensors": 1.0}
    rows = job.rows
    snapshots = np.zeros((len(files), *job.targets.values.shape), np.float32)
    for fold in job.numbers:
        for position, name in enumerate(files):
            snapshots[position, job.folds.fold == fold] = fold_predictions(job, fold, name, view)[0]
    second_level = Rows(snapshots[:, rows], job.folds.fold[rows])
    _, fitted = nested_predictions(hill_climb, second_level, job.targets.values[rows], job.facts.task, job.metric)
    shares = fitted[number].model if number in fitted else np.mean([fit.model for fit in fitted.values()], axis=0)
    return {name: float(share) for name, share in zip(files, shares, strict=True) if share > 0}


def fold_predictions(job: Job, number: int, name: str, view: str) -> tuple[np.ndarray, float]:
    """Out-of-fold predictions (n, C) of one weights file under a set of views, and milliseconds an image."""
    key = (number, name, view)
    if key not in job.done:
        ids = job.folds.ids[job.folds.fold == number]
        started = time.perf_counter()
        values = predict_images(job, number, name, view, ids, job.facts.train_images)
        job.done[key] = values, 1000 * (time.perf_counter() - started) / len(ids)
    return job.done[key]


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


def predict_images(
    job: Job,
    number: int,
    name: str,
    view: str,
    ids: np.ndarray,
    image_dir_name: str,
    unreadable: dict[int, str] | None = None,
) -> np.ndarray:
    """The mean (n, C) over the views. Rows of unreadable images go into `unreadable`; without it they raise."""
    folder = job.workspace.fold_dir(job.run, number)
    model, card = load_model(folder / name)
    if (card.task, card.names) != (job.facts.task, job.targets.names):
        raise UserError(
            f"{folder}: trained for other targets than competition.yaml and train.csv now give: train again"
        )
    device = choose_device()
    views = make_views(view, card.image_size, bool(model.pretrained_cfg.get("fixed_input_size")))
    image_dir = job.workspace.data_path(job.facts, image_dir_name)
    paths = [image_path(image_dir, image_id, job.facts.image_suffix) for image_id in ids]
    images = Images(paths, np.zeros((len(ids), 0)), eval_transform(card.image_size), card.image_size)
    order = EpochOrder(len(ids), 2 * job.config.batch_size, False)
    logits = predict_logits(
        model.to(device),
        make_loader(images, order, job.config.num_workers, device),
        views,
        card,
        device,
        choose_precision(job.config.precision, device),
        None if unreadable is None else unreadable.__setitem__,
        title=f"{image_dir_name} {folder.name} {name.split('.')[0]} {view}",
    )
    return to_target_units(logits, card).numpy().mean(axis=0)


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
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()

    def main_of_each() -> None:
        for run in arguments.run:
            main(run, arguments.weights, arguments.tta, arguments.overwrite)

    run_stage(main_of_each)
