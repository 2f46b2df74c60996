"""Unpack the competition's archive, or a team mate's, into data/.

Command  python unpack.py data/competition.zip      or --into <folder> --overwrite
Reads    a .zip, or a .tar that may be packed as .gz, .bz2 or .xz; competition.yaml
Writes   the archive's files, all of them or none; again: says that they are there

Refuses, by name and before anything is written, whatever could lead out of the folder, hide another file, fill the
disk, or is damaged.
"""

import argparse
import sys
from pathlib import Path

from kfold.artifacts import Workspace
from kfold.config import load_competition
from kfold.data.archive import unpack
from kfold.errors import UserError, run_stage

ROOT = Path(__file__).resolve().parent


def main(archive: Path, into: Path | None = None, root: Path = ROOT, overwrite: bool = False) -> None:
    """Unpack `archive` into a folder (default: data_dir of competition.yaml)."""
    if into is None:
        workspace = Workspace(root)
        into = workspace.data_path(load_competition(workspace.competition_path), "")
    refuse_own_code(into, root)
    unpacked = unpack(archive, into, overwrite)
    for warning in unpacked.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if not unpacked.written:
        print(f"{archive}: already unpacked, all {unpacked.already} files are in {into}")
    else:
        already = f", {unpacked.already} were there already" if unpacked.already else ""
        print(f"{archive}: {unpacked.written} files unpacked into {into}{already}")


def refuse_own_code(into: Path, root: Path) -> None:
    """Raise UserError where an archive could put code among this repository's scripts."""
    code = [root, root / "kfold", root / "tests", root / ".git", root / ".venv"]
    if into.resolve() in root.resolve().parents or any(into.resolve() == folder.resolve() for folder in code):
        raise UserError(f"{into}: holds this repository's code: unpack into a folder of its own, such as data")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="a .zip or .tar file")
    parser.add_argument("--into", type=Path, help="the folder to unpack into (default: data/)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that differ from the archive's")
    arguments = parser.parse_args()
    run_stage(lambda: main(arguments.archive, arguments.into, overwrite=arguments.overwrite))
