"""What the data check says about image files."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kfold.data.images import image_path
from kfold.data.scan import Scan
from kfold.data.tables import shorten
from kfold.errors import UserError


def find_paths(folder: Path, ids: Sequence[str], suffix: str) -> list[Path]:
    """Where the images must lie. Raises UserError that lists the ids leading out of the folder."""
    paths, problems = [], []
    for image_id in ids:
        try:
            paths.append(image_path(folder, image_id, suffix))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(shorten(problems))
    return paths


def describe_bad(folder: Path, paths: Sequence[Path], scans: Sequence[Scan], suffix: str, remedy: str) -> list[str]:
    """A line per unusable file; where most are missing, one line with the likely cause instead."""
    bad = [(path, scan.problem) for path, scan in zip(paths, scans, strict=True) if scan.problem]
    missing = [path for path, problem in bad if problem == "no such file"]
    if len(missing) * 2 > len(paths):
        cause = explain_missing(folder, missing[0], suffix)
        bad = [(path, problem) for path, problem in bad if problem != "no such file"]
        return [f"{folder}: {len(missing)} of {len(paths)} images are not there: {cause}"] + shorten(
            [f"{path}: {problem}: {remedy}" for path, problem in bad]
        )
    return shorten([f"{path}: {problem}: {remedy}" for path, problem in bad])


def explain_missing(folder: Path, example: Path, suffix: str) -> str:
    if not folder.is_dir():
        return "there is no such folder: unpack the images there, or set its name in competition.yaml"
    if suffix and example.name.endswith(suffix * 2):
        return f"the ids end with {suffix} themselves: set image_suffix to '' in competition.yaml"
    suffixes = Counter(path.suffix for path in folder.rglob("*") if path.is_file())
    if not suffixes:
        return "the folder is empty: unpack the images there"
    common = suffixes.most_common(1)[0][0]
    if common != suffix:
        return f"the files there end with '{common}', image_suffix is '{suffix}': set it in competition.yaml"
    return f"for example {example.name}: do the ids and the file names match?"


def count_notes(folder: Path, ids: Sequence[str], scans: Sequence[Scan]) -> list[str]:
    """A line per oddity of usable files, with its count and first id."""
    counts, first = Counter(), {}
    for image_id, scan in zip(ids, scans, strict=True):
        for note in scan.notes:
            counts[note] += 1
            first.setdefault(note, image_id)
    return [f"{folder.name}: {count} {note} (first: '{first[note]}')" for note, count in sorted(counts.items())]
