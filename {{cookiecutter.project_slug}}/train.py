"""Train the folds of one experiment.

Command  python train.py --fold 0        or --fold all; --config configs/<name>.yaml; any setting as key=value
Reads    competition.yaml, configs/<name>.yaml, folds.csv, data/train.csv, data/train_images/
Writes   runs/<name>/config.yaml, competition.yaml, environment.json, and for each fold k
         runs/<name>/fold<k>/: last, best[, ema, swa, snapshot1..n].safetensors, oof.parquet, log.csv, and
         manifest.json (last: "done"); runs/ledger.csv once every fold is there

Started again after any interruption it goes on from the last saved state (state.pt, every 10 minutes and at the end of
each epoch) and ends with the same bytes. SIGTERM, Ctrl-C and --time-limit save at the next batch and exit with 75.

--fold all-data trains on every row, for test predictions alone (runs/<name>/all-data/). seed=1..3 trains three runs,
<name>-seed1 to -seed3: a seed ensemble for stack.py. --fold all --parallel auto trains several folds at once where one
leaves GPUs idle; what a fold says is in runs/<name>/fold<k>/output.log until it is done.

torchrun --nproc-per-node 2 train.py --fold 0 trains one fold on two GPUs (or more, or several machines: --nnodes), the
same batches and learning rates as on one: docs/several_gpus.md.

Before it trains for hours, --find-lr, --overfit-batch and --profile look at one fold (the first, unless --fold says
which) and change nothing of a run. They write runs/<name>/lr_range_fold<k>.png and .csv, and profile.png and .csv.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

import competition
from kfold import artifacts
from kfold.adopt import adopt_run
from kfold.artifacts import Workspace
from kfold.config import Competition, Config, load_competition, load_config
from kfold.conflicts import task_contradictions
from kfold.data.folds import Folds, read_folds, take_rows
from kfold.data.loader import EpochOrder
from kfold.data.targets import Targets
from kfold.distributed import (
    agreed,
    by_first,
    check_together,
    held_by_first,
    is_first,
    is_news,
    num_processes,
    together,
)
from kfold.errors import UserError, run_stage
from kfold.files import locked
from kfold.finish import (
    predict_file,
    predict_selected,
    selected_kinds,
    write_log,
    write_results,
    write_skipped,
    write_snapshot,
    write_weights,
)
from kfold.folds_at_once import read_wish
from kfold.forecast import PREPARED, TimeForecast, bytes_needed, refuse_full_disk
from kfold.metrics import Metric
from kfold.model.weights import copy_weights
from kfold.needs import waiting_keys
from kfold.numbers import whole
from kfold.parallel_folds import train_at_once
from kfold.run_summary import summarize_run, tracked_part
from kfold.setup.batches import make_batches
from kfold.setup.cleaning import drop_doubtful
from kfold.setup.network import refuse_unfit_model
from kfold.setup.objective import make_loss, make_objective
from kfold.setup.pixels import open_pixels
from kfold.setup.rows import all_paths, gather_rows
from kfold.setup.several import describe_processes, share_of_batch
from kfold.setup.speed import choose_speed_together
from kfold.setup.speed_measure import Fold
from kfold.setup.start import make_network, make_training
from kfold.setup.terms import load_teachers, make_terms
from kfold.setup.training import make_recipe, make_saver
from kfold.stopping import Stop, parse_seconds
from kfold.tracking import refuse_absent_tracker, told
from kfold.training.early_stopping import is_stalled
from kfold.training.loop import fit
from kfold.training.memory import full_memory_named
from kfold.training.optimizers import NUM_MOMENTS
from kfold.training.precision import choose_device, make_deterministic
from kfold.training.schedules import cycle_ends
from kfold.training.sharing import share_training
from kfold.training.state import EpochResult

ROOT = Path(__file__).resolve().parent


def main(
    fold: str = "all",
    config_path: Path | None = None,
    overrides: Sequence[str] = (),
    name: str = "",
    overwrite: bool = False,
    root: Path = ROOT,
    stop: Stop | None = None,
    resume_from: Path | None = None,
    rehearsal: str = "",
    parallel: str = "",
    is_part: bool = False,
) -> None:
    """Train one fold ("0", "1", ...), "all" or "all-data" of the experiment; folds that are done are left alone.

    Raises Interrupted, with the state saved, when `stop` says so. resume_from: a folder with earlier runs. rehearsal:
    find_lr, overfit_batch or profile, in place of training. parallel: folds at once, or auto; is_part: one of these.
    """
    stop = stop or Stop()
    workspace = Workspace(root)
    facts = load_competition(workspace.competition_path)
    config_path = config_path or workspace.config_path("baseline")
    config = load_config(config_path, overrides)
    run = name or config_path.stem + (f"-limit{config.limit}" if config.limit else "")
    refuse_odd_request(run, overwrite, resume_from, rehearsal, fold, parallel)

    folds = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    numbers = choose_folds(fold, folds, config)
    num_rows, folds = len(folds.ids), take_rows(folds, config.limit)
    targets = competition.decode_targets(folds.table, facts)
    metric = competition.metric(facts)
    refuse_wrong_choices(config, facts, len(targets.names))  # they should not touch the run's folder

    artifacts.refuse_stack(workspace, run)
    if rehearsal:
        rehearse_fold(rehearsal, workspace, run, numbers[0], facts, config, folds, targets, num_rows, stop)
        return
    take_run(workspace, run, facts, config, numbers, overwrite, is_part)
    trained = resume_from is not None and by_first(adopt_run, workspace, resume_from, run, numbers, config, folds.stamp)
    if parallel and train_beside(workspace, config_path, overrides, run, numbers, folds.stamp, parallel, stop):
        numbers, trained = [], True
    for position, number in enumerate(numbers):
        with held_by_first(partial(locked, workspace.fold_dir(run, number))), stop.listening():
            if by_first(artifacts.is_done, workspace, run, number, folds.stamp):
                by_first(artifacts.delete_states, workspace, run, number)  # a kill may have come before this
                print(f"run {run}, {fold_name(number)}: done before (--overwrite trains it again)")
                continue
            check_together(stop)
            with full_memory_named(fold_name(number)):
                train_fold(workspace, run, number, facts, config, folds, targets, metric, stop, len(numbers) - position)
            trained = True
    if numbers == [artifacts.ALL_DATA]:
        print(f"next: python predict.py --run {run}")
    elif not (is_part or artifacts.is_ablation(run)):
        by_first(summarize_run, workspace, run, facts, config, folds, targets, metric, trained)
    check_together(stop)  # a signal may have come with the last fold: later stages should not start


def refuse_odd_request(
    run: str,
    overwrite: bool = False,
    resume_from: Path | None = None,
    rehearsal: str = "",
    fold: str = "all",
    parallel: str = "",
) -> None:
    if parallel:
        read_wish(parallel)
        if rehearsal or fold != "all":
            raise UserError("--parallel trains several folds: it goes with --fold all")
    if num_processes() > 1 and (parallel or rehearsal):
        flag = "parallel" if parallel else rehearsal.replace("_", "-")
        raise UserError(f"--{flag} is for one process: start it with python, not torchrun")
    if overwrite and resume_from is not None:
        raise UserError("--overwrite starts anew and --resume-from takes over earlier work: leave out one of them")
    if rehearsal and (overwrite or resume_from is not None):
        raise UserError(f"--{rehearsal.replace('_', '-')} changes no run: leave out --overwrite and --resume-from")
    if run == "stack":
        raise UserError("a run cannot be called stack: stack.py puts its results there: give it another --name")


def rehearse_fold(rehearsal: str, *chosen) -> None:
    """chosen: as ChosenFold takes them."""
    from kfold.rehearsal.assembled import ChosenFold  # here: they load matplotlib, which training can spare
    from kfold.rehearsal.rehearse import rehearse

    rehearse(rehearsal, ChosenFold(*chosen))


def take_run(
    workspace: Workspace,
    run: str,
    facts: Competition,
    config: Config,
    numbers: Sequence[int],
    overwrite: bool,
    is_part: bool,
) -> None:
    """The run's folder is one of these settings from here on. Raises UserError where it is one of others."""
    if is_part and workspace.run_config_path(run).exists():  # by the parent, whose node may have other versions
        by_first(artifacts.refuse_other_settings, workspace, run, facts, config)
    else:
        by_first(artifacts.register_run, workspace, run, facts, config, numbers, overwrite)
    if waiting := waiting_keys(config):
        print(f"run {run}: trained without pseudo-labels: {', '.join(waiting)} waits for pseudo_label.py --run {run}")


def train_beside(
    workspace: Workspace,
    config_path: Path,
    overrides: Sequence[str],
    run: str,
    numbers: Sequence[int],
    fold_stamp: str,
    parallel: str,
    stop: Stop,
) -> bool:
    """Train what is not done of the folds, several at once; False where they had better be trained one by one."""

    def command_of(number: int) -> list[str]:
        words = ["--fold", str(number), "--config", str(config_path), "--name", run, "--part"]
        return [sys.executable, str(workspace.root / "train.py"), *words, *overrides]

    undone = [number for number in numbers if not artifacts.is_done(workspace, run, number, fold_stamp)]
    return train_at_once(undone, parallel, command_of, partial(workspace.output_path, run), stop)


def refuse_wrong_choices(config: Config, facts: Competition, num_outputs: int) -> None:
    """Raise UserError for settings that do not fit the competition, or a model that cannot be built."""
    if problems := task_contradictions(config, facts.task):
        raise UserError(problems)
    make_loss(config, facts.task)
    refuse_absent_tracker(config.tracker)
    refuse_unfit_model(config, num_outputs)


def choose_folds(wish: str, folds: Folds, config: Config) -> list[int]:
    """The folds that are meant. Raises UserError for none of these, or a limit that leaves too few rows to each."""
    if 0 < config.limit < 2 * folds.num_folds:
        raise UserError(
            f"limit={config.limit}: too few rows for {folds.num_folds} folds: take {2 * folds.num_folds} or more"
        )
    if wish == "all":
        return list(range(folds.num_folds))
    if wish == "all-data":
        if config.select == "best":
            raise UserError("--fold all-data holds no row out, so there is no best epoch: use select=last, ema or swa")
        if config.early_stopping:
            raise UserError("--fold all-data holds no row out to stop by: use early_stopping=0, and epochs=<as many>")
        return [artifacts.ALL_DATA]
    if not wish.isdecimal() or int(wish) >= folds.num_folds:
        raise UserError(f"--fold {wish}: folds.csv has folds 0 to {folds.num_folds - 1}, or say all, or all-data")
    return [int(wish)]


def fold_name(number: int) -> str:
    return "all data" if number == artifacts.ALL_DATA else f"fold {number}"


def train_fold(
    workspace: Workspace,
    run: str,
    number: int,
    facts: Competition,
    config: Config,
    folds: Folds,
    targets: Targets,
    metric: Metric,
    stop: Stop,
    folds_left: int,
) -> None:
    """Train on every fold but `number`, predict that one, and write the fold's files, the manifest last.

    number: ALL_DATA holds no row out and leaves no out-of-fold predictions. An interrupted fold goes on from its state.
    """
    # Over 60 lines on purpose: the recipe of a fold, read top to bottom.
    device = choose_device()
    make_deterministic(config.deterministic)
    valid = folds.fold == number
    truth = targets.values[valid]
    with agreed():
        rows = gather_rows(workspace, run, number, facts, config, folds, targets)
    if config.clean_labels:
        rows = by_first(drop_doubtful, workspace, run, number, facts, config, folds, targets, rows, device, stop)
    print(
        f"run {run}, {fold_name(number)}: {config.backbone} at {config.image_size} px, {rows.num_real} rows to train"
        + (f" and {len(rows.train_paths) - rows.num_real} pseudo-labelled ones" if config.pseudo_from else "")
        + f", {valid.sum()} to validate, {device.type}"
    )
    if num_processes() > 1:
        print(f"  {describe_processes(config, rows.num_real, device)}")
    pixels = by_first(open_pixels, workspace, config, all_paths(rows), config.epochs, stop.check, run)
    with agreed():
        train_batches, valid_batches = make_batches(rows, facts.task, config, number, device, pixels, stop.check)
        teachers = load_teachers(workspace, config.distill_from, number, folds.stamp)
    model, card = make_network(rows, targets.names, facts.task, config, number, device, pixels)
    order: EpochOrder = train_batches.batch_sampler
    num_steps = order.steps_before(config.epochs)
    facts_of_choice = (share_of_batch(config), model, card, rows, teachers, num_steps, folds_left, device, stop)
    fold = Fold(workspace, run, number, *facts_of_choice, is_shared=num_processes() > 1)
    speed, reason = choose_speed_together(fold)
    print(f"  speed: {speed} ({reason})")
    training, precision = make_training(model, config, speed, device), speed.precision(reason)
    recipe = make_recipe(config, number)
    ends = cycle_ends(config.epochs, config.num_cycles) if config.schedule == "cosine_cycles" else []

    num_moments, folder = NUM_MOMENTS[config.optimizer], workspace.fold_dir(run, number)
    needed = by_first(bytes_needed, model, num_moments, training.averages, len(ends), folds_left, folder)
    print(f"{PREPARED}{by_first(refuse_full_disk, folder, needed)}")
    saver = make_saver(
        workspace, run, number, training, config, folds.stamp, rows, pixels, teachers, device, speed, stop
    )
    if resumed := by_first(saver.restore):
        print(f"  {resumed}")
    share_training(training)
    first_step, averages = order.steps_before(training.epoch, training.batch), training.averages
    with agreed():
        terms = make_terms(
            model, averages, teachers, rows, card, config, number, device, precision, order, first_step, pixels
        )
    objective = make_objective(config, facts.task, terms, bool(teachers), rows)
    forecast = TimeForecast(
        num_steps,
        num_steps - first_step,
        order.num_batches(0),
        valid.sum() / len(rows.train_ids),
        folds_left,
        stop,
        training,
    )

    def between_batches() -> None:
        forecast.between_batches()
        saver.between_batches()

    def score(predictions: np.ndarray) -> float:
        return metric.function(truth, predictions)

    results = fit(
        training, card, objective, train_batches, valid_batches, score, recipe, device, precision, between_batches,
        partial(is_stalled, patience=config.early_stopping, better=metric.better),
    )  # fmt: skip
    subject = tracked_part(workspace, facts, config, run, workspace.fold_dir(run, number).name, folds.stamp)
    results = told(results, config.tracker if is_first() else "none", subject, metric.name, training.log)
    try:
        for result in results:
            if result.epoch in ends:
                write_snapshot(workspace, run, number, ends.index(result.epoch) + 1, training, card)
            best = training.best_score
            if valid_batches is not None and (best is None or metric.better(result.score, best)):
                training.best_score, training.best_weights = result.score, copy_weights(training.model)
            by_first(write_log, workspace.log_path(run, number), training)
            saver.save()
            print(describe_epoch(result, config.epochs, metric.name, valid_batches is not None))
    finally:
        results.close()  # a tracker, too, where training was interrupted
        write_skipped(workspace.skipped_path(run, number), training, rows.train_ids)

    if training.epoch < config.epochs:
        print(f"  ended after epoch {training.epoch}: {config.early_stopping} epochs without a better {metric.name}")
    by_first(write_log, workspace.log_path(run, number), training)
    check = partial(check_together, stop)
    kinds = write_weights(workspace, run, number, training, card, recipe, train_batches, device, check)
    facts_of_fold = {
        "task": facts.task,
        "device": device.type,
        "precision": speed.dtype,
        "speed": str(speed),
        "metric": metric.name,
        "length_from_validation": config.early_stopping > 0,
        "minutes": round(sum(result.seconds for result in training.log) / 60, 3),
        "images_per_second": round(float(np.median([result.images_per_second for result in training.log])), 1),
        "teachers": {name: teacher.weights_sha256 for name, teacher in teachers.items()},
        **({"processes": num_processes()} if num_processes() > 1 else {}),
    }
    predict = partial(predict_file, valid_batches=valid_batches, device=device, speed=speed, between_batches=check)
    held_out = predict_selected(workspace, run, number, selected_kinds(kinds, config.select), predict)
    results = (kinds, bool(training.skipped_rows), held_out, score, facts_of_fold)
    by_first(write_results, workspace, run, number, config, folds, targets, *results)
    by_first(artifacts.delete_states, workspace, run, number)


def describe_epoch(result: EpochResult, epochs: int, metric_name: str, is_validated: bool) -> str:
    validation = f", validation loss {result.valid_loss:.4f}, {metric_name} {result.score:.5f}"
    return (
        f"  epoch {result.epoch}/{epochs}: loss {result.train_loss:.4f}"
        f"{validation if is_validated else ''}, {result.images_per_second:.0f} images/s"
        + (f", {result.skipped} batches skipped (not finite)" if result.skipped else "")
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fold", default="all", help="a fold number, all (default), or all-data")
    parser.add_argument("--config", type=Path, help="an experiment (default: configs/baseline.yaml)")
    parser.add_argument("--name", default="", help="name of the run (default: the config's file name)")
    parser.add_argument("--limit", type=whole, help="a trial run on this many rows, named <name>-limit<N>")
    parser.add_argument("--overwrite", action="store_true", help="train folds again that are done, or begun")
    parser.add_argument("--time-limit", help="save and stop with exit code 75 after this time, e.g. 8h30m")
    parser.add_argument("--resume-from", type=Path, help="a folder that holds runs/ of an earlier session")
    parser.add_argument(
        "--parallel",
        default="",
        metavar="auto|N",
        help="with --fold all: folds at once, each a process of its own; auto: one a GPU, or as one GPU has room for",
    )
    parser.add_argument("--part", action="store_true", help=argparse.SUPPRESS)  # of --parallel, which sums up
    rehearsals = parser.add_mutually_exclusive_group()
    for flag, purpose in (
        ("--find-lr", "instead: try growing learning rates and suggest one"),
        ("--overfit-batch", "instead: say whether one batch can be learned or, if not, which part is broken"),
        ("--profile", "instead: where the time goes, how long a run takes, the largest batch that fits"),
    ):
        constant = flag[2:].replace("-", "_")
        rehearsals.add_argument(flag, action="store_const", const=constant, default="", dest="rehearsal", help=purpose)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of kfold/config.py, e.g. lr=1e-3")
    return parser.parse_intermixed_args()


def seed_runs(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """`seed=1..3` makes three runs: for each, what its name ends in, and its words."""
    ranges = [match for word in words if (match := re.fullmatch(r"seed=(\d+)\.\.(\d+)", word))]
    if not ranges:
        return [("", list(words))]
    others = [word for word in words if word != ranges[0][0]]
    first, last = map(int, ranges[0].groups())
    if first > last:
        raise UserError(f"{ranges[0][0]}: an empty range, write the smaller seed first")
    return [(f"-seed{seed}", [*others, f"seed={seed}"]) for seed in range(first, last + 1)]


if __name__ == "__main__":
    arguments = parse_arguments()
    words = arguments.overrides + ([f"limit={arguments.limit}"] if arguments.limit is not None else [])

    def main_of_each_seed() -> None:
        with together():
            train_each_seed()

    def train_each_seed() -> None:
        stop = Stop(None if arguments.time_limit is None else parse_seconds(arguments.time_limit))
        for ending, its_words in seed_runs(words):
            base = arguments.name or (arguments.config.stem if arguments.config else "baseline")
            limit = f"-limit{arguments.limit}" if arguments.limit else ""
            name = base + ending + limit if ending else arguments.name
            main(
                arguments.fold,
                arguments.config,
                its_words,
                name,
                arguments.overwrite,
                stop=stop,
                resume_from=arguments.resume_from,
                rehearsal=arguments.rehearsal,
                parallel=arguments.parallel,
                is_part=arguments.part,
            )

    run_stage(main_of_each_seed, not arguments.rehearsal, is_news)
