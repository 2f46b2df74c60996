"""What this machine sends to a storage before the nodes begin, and takes from it when they have ended."""

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from kfold import artifacts
from kfold.adopt import adopt_run
from kfold.artifacts import Workspace
from kfold.config import Competition, Config, settings_hash
from kfold.errors import UserError
from kfold.fan_out.plan import Run
from kfold.fan_out.storage import connect, is_done_there, pull_fold, push_inputs, push_run


def identity(config: Config, fold_stamp: str) -> str:
    """Of a run's settings and folds, in the name of its folder there."""
    return hashlib.sha256(f"{settings_hash(config)} {fold_stamp}".encode()).hexdigest()[:12]


def refuse_unsendable(workspace: Workspace, facts: Competition, settings: Mapping[Run, Config]) -> None:
    """Raise UserError for what the trainings need and a node without this folder would not have."""
    problems = []
    for run, config in settings.items():
        if config.distill_from or config.clean_labels_from or config.pseudo_from:
            problems.append(f"run {run.name}: learns from another run, which --storage does not send: share the folder")
    for name in dict.fromkeys([facts.data_dir, *(run.config_path for run in settings), *own_weights(settings)]):
        path = workspace.root / name
        if ".." in path.parts or not path.is_relative_to(workspace.root):
            problems.append(f"{name}: lies outside of this folder, which --storage does not send: put it inside")
        elif not path.exists():
            problems.append(f"{path}: not there, and --storage would send it")
    if problems:
        raise UserError(problems)


def own_weights(settings: Mapping[Run, Config]) -> list[str]:
    return sorted({config.pretrained_path for config in settings.values() if config.pretrained_path})


def refuse_unreachable(storage: str) -> None:
    """Raise UserError where nothing can be written to the address."""
    try:
        system, base = connect(storage)
        system.makedirs(base, exist_ok=True)
    except Exception as error:  # each store has its own, and fsspec one for a store whose package is absent
        reason, *_ = [*str(error).splitlines(), type(error).__name__]
        raise UserError(
            f"--storage {storage}: cannot be used ({reason}): mend the address, rights or packages"
        ) from None


def send_inputs(
    workspace: Workspace, facts: Competition, settings: Mapping[Run, Config], urls: Mapping[Run, str], storage: str
) -> str:
    """Send code, folds and data, and the settings of each run; the digest of the first."""
    root = workspace.root
    files = [path for pattern in ("*.py", "*.yaml", "kfold/**/*.py") for path in root.glob(pattern)]
    files += [root / run.config_path for run in settings] + [root / path for path in own_weights(settings)]
    for folder, _, names_there in os.walk(root / facts.data_dir, followlinks=True):
        files += [Path(folder) / name for name in names_there]
    names = [path.relative_to(root).as_posix() for path in [*files, workspace.folds_path]]
    print(f"{storage}: {len(names)} files of code, folds and data")
    for run, url in urls.items():
        push_run(url, workspace.run_dir(run.name), set())
    return push_inputs(storage, root, names)


def collect(
    workspace: Workspace, urls: Mapping[Run, str], settings: Mapping[Run, Config], numbers: Sequence[int], stamp: str
) -> list[str]:
    """Copy the folds that are done in the storage, and not here; a line for each that cannot be taken."""
    problems = []
    for run, url in urls.items():
        for number in numbers:
            fold = workspace.fold_dir(run.name, number).name
            if artifacts.is_done(workspace, run.name, number, stamp) or not is_done_there(url, fold):
                continue
            with tempfile.TemporaryDirectory(dir=workspace.runs_dir, prefix=".fan-out-") as folder:
                found = Workspace(Path(folder))
                try:
                    pull_fold(url, found.run_dir(run.name), fold)
                    adopt_run(workspace, found.root, run.name, [number], settings[run], stamp)
                except UserError as error:
                    reasons = [problem.replace(str(found.run_dir(run.name)), url) for problem in error.problems]
                    problems += [f"{reason} (or delete {url}/{fold}, to train it anew)" for reason in reasons]
    return problems
