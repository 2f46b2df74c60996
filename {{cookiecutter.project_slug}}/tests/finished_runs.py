"""A small repository with a trained, predicted, pseudo-labelled and stacked run, made once a process."""

import atexit
import contextlib
import functools
import io
import shutil
import tempfile
from pathlib import Path

import pytest
from test_pipeline import prepare

import predict
import pseudo_label
import stack
import train
from kfold.ensemble import gbdt, nested


@functools.cache
def finished_runs() -> Path:
    """The repository's root; copy it before you change it."""
    root = Path(tempfile.mkdtemp(prefix="finished-runs-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    settings = {
        "epochs": 1,
        "pseudo_top_share": 0.5,
        "schedule": "cosine_cycles",
        "num_cycles": 1,
        "select": "snapshots",
    }
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(gbdt, "MAX_ROUNDS", 3)
        patch.setitem(gbdt.PARAMETERS, "num_threads", 1)
        kept = {name: nested.METHODS[name] for name in ("mean", "lightgbm")}
        patch.setattr(nested, "METHODS", kept)
        prepare(root, "multiclass", 60, 15, **settings)
        train.main(root=root)
        train.main(fold="all-data", root=root)
        predict.main(root=root)
        pseudo_label.main(root=root)
        stack.main(runs=["baseline", "baseline-p1"], method="lightgbm", root=root)
    return root
