"""A generated repository with made-up photographs as its competition, for benchmarks that run commands as people do."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
from cookiecutter.main import cookiecutter
from photos import NUM_CLASSES, write_photos

TEMPLATE = Path(__file__).resolve().parents[1]
BENCHMARKS = TEMPLATE / "benchmarks"
BUILD = TEMPLATE / "build" / "bench"
PACKAGE = next(TEMPLATE.glob("*/kfold")).parent  # where kfold lies unrendered


def make_project(photos: Path, count: int, width: int, height: int) -> Path:
    """Folder of a new project whose training images are `count` photographs, which lie below `photos`.

    Its folds are made.
    """
    table = write_photos(photos, count, width, height)
    project = bake(BUILD, project_name=f"bench {width} {count}", start_with="competition", image_suffix=".jpg")
    data = project / "data"
    data.mkdir(exist_ok=True)
    ids = table["file"].str.removesuffix(".jpg")
    train = pd.DataFrame({"image_id": ids, "label": "class" + table["label"].astype(str)})
    test = pd.DataFrame({"image_id": ids[count - 1 :]})
    sample = test.assign(**dict.fromkeys(sorted(train["label"].unique()), 1 / NUM_CLASSES))
    for name, rows in (("train", train), ("test", test), ("sample_submission", sample)):
        rows.to_csv(data / f"{name}.csv", index=False)
    for name in ("train_images", "test_images"):
        (data / name).unlink(missing_ok=True)
        (data / name).symlink_to(photos.resolve())
    if not (project / "folds.csv").exists():
        run(project, "make_folds.py")
    return project


def bake(folder: Path, **answers: str) -> Path:
    """A new project's folder; its settings keep cookiecutter out of the home folder."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "cookiecutter.yaml"
    settings.write_text(f"cookiecutters_dir: '{folder}/templates'\nreplay_dir: '{folder}/replay'\n")
    made = cookiecutter(
        str(TEMPLATE), no_input=True, extra_context=answers, output_dir=str(folder), overwrite_if_exists=True,
        config_file=str(settings),
    )  # fmt: skip
    return Path(made)


def peers_table(project: Path, suffix: str) -> Path:
    """CSV with file, label (0, 1, ...) and fold of the training rows, beside the images; the peers' data."""
    folds = pd.read_csv(project / "folds.csv", dtype=str)
    table = pd.DataFrame({"file": folds["id"] + suffix, "label": pd.factorize(folds["label"], sort=True)[0]})
    path = (project / "data" / "train_images").resolve() / f"{project.name}.csv"
    table.assign(fold=folds["fold"]).to_csv(path, index=False)
    return path


def run(folder: Path, *words: object, python: str | Path = sys.executable, **environment: str) -> str:
    """Output of a Python script, which must end well."""
    ended = subprocess.run(
        [str(python), *map(str, words)], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    if ended.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: exit code {ended.returncode}\n{ended.stdout}\n{ended.stderr}")
    return ended.stdout
