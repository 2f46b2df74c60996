"""Everything that a Kaggle notebook without internet needs, in one folder to be sent there.

Command  python kaggle/bundle.py --runs stack --owner <your Kaggle name>      or --runs baseline resnet18, --winner
Reads    runs/<run>/ (settings, weights, out-of-fold predictions), folds.csv, competition.yaml, this repository's code
Writes   build/kaggle/dataset/: all that, bundle.json (sha256 of every file), dataset-metadata.json, a wheel of ttach
         build/kaggle/notebook/: inference.ipynb, kernel-metadata.json
         --winner: build/winner/: SETTINGS.json, entry_points.md, requirements.txt, directory_structure.txt

A stack brings the runs that it stands on. Several runs without a stack of them are averaged.
"""
# ruff: noqa: E402

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import load_competition
from kfold.errors import UserError, run_stage
from kfold.files import atomic_write, file_sha256
from kfold.kaggle.contents import Item, describe_sizes, list_items, needless, refuse_too_large, runs_to_take
from kfold.kaggle.hand_over import write_hand_over
from kfold.kaggle.metadata import NOTEBOOK, dataset_metadata, kernel_metadata, make_slug, refuse_odd_owner
from kfold.kaggle.notebook import make_notebook
from kfold.kaggle.repository import MARKER
from kfold.kaggle.wheel import repack
from kfold.stopping import parse_seconds

WHEELS = ("ttach",)  # what Kaggle's image lacks, of all that predictions of test images may import


def main(
    runs: Sequence[str] = ("baseline",),
    owner: str = "",
    name: str = "",
    time_limit: str = "8h30m",
    all_data: bool = False,
    with_gpu: bool = True,
    root: Path = ROOT,
) -> None:
    """Make the bundle of `runs`; one that was made before is replaced."""
    workspace = Workspace(root)
    facts = load_competition(workspace.competition_path)
    refuse_odd_owner(owner)
    parse_seconds(time_limit)
    taken, final = runs_to_take(workspace, runs, all_data)
    items = list_items(workspace, ROOT, taken, all_data)
    into = workspace.bundle_dir
    print("\n".join([*describe_sizes(items), *needless(workspace, taken)]))
    refuse_too_large(items, into)
    refuse_foreign(into)
    wheels = dict(repack(package) for package in WHEELS if is_imported(package, items))

    scratch = into.with_name(into.name + ".unfinished")
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    dataset, notebook = scratch / "dataset", scratch / "notebook"
    files = copy_items(items, dataset)
    for file_name, content in wheels.items():
        atomic_write(dataset / "wheels" / file_name, content)
        files[f"wheels/{file_name}"] = file_sha256(dataset / "wheels" / file_name)
    marker = {"runs": taken, "final": final, "all_data": all_data, "made_with": artifacts.environment()}
    write_json(dataset / MARKER, {**marker, "files": dict(sorted(files.items()))})
    start = name or facts.kaggle_competition or facts.project_name
    slugs = make_slug(start, "bundle"), make_slug(start, "inference")
    write_json(dataset / "dataset-metadata.json", dataset_metadata(owner, slugs[0]))
    kernel = kernel_metadata(owner, slugs[1], slugs[0], facts.kaggle_competition, with_gpu)
    write_json(notebook / "kernel-metadata.json", kernel)
    atomic_write(notebook / NOTEBOOK, make_notebook(file_sha256(dataset / MARKER), time_limit))
    shutil.rmtree(into, ignore_errors=True)
    os.replace(scratch, into)
    print("\n".join(describe_bundle(into, taken, final, facts.kaggle_competition)))


def is_imported(package: str, items: Sequence[Item]) -> bool:
    code = (item.source.read_text(encoding="utf-8") for item in items if item.name.endswith(".py"))
    return any(re.search(rf"^\s*(import|from) {package}\b", text, re.MULTILINE) for text in code)


def refuse_foreign(into: Path) -> None:
    """Raise UserError where the folder holds what no bundle does: it is going to be replaced."""
    names = {path.name for path in into.iterdir()} if into.exists() else set()
    if foreign := sorted(names - {"dataset", "notebook"}):
        raise UserError(f"{into}: holds {foreign[0]}, which is no part of a bundle: move it away")


def copy_items(items: Sequence[Item], into: Path) -> dict[str, str]:
    """sha256 by name, of the files as they were written."""
    digests = {}
    for item in items:
        target = into / item.name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(item.source, target)
        except OSError as error:
            raise UserError(f"{target}: cannot be written ({error.strerror}): free space or mend rights") from None
        digests[item.name] = file_sha256(target)
        if item.num_bytes != target.stat().st_size or digests[item.name] != file_sha256(item.source):
            raise UserError(f"{item.source}: changed while it was copied: stop what writes there, run it again")
    return digests


def write_json(path: Path, values: dict) -> None:
    atomic_write(path, json.dumps(values, indent=1) + "\n")


def describe_bundle(into: Path, taken: Sequence[str], final: Sequence[str], slug: str) -> list[str]:
    what = final[0] if len(final) == 1 else f"the mean of {', '.join(final)}"
    lines = [f"{into}: {', '.join(taken)}; submits {what}"]
    if not slug:
        lines.append("warning: kaggle_competition in competition.yaml is empty: add the competition in the notebook")
    return [
        *lines,
        f"next: kaggle datasets create -p {into / 'dataset'} --dir-mode zip"
        f"    (later ones: kaggle datasets version -p {into / 'dataset'} --dir-mode zip -m new)",
        f"then: kaggle kernels push -p {into / 'notebook'}",
    ]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=["baseline"], help="a stack, a run or several (default: baseline)")
    parser.add_argument("--owner", default=os.environ.get("KAGGLE_USERNAME", ""), help="your name in kaggle.com/<name>")
    parser.add_argument("--name", default="", help="what both are called there (default: as the competition)")
    parser.add_argument("--time-limit", default="8h30m", help="of the notebook (default: 8h30m)")
    parser.add_argument("--all-data", action="store_true", help="the full-data fit in the place of the folds' models")
    parser.add_argument("--cpu", action="store_true", help="ask for no GPU")
    parser.add_argument(
        "--winner", action="store_true", help="write what a prize-winning team has to hand over instead"
    )
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()

    def main_or_hand_over() -> None:
        if arguments.winner:
            write_hand_over(Workspace(ROOT), arguments.runs, arguments.all_data)
        else:
            main(
                arguments.runs,
                arguments.owner,
                arguments.name,
                arguments.time_limit,
                arguments.all_data,
                not arguments.cpu,
            )

    run_stage(main_or_hand_over)
