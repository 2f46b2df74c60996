"""What the data check says about image files: the wording of check.py."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kfold.config import Competition
from kfold.data.scan import Scan
from kfold.data.tables import shorten


def describe_bad(folder: Path, paths: Sequence[Path], scans: Sequence[Scan], suffix: str, remedy: str) -> list[str]:
    """A line per unusable file; where most are missing, one line with the likely cause instead."""
    bad = [(path, scan.problem) for path, scan in zip(paths, scans, strict=True) if scan.problem]
    if bad and folder.exists() and not folder.is_dir():
        return [f"{folder}: is a file: put the folder of the images there, or set its name in competition.yaml"]
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


def describe_sizes(folder: Path, scans: Sequence[Scan]) -> list[str]:
    """One line: how many images are usable, and how large they are."""
    sizes = sorted((scan.height * scan.width, scan.width, scan.height) for scan in scans if not scan.problem)
    if not sizes:
        return []
    (_, *smallest), (_, *largest) = sizes[0], sizes[-1]
    return [
        f"{folder.name}: {len(sizes)} usable images of {len(scans)}, "
        f"{smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]} pixels"
    ]


def conflicting_copies(table: pd.DataFrame, scans: Sequence[Scan], facts: Competition) -> list[str]:
    """Equal files with different labels."""
    columns = list(facts.target_columns)
    rows = table.assign(sha256=[scan.sha256.hex() for scan in scans])
    rows = rows[rows["sha256"].duplicated(keep=False) & (rows["sha256"] != "")]  # "" is a bad file
    problems = []
    for _, copies in rows.groupby("sha256"):
        texts = [" ".join(cells) for cells in copies[columns].to_numpy(object)]
        if len(set(texts)) > 1:
            pairs = zip(copies[facts.id_column], texts, strict=True)
            listed = ", ".join(f"'{name}' is '{text}'" for name, text in list(pairs)[:5])
            problems.append(
                f"{facts.train_csv}: equal image files with different labels ({listed}): keep the right one"
            )
    return shorten(sorted(problems))
