"""What Kaggle asks of a prize-winning team, beside code and weights.

kaggle.com/WinningModelDocumentationGuidelines: SETTINGS.json names the folders, entry_points.md the commands in order,
requirements.txt the exact versions, directory_structure.txt the folders.
"""

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

from kfold import artifacts
from kfold.artifacts import ALL_DATA, Workspace
from kfold.config import Competition, load_competition
from kfold.errors import UserError
from kfold.files import atomic_write
from kfold.kaggle.contents import read_stack_settings, runs_to_take

SKIPPED = ("__pycache__", "build", "cache")


def write_hand_over(workspace: Workspace, named: Sequence[str], all_data: bool = False) -> None:
    """The four files in build/winner/, for the run or stack that won."""
    runs, final = runs_to_take(workspace, named, all_data)
    if len(final) > 1:
        raise UserError(f"--winner: {', '.join(final)} stand side by side: name the one run or stack that won")
    facts, into = load_competition(workspace.competition_path), workspace.hand_over_dir
    texts = {
        "SETTINGS.json": json.dumps(folders_of(workspace, facts), indent=1) + "\n",
        "entry_points.md": entry_points(workspace, facts, runs, final[0], all_data),
        "requirements.txt": exact_versions(workspace.root / "requirements.txt"),
        "directory_structure.txt": "\n".join(list_folders(workspace.root)) + "\n",
    }
    for name, text in texts.items():
        atomic_write(into / name, text)
        print(f"{into / name}: {len(text.splitlines())} lines")
    print("next: put these beside README.md, pack the repository with runs/ and folds.csv, without data/ and cache/")


def folders_of(workspace: Workspace, facts: Competition) -> dict[str, str]:
    """Relative to the repository, but for a data_dir that is not."""
    return {
        "RAW_DATA_DIR": facts.data_dir,
        "MODEL_DIR": workspace.runs_dir.relative_to(workspace.root).as_posix(),
        "CHECKPOINT_DIR": workspace.runs_dir.relative_to(workspace.root).as_posix(),
        "SUBMISSION_DIR": ".",
    }


def entry_points(workspace: Workspace, facts: Competition, runs: Sequence[str], final: str, all_data: bool) -> str:
    trained = [run for run in runs if not artifacts.stack_of(workspace, run)]
    fits = ["all", "all-data"] if all_data else ["all"]
    train = [
        f"python train.py --config runs/{run}/config.yaml --name {run} --fold {k}" for run in trained for k in fits
    ]
    predict = predict_commands(workspace, trained)
    for run in runs:
        if run not in trained:
            settings = read_stack_settings(workspace, run)
            features = " ".join(settings.features)
            command = f"python stack.py --name {run} --runs {' '.join(settings.stack_of)} --method {settings.method}"
            predict.append(command + (f" --features {features}" if features else ""))
    predict.append(f"python submit.py --run {final}" + (" --all-data" if all_data else ""))
    prepare = [f"python kaggle/download.py {facts.kaggle_competition}"] if facts.kaggle_competition else []
    sections = {
        "Prepare the data": [*prepare, "python make_folds.py --check"],
        "Train": train,
        "Predict": predict,
    }
    texts = [f"## {title}\n\n" + "".join(f"    {command}\n" for command in found) for title, found in sections.items()]
    return "# Entry points\n\n" + EXPLANATION + "\n" + "\n".join(texts)


def predict_commands(workspace: Workspace, runs: Sequence[str]) -> list[str]:
    """A command for each choice of weights and views: runs that are trained again have none to go by."""
    alike: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        numbers = workspace.trained_folds(run) or [ALL_DATA]
        predicted = artifacts.read_manifest(workspace.fold_dir(run, numbers[0]))["predicted"]
        alike.setdefault((predicted["weights"], predicted["tta"]), []).append(run)
    return [
        f"python predict.py --run {' '.join(names)} --weights {weights} --tta {tta}"
        for (weights, tta), names in alike.items()
    ]


EXPLANATION = """In this order, in the repository's folder, after `pip install -r requirements.txt`. What is done
already says so and is left alone: with the weights that come along only the third part works, and for other test
images, in `test_images` and `test.csv` of RAW_DATA_DIR, it makes new predictions. `--overwrite` trains a fold again.

SETTINGS.json repeats the folders for a reader; the code reads `data_dir` of competition.yaml. folds.csv comes along and
is not made again: its sha256 stamps every weights file.
"""


def exact_versions(path: Path) -> str:
    """The requirements in the versions that are installed. Raises UserError for one that is not."""
    lines = [f"# Python {platform.python_version()}, {platform.platform()}"]
    for line in path.read_text(encoding="utf-8").splitlines():
        if text := line.partition("#")[0].strip():
            name = Requirement(text).name
            try:
                lines.append(f"{name}=={version(name)}")
            except PackageNotFoundError:
                raise UserError(f"{name}: not installed, so its version is not known: pip install it") from None
    return "\n".join(lines) + "\n"


def list_folders(root: Path) -> list[str]:
    """Every folder but those of caches, relative."""
    found = []
    for folder, names, _ in os.walk(root):
        names[:] = sorted(name for name in names if name not in SKIPPED and name[0] != ".")
        found.append(Path(folder).relative_to(root).as_posix())
    return found
