"""Whether a run is what it says, for `make_folds.py --verify`: every file hashed again, every score computed again.

Nothing is believed of a file that fits no digest; what can be told without it is told all the same.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kfold import artifacts
from kfold.artifacts import ALL_DATA, Workspace
from kfold.config import Config, Settings, build_settings, load_config, read_yaml, settings_hash
from kfold.data.tables import shorten
from kfold.ensemble.pseudo_files import read_stamped
from kfold.ensemble.pseudo_rounds import Data
from kfold.ensemble.stack_settings import StackSettings
from kfold.errors import UserError
from kfold.intervals import FoldScores, score_folds
from kfold.ledger import check_ledger, read_ledger
from kfold.model.weights import load_model
from kfold.predictions import Predictions, ids_sha256, read_predictions
from kfold.runs import refuse_stale_stack
from kfold.seals import FILE_NAME, check_seals

MANIFEST = "manifest.json"
OF_A_RUN = ("config.yaml", "competition.yaml", "environment.json")  # each run has them
WRITTEN_BY_STAGES = (*OF_A_RUN, "choices.csv", "round.json", "tuned.json", "blend.csv", "correlation.csv",
                     "importance.csv", "importance.png")  # fmt: skip
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


def verify_shared(workspace: Workspace) -> list[str]:
    """A line for each damaged file that belongs to all runs."""
    names, problems = check_seals(workspace.runs_dir)
    for rows in ("train", "test"):
        path = workspace.image_statistics_path(rows)
        if path.exists() and path.name not in names:
            problems.append(f"{path}: is not in {path.parent / FILE_NAME}: delete it, stack.py makes it again")
    return problems + check_ledger(workspace.ledger_path)


def read_settings(workspace: Workspace, run: str) -> Settings:
    """config.yaml of a trained run or of a stack. Raises UserError."""
    path = workspace.run_config_path(run)
    values = read_yaml(path)
    return build_settings(StackSettings, values, str(path)) if "stack_of" in values else load_config(path)


def verify_run(workspace: Workspace, run: str, settings: Settings, data: Data) -> Found:
    """Every problem of a run. data: the rows and targets as its settings take them."""
    found = Found(num_ids=len(data.folds.ids))
    folder = workspace.run_dir(run)
    verify_run_files(found, folder)
    manifests = read_manifests(found, workspace, run, data.folds.num_folds)
    refuse_other_folds(found, workspace, run, manifests, data.folds.stamp)
    oof: dict[int, Predictions] = {}
    for number, manifest in manifests.items():
        whole = verify_fold_files(found, workspace, run, number, manifest)
        verify_facts(found, workspace, run, number, manifest, settings)
        verify_predictions(found, workspace, run, number, manifest, data, whole, oof)
        verify_weights(found, workspace.fold_dir(run, number), manifest, settings, data, whole)
    found.num_folds = len(set(manifests) - {ALL_DATA})
    if not manifests and not found.problems:
        found.problems.append(f"{folder}: no fold is finished: run its stage first")
    with found.collect():
        artifacts.refuse_mixed([oof[number] for number in sorted(oof)], run)
    if set(oof) == set(range(data.folds.num_folds)):
        verify_pooled(found, workspace, run, data, oof)
    if isinstance(settings, StackSettings):
        with found.collect():
            refuse_stale_stack(workspace, run)
    return found


# Files


def verify_run_files(found: Found, folder: Path) -> None:
    """The files of the run's own folder, by SHA256SUMS."""
    names, problems = check_seals(folder)
    found.problems += problems
    found.num_files += len(names) + 1
    for name in (*OF_A_RUN, *sorted(set(WRITTEN_BY_STAGES) - set(OF_A_RUN))):
        if name not in names and (name in OF_A_RUN or (folder / name).exists()):
            what = "is not in" if (folder / name).exists() else "missing, and not in"
            found.problems.append(f"{folder / name}: {what} {folder / FILE_NAME}: run its stage again with --overwrite")
    for path in sorted(folder.iterdir()):
        is_fold = path.is_dir() and (path.name == "all-data" or re.fullmatch(r"fold\d+", path.name))
        if not is_fold and path.name not in (*names, *WRITTEN_BY_STAGES, FILE_NAME):
            note_unknown(found, path)


def read_manifests(found: Found, workspace: Workspace, run: str, num_folds: int) -> dict[int, dict]:
    """The manifests that can be trusted, by fold."""
    manifests = {}
    for number in [*range(num_folds), ALL_DATA]:
        folder = workspace.fold_dir(run, number)
        with found.collect():
            manifest = artifacts.read_manifest(folder)
            if manifest is not None:
                manifests[number] = manifest
            elif folder.is_dir():
                verify_unfinished(found, workspace, run, number)
    for number in set(workspace.trained_folds(run)) - set(range(num_folds)):
        found.notes.append(f"{workspace.fold_dir(run, number)}: folds.csv has no such fold")
    return manifests


def verify_unfinished(found: Found, workspace: Workspace, run: str, number: int) -> None:
    """A fold without manifest: it is being made, or lost. The ledger gets its row when every fold is there."""
    folder = workspace.fold_dir(run, number)
    sealed, problems = check_fold_seals(workspace, run, number)
    found.problems += problems
    found.num_files += len(sealed) + bool(sealed)
    if number != ALL_DATA and any(row.get("run") == run for row in read_ledger(workspace.ledger_path)):
        found.problems.append(
            f"{folder / MANIFEST}: missing, but the ledger has the run's scores: train this fold again"
        )
    elif number != ALL_DATA or any(path.suffix == ".safetensors" for path in folder.iterdir()):
        found.notes.append(f"{folder}: not finished, it has no {MANIFEST}")
    if not problems and workspace.pseudo_path(run, number).exists():
        read_stamped(workspace.pseudo_path(run, number))


def check_fold_seals(workspace: Workspace, run: str, number: int) -> tuple[set[str], list[str]]:
    """`check_seals` of a fold's folder, where pseudo.parquet must be listed."""
    path = workspace.pseudo_path(run, number)
    sealed, problems = check_seals(path.parent)
    if path.exists() and path.name not in sealed:
        problems.append(f"{path}: is not in {path.parent / FILE_NAME}: run pseudo_label.py again with --overwrite")
    return sealed, problems


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
    for path in sorted(folder.iterdir()):
        if path.name not in known:
            note_unknown(found, path)
    if "pseudo.parquet" in whole:
        with found.collect():
            read_stamped(folder / "pseudo.parquet")
    return whole


def note_unknown(found: Found, path: Path) -> None:
    if path.name.startswith("."):
        if path.suffix == ".tmp":
            found.notes.append(f"{path}: left over from a write that was killed, it can be deleted")
    else:
        found.notes.append(f"{path}: no stage vouches for it")


# Facts


def refuse_other_folds(
    found: Found, workspace: Workspace, run: str, manifests: Mapping[int, Mapping], stamp: str
) -> None:
    stamps = {number: manifest.get("fold_stamp", "none") for number, manifest in manifests.items()}
    if stamps and stamp not in stamps.values():
        found.problems.append(
            f"{workspace.folds_path}: run {run} was not made with these folds (stamp {stamp[:12]}, its manifests have "
            f"{', '.join(sorted({other[:12] for other in stamps.values()}))}): restore folds.csv, or train again"
        )
        return
    for number, other in stamps.items():
        if other != stamp:
            found.problems.append(f"{workspace.fold_dir(run, number)}: made with other folds than the rest: redo it")


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
    wanted["tta"] = manifest.get("predicted", {}).get("tta", "none")
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


# The whole run


def verify_pooled(
    found: Found, workspace: Workspace, run: str, data: Data, oof: Mapping[int, Predictions]
) -> None:  # fmt: skip
    """Each training id has exactly one row, and the ledger's row has the scores of these rows."""
    values = np.zeros(data.targets.values.shape, np.float32)
    count = np.zeros(len(data.folds.ids), int)
    for number, predictions in oof.items():
        valid = data.folds.fold == number
        values[valid] = in_order(predictions, data, data.folds.ids[valid])
        count[valid] += 1
    found.problems += shorten(
        [f"run {run}: id '{name}' has no out-of-fold row: predict it again" for name in data.folds.ids[count != 1]]
    )
    found.scores = score_folds(data.metric, data.targets.values, values, data.folds.fold, data.folds.group_or_none)
    path = workspace.ledger_path
    with found.collect():
        row = next((row for row in read_ledger(path) if row.get("run") == run), None)
        if row is None:
            raise UserError(f"{path}: has no row of run {run}: run its last stage again with --overwrite")
        if row.get("metric") == data.metric.name:
            found.problems += compare_row(path, row, found.scores)
    compare_round(found, workspace, run)


def compare_row(path: Path, row: Mapping[str, str], scores: FoldScores) -> list[str]:
    wanted = {"oof": scores.pooled, "oof_low": scores.low, "oof_high": scores.high}
    problems = [
        f"{path}: run {row['run']}: {key} is '{row.get(key)}', its out-of-fold files give {value:.6g}: predict it again"
        for key, value in wanted.items()
        if not is_near(value, to_number(row.get(key, "")))
    ]
    by_fold = [to_number(text) for text in row.get("fold_scores", "").split()]
    if len(by_fold) != len(scores.by_fold) or not all(map(is_near, scores.by_fold.values(), by_fold)):
        problems.append(f"{path}: run {row['run']}: fold_scores are not those of its files: predict it again")
    return problems


def compare_round(found: Found, workspace: Workspace, run: str) -> None:
    """A note where a round of pseudo-labels was judged by other files than those of now."""
    path = workspace.round_path(run)
    try:
        compared = json.loads(path.read_text(encoding="utf-8"))["compared"][run]
    except (OSError, ValueError, KeyError, TypeError):
        return  # not a round, or damaged, which its seal tells
    files = [(artifacts.read_manifest(workspace.fold_dir(run, k)) or {}) for k in range(len(compared))]
    if compared != [manifest.get("files", {}).get("oof.parquet", {}).get("sha256", "") for manifest in files]:
        found.notes.append(f"{path}: judged by other predictions than those of now: run pseudo_label.py again")


def to_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def is_near(value: float, other: object) -> bool:
    """Equal but for the digits that are kept; two undefined scores are equal."""
    other = float("nan") if other is None else float(other)
    return bool(np.isclose(value, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))
