"""Download the competition's data and unpack it safely.

Command  python kaggle/download.py       or <competition> --into <folder> --overwrite
Reads    kaggle_competition of competition.yaml; `kaggle` keeps the account's key (pip install kaggle)
Writes   data/: the archive's files, all of them or none; again: says that they are there

Files of another competition, or of the demo, are not mixed with these: that is refused without --overwrite.
"""
# ruff: noqa: E402

import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import unpack
from kfold.artifacts import Workspace
from kfold.config import Competition, load_competition
from kfold.errors import run_stage
from kfold.kaggle.command import refuse_odd_slug
from kfold.kaggle.download import SCRATCH, fetch, refuse_other_data


def main(slug: str = "", into: Path | None = None, overwrite: bool = False, root: Path = ROOT) -> None:
    """Put the data of the competition `slug` (default: that of competition.yaml) into data/."""
    workspace = Workspace(root)
    facts = load_competition(workspace.competition_path)
    if slug:
        refuse_odd_slug(slug, "the competition")
    else:
        refuse_odd_slug(slug := facts.kaggle_competition)
    into = into or workspace.data_path(facts, "")
    unpack.refuse_own_code(into, root)
    if not overwrite and refuse_other_data(slug, into):
        print(f"{into}: holds the data of {slug} already (--overwrite downloads it again)")
        return
    archive = fetch(slug, into, overwrite)
    unpack.main(archive, into, root, overwrite)
    shutil.rmtree(into / SCRATCH)
    for line in describe(into, facts):
        print(line)


def describe(into: Path, facts: Competition) -> list[str]:
    """What is there, what competition.yaml names otherwise, and the next command."""
    wanted = (facts.train_csv, facts.sample_submission_csv, facts.train_images, facts.test_images)
    missing = [name for name in wanted if not (into / name).exists()]
    there = sorted(path.name + "/" * path.is_dir() for path in into.iterdir() if path.name[0] != ".")
    lines = [f"{into}: holds {', '.join(there[:12])}" + (f" and {len(there) - 12} more" if len(there) > 12 else "")]
    archives = [path for path in sorted(into.iterdir()) if path.suffix in (".zip", ".tar")]
    lines += [f"next: python unpack.py {path}, an archive within the archive" for path in archives]
    if missing:
        lines.append(f"competition.yaml names {', '.join(missing)}, which is not there: mend it")
    return [*lines, "next: python make_folds.py --check"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("competition", nargs="?", default="", help="last part of its address (default: see above)")
    parser.add_argument("--into", type=Path, help="a folder of its own (default: data/)")
    parser.add_argument("--overwrite", action="store_true", help="download it again, replace files that differ")
    arguments = parser.parse_args()
    run_stage(lambda: main(arguments.competition, arguments.into, arguments.overwrite))
