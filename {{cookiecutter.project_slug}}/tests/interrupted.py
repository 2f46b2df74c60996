"""A tiny experiment for every training option, to interrupt at will and compare with what was left alone."""

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path

import pandas as pd
import pytest
from test_pipeline import prepare

import predict
import pseudo_label
import train
from kfold.artifacts import Workspace
from kfold.errors import Interrupted
from kfold.stopping import Stop

OPTIONS = {  # name -> key=value words; each with the loader processes that it is tried with
    "plain": ["workers=0"],
    "workers": ["workers=1", "drop_rate=0.3", "augment=heavy"],
    "bfloat16": ["workers=0", "precision=bfloat16", "select=best"],
    "float16": ["workers=2", "precision=float16"],
    "accumulate": ["workers=4", "accumulate=4"],
    "ema": ["workers=0", "ema_decay=0.9", "select=ema", "optimizer=sgd", "lr=0.01"],
    "optimisation": [
        "workers=0", "optimizer=adan", "scale_lr=true", "lr=0.05", "layer_decay=0.7", "weight_decay=0.01",
        "clip_grad=0.5", "accumulate=2", "schedule=plateau", "plateau_patience=0", "early_stopping=2",
    ],
    "swa": ["workers=2", "swa_from_epoch=1", "select=swa"],
    "snapshots": ["workers=0", "schedule=cosine_cycles", "num_cycles=3", "select=snapshots"],
    "everything": [
        "workers=1", "ema_decay=0.9", "swa_from_epoch=2", "schedule=cosine_cycles", "num_cycles=2",
        "accumulate=2", "precision=bfloat16", "drop_rate=0.2", "augment=medium", "select=best", "optimizer=adamw",
    ],
    "pseudo": ["workers=0", "pseudo_from=teacher", "pseudo_threshold=0.0", "cooldown_epochs=1"],
    "distillation": ["workers=2", "distill_from=teacher"],
    "losses": [
        "workers=0", "loss=[cross_entropy, focal]", "loss_weights=[1, 0.5]", "label_smoothing=0.1", "accumulate=2",
        "class_weights=effective_number", "ohem_share=0.7", "triplet_weight=1", "center_weight=0.01", "l1_penalty=1e-6",
        "ema_decay=0.9", "select=ema",
    ],
    "architecture": [
        "workers=1", "pooling=gem", "neck=bnneck", "head=subcenter_arcface", "margin_scale=0", "norm=ibn",
        "zero_gamma=on", "drop_rate=0.2", "multi_sample_dropout=3", "drop_path_rate=0.2", "accumulate=2",
        "precision=bfloat16", "ema_decay=0.9", "select=ema",
    ],
    "data_switches": [
        "workers=2", "augment=trivialaugment", "crop_scale=0.4", "color_jitter=0.3", "fancy_pca=0.5", "cutout=0.5",
        "random_erasing=0.5", "mixing=[mixup,cutmix,ricap]", "mixing_probability=0.8", "plain_epochs=1",
        "multi_scale=[24,32,40]", "center_crop=0.875", "input_statistics=dataset", "sampler=square_root",
        "clean_labels=0.1", "clean_labels_from=teacher", "accumulate=2", "ema_decay=0.9",
    ],
    "mean_teacher": [
        "workers=1", "ema_decay=0.9", "consistency_weight=1.0", "accumulate=2", "augment=heavy", "plain_epochs=1",
    ],
}  # fmt: skip
NOT_COMPARED = ("minutes", "images_per_second", "files", "manifest_sha256")  # of a manifest: the first two are times
NUM_BATCHES = 9  # of each: 3 epochs of 3 batches


def make_base(root: Path) -> Path:
    """A competition with a trained teacher, and the pseudo-labels that it gives."""
    prepare(root, "multiclass", 72, 24, epochs=3, batch_size=16, warmup_epochs=0.5)
    train.main(overrides=["epochs=1"], name="teacher", root=root)
    predict.main(run="teacher", root=root)
    pseudo_label.main(["teacher"], overrides=["pseudo_threshold=0.0", "epochs=2", "cooldown_epochs=1"], root=root)
    return root


def new_root(base: Path, folder: Path, option: str) -> Path:
    """Everything but runs of this option; images are shared."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("data"), symlinks=True)
    os.symlink(base / "data", folder / "data")
    student = folder / "runs" / "teacher-p1"
    labels = student / "fold0" / "pseudo.parquet"
    if option == "pseudo":
        target = folder / "runs" / "pseudo" / "fold0" / "pseudo.parquet"
        target.parent.mkdir(parents=True)
        shutil.copyfile(labels, target)
    shutil.rmtree(student)
    return folder


def train_option(root: Path, option: str, stop: Stop | None = None, save_batches: int = 0) -> None:
    words = [*OPTIONS[option], f"save_batches={save_batches}"]
    train.main(fold="0", overrides=words, name=option, root=root, stop=stop)


@cache
def fork_server() -> BaseContext:
    """Starts processes that have imported all that a training needs.

    Before Python 3.13 it looks for the modules to import along PYTHONPATH alone, and passes over those it cannot find.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["interrupted"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()
    return context


class StopAfter(Stop):
    """Due after this many batches of training or validation; the end of a fold is left alone."""

    def __init__(self, batches: int):
        super().__init__()
        self.batches = batches

    @property
    def is_due(self) -> bool:
        self.batches -= 1
        self.reason = "enough"
        return self.batches <= 0

    def check(self):
        pass


def finish_in_pieces(root: Path, option: str, batches: int) -> int:
    """Train with a stop after so many batches each time; how many stops there were."""
    return in_pieces(lambda stop: train_option(root, option, stop), batches)


def train_in_pieces(root: Path, run: str, words: list[str], batches: int) -> int:
    """The same for a run of any words."""
    return in_pieces(lambda stop: train.main(fold="0", overrides=words, name=run, root=root, stop=stop), batches)


def in_pieces(start: Callable[[Stop], None], batches: int) -> int:
    """Call `start` with a stop after so many batches until it ends; how many stops there were."""
    for stops in range(100):
        try:
            start(StopAfter(batches))
            return stops
        except Interrupted:
            pass
    raise AssertionError("it never ends")


def fingerprint(root: Path, run: str, fold: int = 0) -> dict[str, str]:
    """sha256 of what must be the same bytes: weights, out-of-fold predictions, and the log but for its times."""
    folder = Workspace(root).fold_dir(run, fold)
    files = [*folder.glob("*.safetensors"), folder / "oof.parquet"]
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    log = pd.read_csv(folder / "log.csv", dtype=str).drop(columns=["seconds", "images_per_second"])
    manifest = json.loads((folder / "manifest.json").read_text())
    told = {key: manifest[key] for key in manifest if key not in NOT_COMPARED}
    return {**found, "log": log.to_csv(), "manifest": json.dumps(told), "names": " ".join(sorted(manifest["files"]))}
