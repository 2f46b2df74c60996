"""Earlier work found elsewhere: the runs of a notebook's output, mounted read-only beside the next notebook."""

import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import NOT_TRAINED, Config, load_config, settings_hash
from kfold.errors import UserError
from kfold.files import atomic_write, locked
from kfold.seals import write_sealed
from kfold.settings import difference

DEPTH = 4  # levels of folders that are searched: Kaggle nests a notebook's output two to four deep


def adopt_run(
    workspace: Workspace, folder: Path, run: str, numbers: Sequence[int], config: Config, fold_stamp: str
) -> bool:
    """Copy the folds of a run that are done, or begun, below `folder` and not here yet; whether there were any.

    Raises UserError where they were made with other settings or folds, or are damaged.
    """
    any_adopted = False
    found_in = find_run(folder, run)
    if not found_in:
        print(f"run {run}: nothing of it in {folder}, nor up to {DEPTH} folders below")
    for found in found_in:
        artifacts.refuse_stack(found, run)
        if changes := difference(config, load_config(found.run_config_path(run)), but=NOT_TRAINED):
            raise UserError(f"{found.run_config_path(run)}: made with other settings; now {changes}: take that back")
        adopted = [number for number in numbers if adopt_fold(workspace, found, run, number, fold_stamp, config)]
        any_adopted |= bool(adopted)
        for path_of in (Workspace.pixels_path, Workspace.round_path, Workspace.choices_path):  # they speak of the folds
            if adopted and path_of(found, run).exists() and not path_of(workspace, run).exists():
                write_sealed(path_of(workspace, run), path_of(found, run).read_bytes())
    return any_adopted


def find_run(folder: Path, run: str) -> list[Workspace]:
    """The repositories, or output folders, below `folder` that hold the run: each may have trained other folds.

    Raises UserError where there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"--resume-from {folder}: no such folder: name the one that holds runs/ of the earlier session")
    roots, level = [], [folder]
    for _ in range(DEPTH + 1):
        roots += [Workspace(root) for root in level if holds(Workspace(root), run)]
        level = [path for parent in level for path in subfolders(parent)]
    return roots


def holds(found: Workspace, run: str) -> bool:
    try:
        return found.run_config_path(run).is_file()
    except OSError:
        return False


def subfolders(folder: Path) -> list[Path]:
    """In order of name; none of a folder that nobody may enter, such as lost+found."""
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return []


def adopt_fold(workspace: Workspace, found: Workspace, run: str, number: int, fold_stamp: str, config: Config) -> bool:
    source, target = found.fold_dir(run, number), workspace.fold_dir(run, number)
    manifest = artifacts.read_manifest(source)
    names = unfinished_names(found, run, number) if manifest is None else list(manifest["files"])
    if not names:
        return False
    if artifacts.read_manifest(target) is not None or number in workspace.begun_folds(run):
        print(f"{target}: goes on from here, not from {source}")
        return False
    if manifest is not None:
        artifacts.verify_files(source, manifest)
        if (manifest["fold_stamp"], manifest["config_hash"]) != (fold_stamp, settings_hash(config)):
            raise UserError(f"{source}: trained on other folds or with other settings than those here: train it anew")
    with locked(target):
        for name in names:
            if name in (found.pseudo_path(run, number).name, found.dropped_path(run, number).name):
                write_sealed(target / name, (source / name).read_bytes())
            else:
                copy(source / name, target / name)
        if manifest is not None:
            copy(source / "manifest.json", target / "manifest.json")
    print(f"{target}: {'done' if manifest is not None else 'begun'} in {source}, copied")
    return True


def unfinished_names(found: Workspace, run: str, number: int) -> list[str]:
    """Files that an unfinished fold goes on from, the newest state before the older; both are verified when used."""
    states = [found.state_path(run, number), found.previous_state_path(run, number)]
    if not any(path.exists() for path in states):
        return []
    folder = found.fold_dir(run, number)
    others = [*sorted(folder.glob("snapshot*.safetensors")), found.pseudo_path(run, number)]
    others.append(found.dropped_path(run, number))
    return [path.name for path in (*others, *states) if path.exists()]


def copy(source: Path, target: Path) -> None:
    atomic_write(target, partial(shutil.copyfile, source))
