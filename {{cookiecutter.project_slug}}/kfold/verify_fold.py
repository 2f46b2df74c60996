"""One fold of `verify.py`: its files against their digests, then what its manifest claims against its files."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kfold import artifacts
from kfold.artifacts import ALL_DATA, Workspace
from kfold.config import Config, settings_hash
from kfold.ensemble.pseudo_files import read_stamped
from kfold.ensemble.pseudo_rounds import Data
from kfold.errors import UserError
from kfold.intervals import FoldScores
from kfold.model.weights import load_model
from kfold.predictions import Predictions, ids_sha256, read_predictions
from kfold.seals import FILE_NAME, check_seals
from kfold.settings import Settings

MANIFEST = "manifest.json"
TOLERANCE = 2e-5  # the ledger has six digits of a score, and five after the point of a fold's


@dataclass
class Found:
    """What the verification of one run found. scores: of its out-of-fold rows, where all folds can be read."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_files: int = 0
    num_folds: int = 0
    num_ids: int = 0
    scores: FoldScores | None = None

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Note a UserError and go on."""
        try:
            yield
        except UserError as error:
            self.problems += error.problems


# Files


def verify_fold_files(found: Found, workspace: Workspace, run: str, number: int, manifest: Mapping) -> set[str]:
    """The names of files that fit the manifest; the others are problems."""
    folder, whole = workspace.fold_dir(run, number), set()
    sealed, problems = check_fold_seals(workspace, run, number)
    found.num_files += len(manifest["files"]) + 1 + bool(sealed)
    for name in manifest["files"]:
        try:
            artifacts.verify_files(folder, manifest, [name])
            whole.add(name)
        except UserError as error:
            found.problems += error.problems
    found.problems += problems
    known = {*manifest["files"], *sealed, MANIFEST, FILE_NAME}
    for shard in workspace.shards(run, number):
        shard_dir = workspace.shard_dir(run, number, shard)
        known.add(shard_dir.name)
        with found.collect():
            of_shard = artifacts.read_manifest(shard_dir) or {"files": {}}
            found.num_files += len(of_shard["files"]) + 1
            artifacts.verify_files(shard_dir, of_shard)
    for path in sorted(folder.iterdir()):
        if path.name not in known:
            note_unknown(found, path)
    if "pseudo.parquet" in whole:
        with found.collect():
            read_stamped(folder / "pseudo.parquet")
    return whole


def check_fold_seals(workspace: Workspace, run: str, number: int) -> tuple[set[str], list[str]]:
    """`check_seals` of a fold's folder, where pseudo.parquet must be listed."""
    path = workspace.pseudo_path(run, number)
    sealed, problems = check_seals(path.parent)
    if path.exists() and path.name not in sealed:
        problems.append(f"{path}: is not in {path.parent / FILE_NAME}: run pseudo_label.py again with --overwrite")
    return sealed, problems


def note_unknown(found: Found, path: Path) -> None:
    if path.name.startswith("."):
        if path.suffix == ".tmp":
            found.notes.append(f"{path}: left over from a write that was killed, it can be deleted")
    else:
        found.notes.append(f"{path}: no stage vouches for it")


# Claims


def verify_facts(
    found: Found, workspace: Workspace, run: str, number: int, manifest: Mapping, settings: Settings
) -> None:
    """What the manifest says of its origin."""
    folder = workspace.fold_dir(run, number)
    path, redo = folder / MANIFEST, "make this fold again with --overwrite"
    with found.collect():
        artifacts.refuse_leak(folder, manifest, number)
    if manifest.get("run") != run:
        found.problems.append(f"{path}: is of run {manifest.get('run')}: give the folder its old name back")
    if manifest.get("config_hash") != settings_hash(settings):
        found.problems.append(f"{path}: made with other settings than {workspace.run_config_path(run).name}: {redo}")
    weights, files = manifest.get("weights", {}), manifest["files"]
    if isinstance(settings, Config):
        if not weights or not set(weights) <= set(files):
            found.problems.append(f"{path}: lists no digest of the weights that it predicts with: {redo}")
        elif artifacts.mix_sha256(weights, files) != manifest.get("weights_sha256"):
            found.problems.append(f"{path}: weights_sha256 is not that of its weights files: {redo}")
        elif settings.pseudo_from and workspace.pseudo_path(run, number).name not in files:
            found.problems.append(f"{path}: lists no pseudo.parquet, which its settings ask for: {redo}")
    else:
        with found.collect():
            artifacts.read_tuned_text(workspace, run, number)


def verify_predictions(
    found: Found,
    workspace: Workspace,
    run: str,
    number: int,
    manifest: Mapping,
    data: Data,
    whole: set[str],
    oof: dict[int, Predictions],
) -> None:
    """Each id once, in its own fold, with the manifest's stamps and score; the good ones go into `oof`."""
    valid = data.folds.fold == number
    for rows in ("oof", "test") if number != ALL_DATA else ("test",):
        path = workspace.predictions_path(run, number, rows)
        if path.name not in manifest["files"]:
            found.notes.append(f"{path}: not predicted yet: run predict.py --run {run}")
        if path.name not in whole:
            continue
        ids = data.folds.ids[valid] if rows == "oof" else data.test_ids
        if rows == "test" and manifest.get("predicted", {}).get("test_ids") not in (None, ids_sha256(ids)):
            found.problems.append(f"{path}: predicted for other test ids than those of now: run predict.py again")
            continue
        with found.collect():
            predictions = read_predictions(path, manifest["fold_stamp"], ids)
            refuse_other_stamps(path, predictions, manifest, data)
            if rows == "oof":
                refuse_other_score(path, predictions, manifest, data, number)
                oof[number] = predictions


def refuse_other_stamps(path: Path, predictions: Predictions, manifest: Mapping, data: Data) -> None:
    wanted = {key: manifest.get(key) for key in ("fold_stamp", "config_hash", "weights_sha256", "task")}
    wanted["tta"] = artifacts.plan_of(manifest).get("request", {}).get("tta", "none")
    problems = [
        f"{path}: its stamp {key} is '{predictions.stamps.get(key)}', {MANIFEST} says '{value}': predict it again"
        for key, value in wanted.items()
        if predictions.stamps.get(key) != value
    ]
    if set(predictions.names) != set(data.targets.names) or wanted["task"] != data.facts.task:
        problems.append(f"{path}: its columns or its task are not those of competition.yaml and train.csv: train again")
    if problems:
        raise UserError(problems)


def refuse_other_score(path: Path, predictions: Predictions, manifest: Mapping, data: Data, number: int) -> None:
    valid = data.folds.fold == number
    if predictions.fold is None or (predictions.fold != number).any():
        raise UserError(f"{path}: holds rows of another fold than {number}: predict it again")
    score = data.metric.function(data.targets.values[valid], in_order(predictions, data, data.folds.ids[valid]))
    if manifest.get("metric", data.metric.name) == data.metric.name and not is_near(score, manifest.get("score")):
        raise UserError(f"{path}: scores {score:.6f}, {MANIFEST} says {manifest.get('score')}: predict it again")


def in_order(predictions: Predictions, data: Data, ids: Sequence[str]) -> np.ndarray:
    """Values (N, C) in the order of ids and of the targets' names."""
    return predictions.aligned_to(ids)[:, [predictions.names.index(name) for name in data.targets.names]]


def verify_weights(
    found: Found, folder: Path, manifest: Mapping, settings: Settings, data: Data, whole: set[str]
) -> None:
    """Each weights file loads, and is of the settings and the targets."""
    for name in sorted(name for name in whole if name.endswith(".safetensors")):
        with found.collect():
            _, card = load_model(folder / name)
            wanted = (settings.backbone, settings.image_size, data.facts.task, data.targets.names)
            if (card.backbone, card.image_size, card.task, card.names) != wanted:
                raise UserError(f"{folder / name}: is a model of other settings or targets than the run's: train again")


def is_near(value: float, other: object) -> bool:
    """Equal but for the digits that are kept; two undefined scores are equal."""
    other = float("nan") if other is None else float(other)
    return bool(np.isclose(value, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))
