"""Where every file lies and which of them to trust. The only module that knows paths.

A fold's manifest, written last, carries the sha256 of its files and of itself; SHA256SUMS (seals.py) that of the run's
other files. A reader refuses whatever does not fit, by name; `make_folds.py --verify` asks them all.
"""

import hashlib
import json
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from filelock import FileLock

from kfold.config import NOT_TRAINED, Competition, Config, load_competition, load_config, settings_hash
from kfold.conflicts import RUN_NAME
from kfold.ensemble.stack_settings import StackSettings
from kfold.errors import UserError
from kfold.files import atomic_write, file_sha256, locked
from kfold.predictions import Predictions, read_predictions
from kfold.seals import refuse_broken_seal, remove_sealed, write_sealed
from kfold.settings import Settings, build_settings, difference, settings_to_yaml
from kfold.shards import Shard
from kfold.strict_yaml import read_yaml

SELF_DIGEST = "manifest_sha256"  # key of a manifest: over its other keys
ALL_DATA = -1  # the "fold" of the full-data fit, which no row was held out of
ABLATIONS = "ablations"  # the folder of ablate.py's trainings and tables, beside the runs
STAMPED_PACKAGES = (
    "torch",
    "timm",
    "albumentations",
    "opencv-python-headless",
    "numpy",
    "pandas",
    "scikit-learn",
    "lightgbm",
)


@dataclass(frozen=True)
class Workspace:
    """The paths of one repository, from its root folder."""

    root: Path

    def without_root(self, text: str) -> str:
        """A message whose paths begin at the repository, for a page that goes to others."""
        return text.replace(f"{self.root}/", "").replace(str(self.root), ".")

    @property
    def competition_path(self) -> Path:
        return self.root / "competition.yaml"

    @property
    def folds_path(self) -> Path:
        return self.root / "folds.csv"

    @property
    def submission_path(self) -> Path:
        return self.root / "submission.csv"

    @property
    def report_path(self) -> Path:
        return self.root / "report.html"

    @property
    def embeddings_path(self) -> Path:
        return self.root / "embeddings.parquet"

    @property
    def bundle_dir(self) -> Path:
        """What kaggle/bundle.py makes, to be sent to Kaggle."""
        return self.root / "build" / "kaggle"

    @property
    def hand_over_dir(self) -> Path:
        """What kaggle/bundle.py --winner makes."""
        return self.root / "build" / "winner"

    @property
    def runs_dir(self) -> Path:
        return self.root / "runs"

    @property
    def ledger_path(self) -> Path:
        return self.runs_dir / "ledger.csv"

    def data_path(self, facts: Competition, name: str) -> Path:
        """A file or folder of the competition's data, such as facts.train_csv."""
        return self.root / facts.data_dir / name

    @property
    def tracking_dir(self) -> Path:
        """What trackers keep, of all runs."""
        return self.root / "tracking"

    @property
    def ablations_dir(self) -> Path:
        return self.runs_dir / ABLATIONS

    def ablation_path(self, name: str, suffix: str) -> Path:
        """What ablate.py found; suffix: csv, md or png."""
        return self.ablations_dir / f"{name}.{suffix}"

    def run_dir(self, run: str) -> Path:
        """A training of ablate.py lies a folder deeper, where no stage takes it for a run to stack or submit."""
        return (self.ablations_dir if is_ablation(run) else self.runs_dir) / run

    def fold_dir(self, run: str, fold: int) -> Path:
        return self.run_dir(run) / ("all-data" if fold == ALL_DATA else f"fold{fold}")

    def cache_dir(self, elsewhere: str = "") -> Path:
        """Decoded images, for all runs; elsewhere: a folder that the experiment names instead."""
        return self.root / (elsewhere or "cache")

    def pixels_path(self, run: str) -> Path:
        """Which pixels the run works on: kfold/setup/pixels.py."""
        return self.run_dir(run) / "pixels.json"

    @property
    def data_check_path(self) -> Path:
        """What the last data check found."""
        return self.root / "data_check.json"

    def config_path(self, name: str) -> Path:
        return self.root / "configs" / f"{name}.yaml"

    def run_config_path(self, run: str) -> Path:
        return self.run_dir(run) / "config.yaml"

    def tuned_path(self, run: str) -> Path:
        """The tuning of a stack: thresholds, cuts or a temperature."""
        return self.run_dir(run) / "tuned.json"

    def image_statistics_path(self, rows: str) -> Path:
        """rows: train or test. Shared by all stacks."""
        return self.runs_dir / f"image_statistics_{rows}.parquet"

    def weights_path(self, run: str, fold: int, kind: str) -> Path:
        """kind: last, best, ema, swa, snapshot1, ..."""
        return self.fold_dir(run, fold) / f"{kind}.safetensors"

    def output_path(self, run: str, fold: int) -> Path:
        """What a fold says that is trained beside others; it goes when the fold is done."""
        return self.fold_dir(run, fold) / "output.log"

    def shard_log_path(self, run: str, number: int) -> Path:
        """What the number-th command of predictions in shards says on its node; it goes when the command is done."""
        return self.run_dir(run) / f".predict-{number}.log"

    def log_path(self, run: str, fold: int) -> Path:
        return self.fold_dir(run, fold) / "log.csv"

    def state_path(self, run: str, fold: int) -> Path:
        """What an interrupted fold goes on from; deleted when the fold is done."""
        return self.fold_dir(run, fold) / "state.pt"

    def previous_state_path(self, run: str, fold: int) -> Path:
        return self.fold_dir(run, fold) / "previous.pt"

    def skipped_path(self, run: str, fold: int) -> Path:
        """The images of batches that were skipped, because their loss was not finite."""
        return self.fold_dir(run, fold) / "skipped.csv"

    def dropped_path(self, run: str, fold: int) -> Path:
        """Training rows that were left out because their labels are doubtful."""
        return self.fold_dir(run, fold) / "dropped.csv"

    def round_path(self, run: str) -> Path:
        """What a round of pseudo-labels came to; its presence means "judged"."""
        return self.run_dir(run) / "round.json"

    def predictions_path(self, run: str, fold: int, rows: str) -> Path:
        """rows: oof or test."""
        return self.fold_dir(run, fold) / f"{rows}.parquet"

    def shard_dir(self, run: str, fold: int, shard: Shard) -> Path:
        """A shard of the test rows, with a test.parquet and a manifest of its own; it goes when all are merged."""
        return self.fold_dir(run, fold) / f"shard-{shard.number}-of-{shard.count}"

    def shards(self, run: str, fold: int) -> list[Shard]:
        """The shards that are done, in order."""
        names = [path.parent.name for path in self.fold_dir(run, fold).glob("shard-*/manifest.json")]
        matches = [re.fullmatch(r"shard-(\d+)-of-(\d+)", name) for name in names]
        return sorted(Shard(int(match[1]), int(match[2])) for match in matches if match)

    def speed_path(self, run: str) -> Path:
        """How its training steps are computed, on each kind of device; made by the first fold that trains."""
        return self.run_dir(run) / "speed.json"

    @property
    def speed_choices_path(self) -> Path:
        """What was measured for speed.json, for other runs of the same model; shared by all."""
        return self.runs_dir / "speed_choices.json"

    def environment_path(self, run: str) -> Path:
        """The versions that it was made with."""
        return self.run_dir(run) / "environment.json"

    def stack_table_path(self, run: str, table: str) -> Path:
        """What a stack says of itself. table: blend, correlation or importance."""
        return self.run_dir(run) / f"{table}.csv"

    def choices_path(self, run: str) -> Path:
        """What predict.py compared: weights and views."""
        return self.run_dir(run) / "choices.csv"

    def pseudo_path(self, run: str, fold: int) -> Path:
        """The pseudo-labels that the fold trains on."""
        return self.fold_dir(run, fold) / "pseudo.parquet"

    def lr_range_path(self, run: str, fold: int, suffix: str) -> Path:
        """The curve of a learning rate range test. suffix: csv or png."""
        return self.run_dir(run) / f"lr_range_{self.fold_dir(run, fold).name}.{suffix}"

    def augment_preview_path(self, run: str) -> Path:
        """What the model sees of some images."""
        return self.run_dir(run) / "augment_preview.png"

    def profile_path(self, run: str, suffix: str) -> Path:
        """Where the time of training goes. suffix: csv or png."""
        return self.run_dir(run) / f"profile.{suffix}"

    @property
    def importing_dir(self) -> Path:
        """Where a teammate's runs lie until they are checked; another process's lock lies beside them."""
        return self.runs_dir / ".import"

    def origin_path(self, run: str) -> Path:
        """Where an imported run comes from."""
        return self.run_dir(run) / "imported.json"

    def begun_folds(self, run: str) -> list[int]:
        """Folds that hold a saved state: their training goes on from it."""
        states = [*self.run_dir(run).glob("*/state.pt"), *self.run_dir(run).glob("*/previous.pt")]
        names = {path.parent.name for path in states}
        return sorted({int(name[4:]) for name in names if re.fullmatch(r"fold\d+", name)}) + (
            [ALL_DATA] if "all-data" in names else []
        )

    def trained_folds(self, run: str) -> list[int]:
        """Folds whose manifest is written, in order, without the full-data fit."""
        folders = [path.parent.name for path in self.run_dir(run).glob("fold*/manifest.json")]
        return sorted(int(name[4:]) for name in folders if name[4:].isdecimal())

    def has_full_fit(self, run: str) -> bool:
        return (self.fold_dir(run, ALL_DATA) / "manifest.json").exists()

    def begun_runs(self) -> list[str]:
        """Runs that have settings, or a trained fold, in order of name; not those of ablate.py."""
        begun = {path.parent.name for path in self.runs_dir.glob("*/config.yaml")}
        return sorted((begun | set(self.run_names())) - {ABLATIONS})

    def run_names(self) -> list[str]:
        """Runs with at least one trained fold, in order of name."""
        return sorted({path.parent.parent.name for path in self.runs_dir.glob("*/fold*/manifest.json")})


def ablation_run(digest: str, seed: int) -> str:
    """The name of a training that is there to be compared only."""
    return f"ablation-{digest}-seed{seed}"


def is_ablation(run: str) -> bool:
    return re.fullmatch(r"ablation-[0-9a-f]+-seed\d+", run) is not None


def refuse_ablation(run: str) -> None:
    """Raise UserError where a stage that needs weights is given a training of ablate.py, which keeps none."""
    if is_ablation(run):
        raise UserError(f"run {run}: made by ablate.py to be compared, without weights: train these settings anew")


def read_oof(workspace: Workspace, run: str, ids: np.ndarray, fold: np.ndarray, fold_stamp: str) -> Predictions:
    """All out-of-fold predictions of a run, in the order of ids: one row each, from its own fold's file.

    Raises UserError when a fold is not trained, or a file does not fit its manifest, the folds or the ids.
    """
    parts = []
    for number in np.unique(fold):
        read_fold = read_trusted(workspace, run, int(number), "oof", fold_stamp, ids[fold == number])
        parts.append(read_fold)
    refuse_mixed(parts, run)
    joined = Predictions(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.values for part in parts]),
        parts[0].names,
        parts[0].stamps,
    )
    return Predictions(ids, joined.aligned_to(ids), joined.names, joined.stamps, fold)


def read_test(workspace: Workspace, run: str, folds: Sequence[int], ids: np.ndarray, fold_stamp: str) -> Predictions:
    """The mean of the folds' test predictions of a run, in the order of ids. Raises UserError like `read_oof`."""
    parts = [read_trusted(workspace, run, number, "test", fold_stamp, ids) for number in folds]
    refuse_mixed(parts, run)
    values = np.mean([part.aligned_to(ids) for part in parts], axis=0, dtype=np.float64).astype(np.float32)
    return Predictions(ids, values, parts[0].names, parts[0].stamps)


def read_trusted(
    workspace: Workspace, run: str, number: int, rows: str, fold_stamp: str, ids: np.ndarray
) -> Predictions:
    """One fold's oof or test file, after comparing it with the manifest."""
    folder, path = workspace.fold_dir(run, number), workspace.predictions_path(run, number, rows)
    refuse_broken_seal(workspace.run_config_path(run))
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder}: fold {number} of run {run} is not trained: run train.py --fold {number}")
    refuse_leak(folder, manifest, number)
    if path.name not in manifest["files"]:
        raise UserError(f"{path}: not made yet: run python predict.py --run {run}")
    verify_files(folder, manifest, [path.name])
    return read_predictions(path, fold_stamp, ids)


def refuse_leak(folder: Path, manifest: Mapping, number: int) -> None:
    """Raise UserError unless the fold's model was trained without it (a stack: fitted on out-of-fold rows)."""
    if number != ALL_DATA and manifest.get("trained_without_fold") != number and not manifest.get("fitted_on_oof"):
        raise UserError(f"{folder}: its model saw fold {number}: train that fold again (train.py --overwrite)")


def refuse_mixed(parts: Sequence[Predictions], run: str) -> None:
    """Raise UserError unless the folds' files come from one config, one kind of weights and one set of views."""
    for key, remedy in (("config_hash", "train.py --fold all"), ("weights", "predict.py"), ("tta", "predict.py")):
        if len({part.stamps.get(key) for part in parts}) > 1:
            raise UserError(f"run {run}: its folds differ in {key}: run {remedy} again for this run")
    if len({part.names for part in parts}) > 1:
        raise UserError(f"run {run}: its folds differ in their prediction columns: train it again")


def stamps(
    fold_stamp: str, settings: Settings, task: str, weights_sha256: str, weights: str, tta: str
) -> dict[str, str]:
    """What a prediction file says of its origin. weights: their kind; tta: the views; a stack has "-" for both."""
    return {
        "fold_stamp": fold_stamp,
        "config_hash": settings_hash(settings),
        "weights_sha256": weights_sha256,
        "task": task,
        "weights": weights,
        "tta": tta,
        "versions": json.dumps(environment()),
    }


# Runs and manifests


def register_run(
    workspace: Workspace, run: str, facts: Competition, config: Config, folds: Sequence[int], overwrite: bool
) -> None:
    """Save a run's settings beside its weights, once; refuse to mix settings within a run.

    `overwrite` first takes back the "done" of `folds`, so that a kill never leaves old results under new settings.
    Raises UserError when folds of the run were made, or begun, with other settings, or are being trained.
    """
    refuse_odd_name(run)
    finished = [*workspace.trained_folds(run), *([ALL_DATA] if workspace.has_full_fit(run) else [])]
    if overwrite and set(finished) - set(folds) == {ALL_DATA}:
        folds = [*folds, ALL_DATA]  # a full-data fit of other settings than all folds could not be told from theirs
    kept = {*finished, *workspace.begun_folds(run)} - (set(folds) if overwrite else set())
    if kept:
        refuse_other_settings(workspace, run, facts, config)
        if difference(config, load_config(workspace.run_config_path(run))):  # of what may change on the way
            write_sealed(workspace.run_config_path(run), settings_to_yaml(config))
    if overwrite:
        with ExitStack() as locks:
            for number in folds:
                locks.enter_context(locked(workspace.fold_dir(run, number)))
            for number in folds:
                forget_fold(workspace, run, number)
        if set(folds) != {ALL_DATA}:
            for path in (workspace.round_path(run), workspace.choices_path(run)):
                remove_sealed(path)  # they speak of the weights of before
    if not kept and (overwrite or not is_registered(workspace, run, facts, config)):
        register_anew(workspace, run, facts, config, overwrite)


def register_anew(workspace: Workspace, run: str, facts: Competition, config: Config, overwrite: bool) -> None:
    """Folds may start at the same moment, as those of a SLURM array: one writes what the others find."""
    folder = workspace.run_dir(run)
    lock = FileLock(folder / ".register.lock", timeout=60)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}): mend its rights") from None
    try:
        if not overwrite and is_registered(workspace, run, facts, config):
            return
        for fold_dir in [*folder.glob("fold*"), *folder.glob("all-data")]:
            with locked(fold_dir):
                pass  # refuses while another process trains a first fold of this run
        remove_sealed(workspace.pixels_path(run))  # chosen anew, as the next
        remove_sealed(workspace.speed_path(run))
        write_origin(workspace, run, facts, config)
    finally:
        lock.release()


def is_registered(workspace: Workspace, run: str, facts: Competition, config: Config) -> bool:
    """Whether the run's folder says what would be written now: then folds may start side by side, one on each GPU."""
    path = workspace.run_dir(run) / "environment.json"
    if not (path.exists() and workspace.run_config_path(run).exists()):
        return False
    try:
        refuse_other_settings(workspace, run, facts, config)
    except UserError:
        return False
    return path.read_text(encoding="utf-8") == environment_text()


def write_origin(workspace: Workspace, run: str, facts: Competition, settings: Settings) -> None:
    """What a run, or a stack, was made with."""
    folder = workspace.run_dir(run)
    write_sealed(workspace.run_config_path(run), settings_to_yaml(settings))
    write_sealed(folder / "competition.yaml", settings_to_yaml(facts))
    write_sealed(folder / "environment.json", environment_text())


def forget_fold(workspace: Workspace, run: str, number: int) -> None:
    """Delete what training left, the manifest first, but not the pseudo-labels that it starts from."""
    folder = workspace.fold_dir(run, number)
    (folder / "manifest.json").unlink(missing_ok=True)
    delete_states(workspace, run, number)
    predictions = [workspace.predictions_path(run, number, rows) for rows in ("oof", "test")]
    others = (workspace.skipped_path(run, number), workspace.log_path(run, number))
    for path in (*others, *predictions, *folder.glob("*.safetensors")):
        path.unlink(missing_ok=True)
    delete_shards(folder)
    remove_sealed(workspace.dropped_path(run, number))


def delete_shards(folder: Path, but: int = 0) -> None:
    """Those of a fold, each manifest first, `but` those of so many."""
    for path in folder.glob("shard-*-of-*"):
        if path.name.endswith(f"-of-{but}"):
            continue
        (path / "manifest.json").unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)  # what another process holds open says nothing without its manifest


def delete_states(workspace: Workspace, run: str, number: int) -> None:
    """They are large, and of no use to a fold that is done or to be trained anew."""
    for path in (workspace.previous_state_path(run, number), workspace.state_path(run, number)):
        path.unlink(missing_ok=True)


def refuse_other_settings(workspace: Workspace, run: str, facts: Competition, config: Config) -> None:
    remedy = "take back the change, give the new run a name, or redo all folds (--overwrite)"
    path = workspace.run_config_path(run)
    if changes := difference(config, load_config(path), but=NOT_TRAINED):
        raise UserError(f"{path}: this run was made with other settings; now {changes}: {remedy}")
    path = workspace.run_dir(run) / "competition.yaml"
    elsewhere = set(Competition.model_fields) - {"task", "metric", "target_columns"}  # folders may move
    if changes := difference(facts, load_competition(path), but=elsewhere):
        raise UserError(f"{path}: this run was made for another competition.yaml; now {changes}: {remedy}")


def is_done(workspace: Workspace, run: str, number: int, fold_stamp: str) -> bool:
    """Whether the fold is trained. Raises UserError when it was trained on other folds or other settings."""
    folder = workspace.fold_dir(run, number)
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    remedy = "train it again (train.py --fold all --overwrite), or under a new --name"
    refuse_leak(folder, manifest, number)
    if manifest["fold_stamp"] != fold_stamp:
        raise UserError(f"{folder}: trained on other folds than those of folds.csv: {remedy}")
    if manifest["config_hash"] != settings_hash(load_config(workspace.run_config_path(run))):
        raise UserError(f"{folder}: trained with other settings than those of {run}/config.yaml: {remedy}")
    return True


def refuse_odd_name(run: str) -> None:
    if not re.fullmatch(RUN_NAME, run):
        raise UserError(f"run name {run!r}: use letters, digits, dot, dash and underscore")
    if run == ABLATIONS:
        raise UserError(f"run name {run!r}: that folder is ablate.py's: take another name")


def write_manifest(
    folder: Path,
    facts: Mapping[str, object],
    file_names: Sequence[str],
    files: Mapping[str, Mapping] | None = None,
) -> None:
    """Write manifest.json: the facts, and sha256 and size of the named files. Its presence means "done".

    `files`: entries of files that an earlier stage vouched for, kept as they are.
    """
    files = dict(files or {})
    files |= {
        name: {"sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size}
        for name in sorted(file_names)
    }
    save_manifest(folder, {**facts, "files": files})


def save_manifest(folder: Path, manifest: Mapping[str, object]) -> None:
    atomic_write(folder / "manifest.json", manifest_text(manifest))


def manifest_text(manifest: Mapping[str, object]) -> str:
    """The only text that `read_manifest` takes for these facts: with a digest of itself, each byte as written here."""
    facts = {key: value for key, value in manifest.items() if key != SELF_DIGEST}
    digest = hashlib.sha256(json.dumps(facts, indent=1).encode()).hexdigest()
    return json.dumps({**facts, SELF_DIGEST: digest}, indent=1) + "\n"


def read_manifest(folder: Path) -> dict | None:
    """The manifest of a finished fold, or None. Raises UserError unless it is, to the byte, as a stage wrote it."""
    path = folder / "manifest.json"
    if not path.exists():
        return None
    try:
        text = path.read_bytes().decode()  # not read_text, which takes \r for \n
        manifest = json.loads(text)
        is_whole = text == manifest_text(manifest)
        del manifest[SELF_DIGEST]
        manifest["files"].items()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): put the file back") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise UserError(
            f"{path}: damaged, changed by hand or of an earlier version: make this fold again with --overwrite"
        )
    return manifest


def verify_files(folder: Path, manifest: Mapping, names: Sequence[str] | None = None) -> None:
    """Compare files with their manifest. Raises UserError naming every one that is missing or changed."""
    problems = []
    for name, entry in manifest["files"].items():
        if names is not None and name not in names:
            continue
        path = folder / name
        if not path.exists():
            problems.append(f"{path}: missing, but listed in manifest.json: run its stage again with --overwrite")
        elif not path.is_file() or path.stat().st_size != entry["bytes"] or file_sha256(path) != entry["sha256"]:
            problems.append(
                f"{path}: damaged or changed (sha256 differs from manifest.json): run its stage again with --overwrite"
            )
    if problems:
        raise UserError(problems)


def mix_sha256(shares: Mapping[str, float], files: Mapping[str, Mapping]) -> str:
    """What stands for the weights of a prediction: the file's sha256, or one over several files and their shares."""
    if len(shares) == 1:
        return files[next(iter(shares))]["sha256"]
    parts = [[files[name]["sha256"], round(share, 6)] for name, share in shares.items()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def forget_predictions(folder: Path, manifest: Mapping) -> dict:
    """Take the prediction files out of the manifest before they are rewritten: a kill leaves them "not done"."""
    files = {name: entry for name, entry in manifest["files"].items() if name not in ("oof.parquet", "test.parquet")}
    stale = ("predicted", "planned", "unreadable_test_ids")
    kept = {key: value for key, value in manifest.items() if key not in stale}
    save_manifest(folder, {**kept, "files": files})
    return {**kept, "files": files}


def is_predicted(manifest: Mapping, request: Mapping[str, object]) -> bool:
    """Whether all test rows of a fold are predicted as asked for, and every image could be read."""
    return manifest.get("predicted") == request and not manifest["unreadable_test_ids"]


def plan_of(manifest: Mapping) -> dict:
    """What all predictions of a fold are made with, as its held-out rows were; empty where these are not predicted yet.

    request: weights, views, way and test ids; predicted_as: that way on the machine that went it.
    """
    if "planned" in manifest or "predicted" not in manifest:
        return manifest.get("planned", {})
    return {"request": manifest["predicted"], "predicted_as": manifest.get("predicted_as")}


def forget_weights(folder: Path) -> None:
    """Delete a finished fold's weights, the manifest's word on them first; what else it vouches for stays."""
    manifest = read_manifest(folder) or {"files": {}}
    files = {name: entry for name, entry in manifest["files"].items() if not name.endswith(".safetensors")}
    if len(files) < len(manifest["files"]):
        save_manifest(folder, {**manifest, "files": files})
    for path in folder.glob("*.safetensors"):
        path.unlink(missing_ok=True)


# Stacks


def stack_of(workspace: Workspace, run: str) -> tuple[str, ...]:
    """The runs that a stack was made of; none for a run that was trained, or that is not there."""
    path = workspace.run_config_path(run)
    values = read_yaml(path) if path.exists() else {}
    return build_settings(StackSettings, values, f"{run}/{path.name}").stack_of if "stack_of" in values else ()


def runs_within(workspace: Workspace, run: str) -> list[str]:
    """The run itself and, of a stack, all runs that it stands on, however deep."""
    found = [run]
    for name in found:  # it grows while it is read
        found += [part for part in stack_of(workspace, name) if part not in found]
    return found


def refuse_stack(workspace: Workspace, run: str) -> None:
    """Raise UserError where a stage that needs a model of images is given a stack."""
    if parts := stack_of(workspace, run):
        raise UserError(f"run {run}: a stack (of {', '.join(parts)}), it has no model of images: name one of these")


def read_tuned_text(workspace: Workspace, run: str, number: int) -> str:
    """tuned.json as the manifest of fold `number` vouches for it; "" where the run was not tuned."""
    manifest, path = read_manifest(workspace.fold_dir(run, number)) or {}, workspace.tuned_path(run)
    if "tuned_sha256" not in manifest:
        return ""
    if not path.exists() or file_sha256(path) != manifest["tuned_sha256"]:
        raise UserError(f"{path}: missing, damaged or changed: run stack.py --name {run} --overwrite")
    return path.read_text(encoding="utf-8")


def environment_text() -> str:
    """What environment.json holds."""
    return json.dumps(environment(), indent=1) + "\n"


def environment() -> dict[str, str]:
    """Versions that a result may depend on, by name."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in STAMPED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found
