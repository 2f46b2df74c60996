"""A bundle made a repository again: where its stages can write, on the competition's data as Kaggle mounts them."""

import json
import shutil
from pathlib import Path

from kfold.artifacts import Workspace
from kfold.config import Competition, load_competition
from kfold.errors import UserError
from kfold.files import atomic_write
from kfold.kaggle.inputs import KaggleTree, find_data
from kfold.settings import settings_to_yaml

MARKER = "bundle.json"


def read_marker(folder: Path) -> dict:
    """What bundle.json says: files (name -> sha256), runs, final, all_data. Raises UserError."""
    try:
        return json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{folder}: is no bundle, it lacks a whole {MARKER}: make it with kaggle/bundle.py") from None


def unfold(bundle: Path, tree: KaggleTree) -> Workspace:
    """Copy the bundle to tree.repository, weights as links, and point it to the data; what is there goes."""
    workspace, marker = Workspace(tree.repository), read_marker(bundle)
    facts = load_competition(Workspace(bundle).competition_path)
    data = find_data(tree, facts)
    shutil.rmtree(workspace.root, ignore_errors=True)
    for name in [*marker["files"], MARKER]:
        target = workspace.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            target.symlink_to((bundle / name).absolute())
        else:
            shutil.copyfile(bundle / name, target)
    atomic_write(workspace.competition_path, settings_to_yaml(at(facts, data)))
    return workspace


def at(facts: Competition, data: Path) -> Competition:
    return facts.model_copy(update={"data_dir": str(data.absolute())})
