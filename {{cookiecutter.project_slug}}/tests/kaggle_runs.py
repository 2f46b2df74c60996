"""Two trained runs, stacks of them, their bundles, and an imitated /kaggle with hidden test sets."""

import atexit
import contextlib
import functools
import importlib.util
import io
import shutil
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from test_pipeline import prepare

import predict
import stack
import train
from kfold.ensemble import gbdt
from kfold.kaggle.inputs import KaggleTree

REPOSITORY = Path(__file__).resolve().parent.parent
SLUG = "digits-2026"
NUM_TEST = 12  # public test images
LAYOUTS = {  # where the competition and the bundle are mounted, below input/
    "old": (SLUG, "my-bundle"),
    "new": (f"competitions/{SLUG}", "datasets/me/my-bundle"),
}
HIDDEN = {"shuffled": NUM_TEST, "ten times": 10 * NUM_TEST, "three rows": 3}


def load_script(name: str):
    """kaggle/<name>.py as a module."""
    specification = importlib.util.spec_from_file_location(f"kaggle_{name}", REPOSITORY / "kaggle" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@functools.cache
def runs_to_bundle() -> Path:
    """The root: runs baseline (with views) and second (with a full-data fit), stacks trees and weighted."""
    root = Path(tempfile.mkdtemp(prefix="kaggle-runs-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        few_trees(patch)
        prepare(root, "multiclass", 120, NUM_TEST, epochs=3, batch_size=16, lr=0.01)
        with (root / "competition.yaml").open("a") as file:
            file.write(f"kaggle_competition: {SLUG}\n")
        train.main(root=root)
        for fold in ("all", "all-data"):
            train.main(fold=fold, overrides=["seed=1", "epochs=2"], name="second", root=root)
        predict.main(run="baseline", tta="flips", root=root)
        predict.main(run="second", root=root)
        for name, method in (("trees", "lightgbm"), ("weighted", "linear")):
            stack.main(["baseline", "second"], name, method, root=root)
    return root


def few_trees(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gbdt, "MAX_ROUNDS", 5)
    patch.setitem(gbdt.PARAMETERS, "num_threads", 1)


@functools.cache
def bundle_of(*runs: str, **options) -> Path:
    """A folder with dataset/ and notebook/."""
    root = runs_to_bundle()
    with contextlib.redirect_stdout(io.StringIO()):
        load_script("bundle").main(runs, owner="me", root=root, **options)
    into = root / "bundles" / "-".join([*runs, *options])
    shutil.move(root / "build" / "kaggle", into)
    return into


def make_tree(folder: Path, layout: str, hidden: str, bundle: Path) -> KaggleTree:
    """Inputs as Kaggle mounts them: train.csv, and a hidden test set whose images have names of their own."""
    root, (competition, dataset) = runs_to_bundle(), LAYOUTS[layout]
    data = folder / "input" / competition
    (data / "test_images").mkdir(parents=True)
    (data / "train_images").symlink_to(root / "data" / "train_images")
    shutil.copy(root / "data" / "train.csv", data)
    (folder / "input" / dataset).parent.mkdir(parents=True, exist_ok=True)
    (folder / "input" / dataset).symlink_to(bundle / "dataset")
    images = sorted((root / "data" / "test_images").iterdir())
    public = pd.read_csv(root / "data" / "test.csv", dtype=str)["image_id"].tolist()
    names = public[::-1] if hidden == "shuffled" else [f"hidden_{place}" for place in range(HIDDEN[hidden])]
    for name, image in zip(names, images, strict=False):
        source = root / "data" / "test_images" / f"{name}.png" if hidden == "shuffled" else image
        shutil.copy(source, data / "test_images" / f"{name}.png")
    pd.DataFrame({"image_id": names}).to_csv(data / "test.csv", index=False)
    # A placeholder of other rows, as some competitions have it, where the test set is small.
    sample = ["x", "y"] if hidden == "three rows" else names
    pd.DataFrame({"image_id": sample, "label": "0"}).to_csv(data / "sample_submission.csv", index=False)
    return KaggleTree(folder)
