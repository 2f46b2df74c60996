"""Where things lie in a Kaggle notebook; the places of the repository itself are artifacts.py's."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kfold.config import Competition
from kfold.errors import UserError

# Below input/. Kaggle moved its mounts in 2026, and both layouts are met; images lie below these, so no deeper search.
OLD_LAYOUT = "*"
COMPETITIONS = "competitions/*"


@dataclass(frozen=True)
class KaggleTree:
    """The folders of a notebook."""

    root: Path

    @classmethod
    def of_this_machine(cls) -> "KaggleTree":
        """/kaggle, or what KAGGLE_ROOT names instead."""
        return cls(Path(os.environ.get("KAGGLE_ROOT", "/kaggle")))

    @property
    def repository(self) -> Path:
        """Where the bundle becomes a repository again; gone with the session."""
        return self.root / "temp" / "repository"

    @property
    def plan_path(self) -> Path:
        """Which runs were predicted in the time."""
        return self.repository / "plan.json"

    @property
    def submission_path(self) -> Path:
        return self.root / "working" / "submission.csv"

    @property
    def competition_folders(self) -> list[Path]:
        """Every folder that may hold the competition's data."""
        inputs = self.root / "input"
        old = [path for path in inputs.glob(OLD_LAYOUT) if path.name not in ("competitions", "datasets")]
        return sorted(path for path in [*old, *inputs.glob(COMPETITIONS)] if path.is_dir())


def find_data(tree: KaggleTree, facts: Competition) -> Path:
    """The folder with the sample submission. Raises UserError that lists what was tried, or what it lacks."""
    tried = tree.competition_folders
    found = [folder for folder in tried if (folder / facts.sample_submission_csv).is_file()]
    if not found:
        places = ", ".join(map(str, tried)) or "nothing"
        raise UserError(
            f"{facts.sample_submission_csv}: in none of the inputs: add the competition to the notebook; tried {places}"
        )
    folder = choose(found, facts)
    missing = [name for name in (facts.train_csv, facts.test_images) if not (folder / name).exists()]
    if missing:
        raise UserError(
            f"{folder}: lacks {', '.join(missing)}: name files in competition.yaml as Kaggle does, bundle again"
        )
    return folder


def choose(found: Sequence[Path], facts: Competition) -> Path:
    """Of several, the one that the competition's slug names, else the only one with its images."""
    named = [folder for folder in found if folder.name == facts.kaggle_competition]
    whole = [folder for folder in found if (folder / facts.test_images).exists()]
    for few in (found, named, whole):
        if len(few) == 1:
            return few[0]
    raise UserError(
        f"{facts.sample_submission_csv}: in {', '.join(map(str, found))}: set kaggle_competition in competition.yaml, "
        f"or take the other inputs away"
    )
