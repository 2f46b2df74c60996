"""What a bundle holds: this repository's code and folds, and of each run what its test predictions need."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kfold import artifacts
from kfold.artifacts import ALL_DATA, Workspace
from kfold.ensemble.nested import BEST_SINGLE
from kfold.ensemble.stack_settings import StackSettings
from kfold.errors import UserError
from kfold.runs import refuse_unfinished
from kfold.seals import refuse_broken_seal
from kfold.settings import build_settings
from kfold.strict_yaml import read_yaml

ALLOWED = r"[A-Za-z0-9._-]+"  # Kaggle changes other names: reported for "="
LARGEST = 100e9  # bytes: "over 100 GB" are the private datasets of an account (Developing Kaggle Notebooks, 2023)
RUN_FILES = ("config.yaml", "competition.yaml", "environment.json", "pixels.json", "tuned.json", "SHA256SUMS")


@dataclass(frozen=True)
class Item:
    """A file of the bundle. name: with forward slashes, as in the repository. kind: what it is, for the table."""

    name: str
    source: Path
    kind: str

    @property
    def num_bytes(self) -> int:
        return self.source.stat().st_size


def runs_to_take(workspace: Workspace, named: Sequence[str], all_data: bool) -> tuple[list[str], list[str]]:
    """All runs that are needed, those first that others stand on, and those of the named ones that none stands on.

    Raises UserError for a run that cannot be submitted, or not on images that only Kaggle has.
    """
    problems: list[str] = []
    needed: list[str] = []
    for run in dict.fromkeys(named):
        artifacts.refuse_odd_name(run)
        artifacts.refuse_ablation(run)
        for part in reversed(artifacts.runs_within(workspace, run)):
            if part not in needed:
                needed.append(part)
    if all_data and len(needed) > 1:
        raise UserError("--all-data: is for a single run, which has no stack: name one")
    within = {part for run in needed for part in artifacts.stack_of(workspace, run)}
    for run in needed:
        try:
            refuse_unusable(workspace, run, all_data)
        except UserError as error:
            problems += [problem if run in problem else f"run {run}: {problem}" for problem in error.problems]
    if problems:
        raise UserError(problems)
    return needed, [run for run in needed if run not in within]


def refuse_unusable(workspace: Workspace, run: str, all_data: bool) -> None:
    folds = workspace.trained_folds(run)
    refuse_unfinished(workspace, run, folds)
    if parts := artifacts.stack_of(workspace, run):
        if "embeddings" in read_stack_settings(workspace, run).features:
            raise UserError(
                f"run {run}: stands on embeddings, and those of images that only Kaggle has cannot be made there: "
                f"run stack.py --runs {' '.join(parts)} --name {run} without them"
            )
        return
    for number in [*folds, *([ALL_DATA] if all_data else [])]:
        if "predicted" not in (artifacts.read_manifest(workspace.fold_dir(run, number)) or {}):
            raise UserError(f"run {run}: {workspace.fold_dir(run, number).name} is not predicted: run predict.py")


def read_stack_settings(workspace: Workspace, run: str) -> StackSettings:
    path = workspace.run_config_path(run)
    return build_settings(StackSettings, read_yaml(path), str(path))


def needless(workspace: Workspace, runs: Sequence[str]) -> list[str]:
    """A line on each stack that takes one of its runs as it is: the others would be predicted for nothing."""
    lines = []
    for run in runs:
        if artifacts.stack_of(workspace, run) and read_stack_settings(workspace, run).method == BEST_SINGLE:
            note = artifacts.read_manifest(workspace.fold_dir(run, workspace.trained_folds(run)[0]))["fitted"]
            lines.append(f"warning: {run} takes {note}: a bundle of that run says the same in less time")
    return lines


def weights_of(manifest: Mapping) -> list[str]:
    """The weights files that a fold's predictions were made with; climbed: all snapshots, a trial takes the first."""
    if manifest["kind"] == "climbed":
        return [name for name in manifest["files"] if name.startswith("snapshot")]
    return list(manifest["weights"])


def list_items(workspace: Workspace, code_dir: Path, runs: Sequence[str], all_data: bool) -> list[Item]:
    """Every file of the bundle but bundle.json and wheels. Raises UserError for a name that Kaggle would change, or a
    file that is not as its manifest says."""
    code = [*code_dir.glob("*.py"), *(code_dir / "kfold").rglob("*.py"), *(code_dir / "kaggle").glob("*.py")]
    code.append(code_dir / "requirements.txt")
    items = [Item(path.relative_to(code_dir).as_posix(), path, "code") for path in sorted(code)]
    tables = [workspace.competition_path, workspace.folds_path]
    stacks = [run for run in runs if artifacts.stack_of(workspace, run)]
    if any("images" in read_stack_settings(workspace, run).features for run in stacks):
        tables += [workspace.image_statistics_path("train"), workspace.runs_dir / "SHA256SUMS"]
    items += [item_of(workspace, path, "folds and facts") for path in tables if path.exists()]
    for run in runs:
        paths = [path for name in RUN_FILES if (path := workspace.run_dir(run) / name).exists()]
        for path in paths:
            refuse_broken_seal(path)
        items += [item_of(workspace, path, f"run {run}, settings") for path in paths]
        for number in [*workspace.trained_folds(run), *([ALL_DATA] if all_data else [])]:
            items += fold_items(workspace, run, number, with_weights=not all_data or number == ALL_DATA)
    refuse_odd_names(items)
    return items


def item_of(workspace: Workspace, path: Path, kind: str) -> Item:
    return Item(path.relative_to(workspace.root).as_posix(), path, kind)


def fold_items(workspace: Workspace, run: str, number: int, with_weights: bool) -> list[Item]:
    folder = workspace.fold_dir(run, number)
    manifest = artifacts.read_manifest(folder)
    weights = weights_of(manifest) if with_weights and not artifacts.stack_of(workspace, run) else []
    tables = [folder / "oof.parquet"] if number != ALL_DATA else []
    artifacts.verify_files(folder, manifest, [*weights, *(path.name for path in tables)])
    small = [folder / "manifest.json", *tables]
    return [
        *(item_of(workspace, path, f"run {run}, predictions out of fold") for path in small),
        *(item_of(workspace, folder / name, f"run {run}, weights") for name in weights),
    ]


def refuse_odd_names(items: Sequence[Item]) -> None:
    odd = [item.name for item in items if not all(re.fullmatch(ALLOWED, part) for part in item.name.split("/"))]
    if odd:
        raise UserError([f"{name}: Kaggle changes such names: rename it with letters, digits, . _ -" for name in odd])


def describe_sizes(items: Sequence[Item]) -> list[str]:
    """Lines of a table: files and bytes of each kind, then the sum."""
    kinds: dict[str, list[int]] = {}
    for item in items:
        kinds.setdefault(item.kind, []).append(item.num_bytes)
    kinds["together"] = [item.num_bytes for item in items]
    width = max(map(len, kinds))
    return [f"  {kind:<{width}} {len(sizes):>6} files {sum(sizes) / 1e6:>12,.1f} MB" for kind, sizes in kinds.items()]


def refuse_too_large(items: Sequence[Item], into: Path) -> None:
    """Raise UserError where Kaggle would not take it, or the disk; before anything is written."""
    needed = sum(item.num_bytes for item in items)
    existing = next(folder for folder in [into, *into.parents] if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > LARGEST:
        raise UserError(f"{needed / 1e9:.1f} GB: a private dataset holds {LARGEST / 1e9:.0f} GB: name fewer --runs")
    if 2 * needed > free:  # the upload packs each folder, once more its size
        raise UserError(
            f"{into}: needs {2 * needed / 1e9:.2f} GB with the upload's own copy, and {free / 1e9:.2f} GB are free"
        )
