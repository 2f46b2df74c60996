"""The rows that a fold trains on and is scored on: ids, images, targets, weights."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kfold.artifacts import Workspace
from kfold.config import Competition, Config
from kfold.data.folds import Folds
from kfold.data.images import image_path
from kfold.data.tables import read_test_ids
from kfold.data.targets import Targets
from kfold.ensemble.pseudo import PseudoRows
from kfold.ensemble.pseudo_files import read_pseudo, read_teachers, teacher_facts


@dataclass(frozen=True)
class TrainingRows:
    """The images of a fold, with targets (N, C). Training rows: real ones first, pseudo-labelled test rows after."""

    train_ids: np.ndarray
    train_paths: np.ndarray
    train_targets: np.ndarray
    train_weights: np.ndarray  # (N, C), of each target in the loss
    num_real: int
    valid_paths: np.ndarray
    valid_targets: np.ndarray
    unlabelled_paths: np.ndarray  # test images, for the mean teacher


def gather_rows(
    workspace: Workspace, run: str, number: int, facts: Competition, config: Config, folds: Folds, targets: Targets
) -> TrainingRows:
    valid = folds.fold == number
    train_dir, test_dir = (workspace.data_path(facts, name) for name in (facts.train_images, facts.test_images))
    paths = np.array([image_path(train_dir, image_id, facts.image_suffix) for image_id in folds.ids])
    train_ids, train_paths, train_targets = folds.ids[~valid], paths[~valid], targets.values[~valid]
    weights = np.ones_like(train_targets)
    unlabelled = []
    if config.pseudo_from or config.consistency_weight:
        test_csv, sample = (workspace.data_path(facts, name) for name in (facts.test_csv, facts.sample_submission_csv))
        test_ids = read_test_ids(test_csv, sample, facts.id_column)
        unlabelled = [image_path(test_dir, image_id, facts.image_suffix) for image_id in test_ids]
    if config.pseudo_from:
        pseudo = read_pseudo_of_fold(workspace, run, number, config, facts.task, folds, targets.names, test_ids)
        pseudo_paths = [image_path(test_dir, image_id, facts.image_suffix) for image_id in pseudo.ids]
        train_ids = np.concatenate([train_ids, pseudo.ids])
        train_paths = np.concatenate([train_paths, np.array(pseudo_paths, object)])
        train_targets = np.concatenate([train_targets, pseudo.targets])
        weights = np.concatenate([weights, config.pseudo_weight * pseudo.weights])
    return TrainingRows(
        train_ids,
        train_paths,
        train_targets,
        weights,
        int((~valid).sum()),
        paths[valid],
        targets.values[valid],
        np.array(unlabelled),
    )


def all_paths(rows: TrainingRows) -> list[Path]:
    """Every image that the fold reads."""
    return [*rows.train_paths, *rows.valid_paths, *rows.unlabelled_paths]


def read_pseudo_of_fold(
    workspace: Workspace,
    run: str,
    number: int,
    config: Config,
    task: str,
    folds: Folds,
    names: tuple[str, ...],
    test_ids: Sequence[str],
) -> PseudoRows:
    """The fold's pseudo-labels, after asking each teacher's manifest whether it may teach this fold."""
    manifests = read_teachers(workspace, config.pseudo_from, number, folds.num_folds, folds.stamp)
    teachers = [teacher_facts(manifest) for of_run in manifests.values() for manifest in of_run]
    path = workspace.pseudo_path(run, number)
    return read_pseudo(path, number, folds.stamp, task, names, teachers, test_ids, folds.ids)


def rows_sha256(rows: TrainingRows) -> str:
    """A digest (hex) of what is trained on: ids, targets and their weights, and images without labels, in order."""
    unlabelled = [Path(path).name for path in rows.unlabelled_paths]
    ids = "\n".join([*rows.train_ids, str(rows.num_real), *unlabelled]).encode()
    arrays = (rows.train_targets, rows.train_weights)
    return hashlib.sha256(
        ids + b"".join(np.ascontiguousarray(array, np.float32).tobytes() for array in arrays)
    ).hexdigest()
