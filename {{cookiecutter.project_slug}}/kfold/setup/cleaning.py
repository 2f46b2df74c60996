"""Training rows left out because their labels are doubtful, for train.py: dropped.csv of a fold.

The judges are models of the same fold in other runs, which never saw it. Out-of-fold predictions would not do: those of
the other folds come from models that saw fold k, so a row that contradicts a near copy in fold k would be dropped, and
what is left would agree with fold k by choice. Measured in tests/test_cleaning.py on random labels with copies: an AUC
of 0.66 that way, of 0.51 this way and without dropping any (20 sets of rows, standard deviation 0.02).
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kfold.artifacts import Workspace
from kfold.config import Competition, Config
from kfold.data.augment import eval_transform
from kfold.data.cache import Pixels
from kfold.data.doubt import label_losses, most_doubtful
from kfold.data.folds import Folds
from kfold.data.loader import EpochOrder, Images, make_loader, read_batches
from kfold.data.progress import with_bar
from kfold.data.sampler import classes_of
from kfold.data.targets import Targets
from kfold.data.workers import workers_for
from kfold.errors import UserError
from kfold.model.weights import ModelCard
from kfold.report.spreadsheet import to_spreadsheet, unguard
from kfold.seals import refuse_broken_seal, write_sealed
from kfold.setup.pixels import recorded_pixels
from kfold.setup.rows import TrainingRows
from kfold.setup.terms import Teacher, load_teachers, refuse_other_outputs
from kfold.stopping import Stop
from kfold.training.predicting import predict_logits, same, to_target_units
from kfold.training.speed import Speed, arrange, fallback, prediction_speed

KEY = "clean_labels_from"


def drop_doubtful(
    workspace: Workspace,
    run: str,
    number: int,
    facts: Competition,
    config: Config,
    folds: Folds,
    targets: Targets,
    rows: TrainingRows,
    device: torch.device,
    stop: Stop,
) -> TrainingRows:
    """The rows without those real ones whose labels are doubted most; they are listed in dropped.csv.

    A fold that has a saved state goes on with the rows of that file: judged again, on another machine, the last digits
    of a doubt may differ, and so may the rows. The state vouches for them (rows_sha256). A damaged file is made again.
    """
    if not config.clean_labels:
        return rows
    path = workspace.dropped_path(run, number)
    dropped = read_dropped(path) if number in workspace.begun_folds(run) else None
    if dropped is None:
        judges = load_teachers(workspace, config.clean_labels_from, number, folds.stamp)
        refuse_other_outputs(judges, facts.task, targets.names, KEY)
        paths = rows.train_paths[: rows.num_real]
        pixels = {run: recorded_pixels(workspace, run, config, paths, 1, stop.check) for run in judges}
        doubts = judge(judges, pixels, rows, facts.task, config, device, stop.check)
        dropped = write_dropped(path, rows, doubts, facts.task, config.clean_labels, judges)
    print(f"  clean_labels: {len(dropped)} of {rows.num_real} rows left out, see {path}")
    return without(rows, dropped)


def without(rows: TrainingRows, dropped: np.ndarray) -> TrainingRows:
    """The rows, less those real ones whose ids are `dropped`."""
    is_real = np.arange(len(rows.train_ids)) < rows.num_real
    kept = ~(is_real & np.isin(rows.train_ids.astype(str), dropped))
    names = ("train_ids", "train_paths", "train_targets", "train_weights")
    return replace(rows, num_real=int((kept & is_real).sum()), **{name: getattr(rows, name)[kept] for name in names})


def judge(
    judges: dict[str, Teacher],
    pixels: dict[str, Pixels],
    rows: TrainingRows,
    task: str,
    config: Config,
    device: torch.device,
    between_batches: Callable[[], None],
) -> np.ndarray:
    """How much the judges' mean prediction doubts the label of each real row, (num_real,).

    pixels: those that each judge was trained on.
    """
    targets = rows.train_targets[: rows.num_real]
    answers = []
    for run, one in judges.items():
        if told := fallback(one.manifest, config.precision, device):
            print(f"  clean_labels_from {run}: {told}")
        speed = prediction_speed(one.manifest, config.precision, device)
        for model, card in one.models:
            answers.append(predict_rows(model, card, pixels[run], rows, config, device, speed, between_batches))
    return label_losses(np.mean(answers, axis=0, dtype=np.float64), targets, task)


def predict_rows(
    model: torch.nn.Module,
    card: ModelCard,
    pixels: Pixels,
    rows: TrainingRows,
    config: Config,
    device: torch.device,
    speed: Speed,
    between_batches: Callable[[], None],
) -> np.ndarray:
    """Predictions (num_real, C) of the real training rows, without augmentation, computed as the judge was trained."""
    paths, targets = rows.train_paths[: rows.num_real], rows.train_targets[: rows.num_real]
    transform, read = eval_transform(card.image_size, card.center_crop), pixels.reader(paths)
    images = Images(paths, targets, transform, card.image_size, read=read)
    order = EpochOrder(len(images), 2 * config.batch_size, False)
    loader = make_loader(images, order, workers_for(images, order, config.workers, device, between_batches), device)
    batches = with_bar(read_batches(loader), "judge labels", len(images))
    model, precision = arrange(model.to(device), speed), speed.precision("as in training")
    logits = predict_logits(model, batches, [same], card, device, precision, None, between_batches)[0]
    return to_target_units(logits, card).numpy()


# The file


def write_dropped(
    path: Path, rows: TrainingRows, doubts: np.ndarray, task: str, share: float, judges: dict[str, Teacher]
) -> np.ndarray:
    """Write dropped.csv, the largest doubt first; the ids that it lists, as text.

    Of classes the share is taken of each, so that no rare one is dropped whole.
    """
    targets = rows.train_targets[: rows.num_real]
    has_one_class = task in ("multiclass", "binary")
    classes = classes_of(targets, task) if has_one_class else np.zeros(len(targets))
    taken = np.flatnonzero(most_doubtful(doubts, classes, share))
    taken = taken[np.argsort(-doubts[taken], kind="stable")]
    ids = rows.train_ids[taken].astype(str)
    judged_by = " ".join(f"{run}:{teacher.weights_sha256[:12]}" for run, teacher in judges.items())
    table = pd.DataFrame({"id": ids, "doubt": doubts[taken], "judged_by": judged_by}, dtype=object)
    write_sealed(path, to_spreadsheet(table))  # no manifest lists it until its fold is trained
    return ids


def read_dropped(path: Path) -> np.ndarray | None:
    """The ids of dropped.csv, as text; None where it is missing or damaged."""
    try:
        refuse_broken_seal(path)
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        return np.array([unguard(cell) for cell in table["id"]], str)
    except FileNotFoundError:
        return None
    except (UserError, ValueError, KeyError) as problem:
        print(f"warning: {problem}: the labels are judged again", file=sys.stderr)
        return None
