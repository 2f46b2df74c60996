"""A generated repository with made-up photographs as its competition, for benchmarks that run commands as people do."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from cookiecutter.main import cookiecutter
from photos import NUM_CLASSES, write_photos

TEMPLATE = Path(__file__).resolve().parents[1]
BUILD = TEMPLATE / "build" / "bench"


def make_project(photos: Path, count: int, width: int, height: int, num_test: int = 0) -> Path:
    """Folder of a new project whose images are `count` photographs below `photos`; the last `num_test` are for testing.

    Its folds are made.
    """
    table = write_photos(photos, count, width, height)
    BUILD.mkdir(parents=True, exist_ok=True)
    answers = {"project_name": f"bench {width} {count} {num_test}", "start_with": "competition", "image_suffix": ".jpg"}
    settings = BUILD / "cookiecutter.yaml"
    settings.write_text(f"cookiecutters_dir: '{BUILD}/templates'\nreplay_dir: '{BUILD}/replay'\n")
    project = Path(
        cookiecutter(
            str(TEMPLATE), no_input=True, extra_context=answers, output_dir=str(BUILD), overwrite_if_exists=True,
            config_file=str(settings),
        )
    )  # fmt: skip
    data = project / "data"
    data.mkdir(exist_ok=True)
    ids = table["file"].str.removesuffix(".jpg")
    train = pd.DataFrame({"image_id": ids, "label": "class" + table["label"].astype(str)})[: count - num_test]
    test = pd.DataFrame({"image_id": ids[count - max(1, num_test) :]})
    sample = test.assign(**dict.fromkeys(sorted(train["label"].unique()), 1 / NUM_CLASSES))
    for name, rows in (("train", train), ("test", test), ("sample_submission", sample)):
        rows.to_csv(data / f"{name}.csv", index=False)
    for name in ("train_images", "test_images"):
        (data / name).unlink(missing_ok=True)
        (data / name).symlink_to(photos.resolve())
    if not (project / "folds.csv").exists():
        run(project, "make_folds.py")
    return project


def fold_table(project: Path, photos: Path, fold: int) -> Path:
    """CSV with file and label of the rows that training leaves to other folds than `fold`; the peers' data."""
    folds = pd.read_csv(project / "folds.csv", dtype=str)
    labels = pd.read_csv(photos / "labels.csv", dtype=str).set_index("file")["label"]
    files = folds.loc[folds["fold"] != str(fold), "id"] + ".jpg"
    path = photos / f"without_fold{fold}.csv"
    pd.DataFrame({"file": files, "label": labels[files].to_numpy()}).to_csv(path, index=False)
    return path


def run(folder: Path, *words: object, python: str = sys.executable, **environment: str) -> str:
    """Output of a Python script, which must end well."""
    ended = subprocess.run(
        [python, *map(str, words)], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    if ended.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: exit code {ended.returncode}\n{ended.stdout}\n{ended.stderr}")
    return ended.stdout


def logged_speeds(project: Path, run_name: str) -> np.ndarray:
    """Images a second of fold 0's epochs but the first, which warms up."""
    log = pd.read_csv(project / "runs" / run_name / "fold0" / "log.csv")
    return log["images_per_second"].to_numpy()[1:]
