"""Runs with averaged weights, distillation and a mean teacher, from training to the choice on out-of-fold scores."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_pipeline import TARGETS, prepare

import predict
import submit
import train
from kfold import artifacts
from kfold.artifacts import ALL_DATA, Workspace
from kfold.errors import UserError
from kfold.model.weights import load_model
from kfold.predictions import read_predictions

EVERYTHING = {
    "epochs": 4,
    "lr": 0.01,
    "schedule": "cosine_cycles",
    "num_cycles": 2,
    "ema_decay": 0.9,
    "swa_from_epoch": 3,
    "drop_rate": 0.1,
}
KINDS = ("last", "ema", "swa", "snapshot1", "snapshot2", "best")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with every kind of weights, and its full-data fit."""
    root = prepare(tmp_path_factory.mktemp("averaged"), "multiclass", 150, 40, **EVERYTHING)
    train.main(root=root)
    train.main(fold="all-data", root=root)
    return root


@pytest.fixture
def copy_of_trained(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def manifest_of(root, number, run="baseline"):
    return artifacts.read_manifest(Workspace(root).fold_dir(run, number))


def test_every_kind_of_weights_is_written_and_listed(trained):
    for number in range(3):
        assert {f"{kind}.safetensors" for kind in KINDS} <= set(manifest_of(trained, number)["files"])
    full = set(manifest_of(trained, ALL_DATA)["files"])
    assert {"last.safetensors", "ema.safetensors", "swa.safetensors", "snapshot2.safetensors"} <= full
    assert not {"best.safetensors", "oof.parquet"} & full


def test_weights_kinds_differ_and_the_last_snapshot_is_the_last_epoch(trained):
    contents = {kind: Workspace(trained).weights_path("baseline", 0, kind).read_bytes() for kind in KINDS}
    assert contents["snapshot2"] == contents["last"]
    assert len({contents[kind] for kind in ("last", "ema", "swa", "snapshot1")}) == 4


def test_swa_has_batch_norm_statistics_of_its_own(trained):
    swa, last = (load_model(Workspace(trained).weights_path("baseline", 0, kind))[0] for kind in ("swa", "last"))
    names = [name for name, _ in swa.named_buffers() if name.endswith("running_mean")]
    buffers = dict(swa.named_buffers()), dict(last.named_buffers())
    assert names
    assert all(not np.allclose(buffers[0][name], buffers[1][name]) for name in names)


def test_training_twice_gives_the_same_bytes_of_every_kind(trained, tmp_path):
    root = prepare(tmp_path, "multiclass", 150, 40, **{**EVERYTHING, "workers": 2})
    train.main(fold="1", root=root)
    for kind in KINDS:
        again, first = (Workspace(folder).weights_path("baseline", 1, kind) for folder in (root, trained))
        assert again.read_bytes() == first.read_bytes(), kind


def test_all_weights_and_views_are_scored_and_one_of_each_is_taken(copy_of_trained, capsys):
    root = copy_of_trained
    predict.main(weights="auto", tta="auto", root=root)
    output = capsys.readouterr().out
    choices = pd.read_csv(Workspace(root).choices_path("baseline")).set_index(["what", "name"])
    assert list(choices.loc["weights"].index) == ["last", "ema", "swa", "snapshots", "climbed", "best"]
    assert list(choices.loc["tta"].index) == ["none", "hflip", "flips", "rotations", "d4", "scales", "crops"]
    assert (choices["milliseconds"] > 0).all()
    taken = choices[choices["chosen"]].reset_index()
    assert list(taken["what"]) == ["weights", "tta"]
    assert output.count("<- taken") == 2
    for number in range(3):
        manifest = manifest_of(root, number)
        assert [manifest["predicted"]["weights"], manifest["predicted"]["tta"]] == list(taken["name"])
        oof = read_predictions(Workspace(root).predictions_path("baseline", number, "oof"), manifest["fold_stamp"])
        assert (oof.stamps["weights"], oof.stamps["tta"]) == tuple(taken["name"])
    predict.main(root=root)
    assert "predicted before" in capsys.readouterr().out


def test_the_scores_of_the_table_are_those_of_the_files(copy_of_trained):
    root = copy_of_trained
    folds = pd.read_csv(root / "folds.csv", dtype=str).set_index("id")
    predict.main(weights="last,snapshots", root=root)
    scores = pd.read_csv(Workspace(root).choices_path("baseline")).set_index(["what", "name"])["score"]
    for kind in ("last", "snapshots"):
        predict.main(weights=kind, root=root)
        parts = [pd.read_parquet(Workspace(root).predictions_path("baseline", number, "oof")) for number in range(3)]
        oof = pd.concat(parts).set_index("id")
        labels = oof.drop(columns="fold").idxmax(axis=1).str[2:]
        assert (labels == folds.loc[oof.index, "label"]).mean() == pytest.approx(scores["weights", kind])


def test_snapshots_are_averaged_as_probabilities(copy_of_trained):
    root, values = copy_of_trained, {}
    for kind in ("snapshots", "last"):
        predict.main(weights=kind, root=root)
        table = pd.read_parquet(Workspace(root).predictions_path("baseline", 0, "test")).set_index("id")
        values[kind] = table.to_numpy()
    assert np.allclose(values["snapshots"].sum(axis=1), 1, atol=1e-5)
    assert not np.allclose(values["snapshots"], values["last"])
    assert manifest_of(root, 0)["kind"] == "last"


def test_climbed_snapshots_are_weighted_without_the_fold_and_may_not_teach(copy_of_trained):
    root = copy_of_trained
    predict.main(weights="climbed", root=root)
    for number in range(3):
        manifest = manifest_of(root, number)
        assert sum(manifest["weights"].values()) == pytest.approx(1)
        assert manifest["fitted_on_oof"]
    with pytest.raises(UserError, match=r"unsafe teacher.*baseline was fitted on out-of-fold rows"):
        train.main(name="student", overrides=["distill_from=[baseline]"], root=root)


def test_a_kind_that_is_not_there_is_refused_with_those_that_are(copy_of_trained):
    with pytest.raises(UserError, match=r"--weights 'emma': there are last, ema, swa, snapshots, climbed, best"):
        predict.main(weights="emma", root=copy_of_trained)
    with pytest.raises(UserError, match=r"--tta 'rotate': there are none, hflip"):
        predict.main(tta="rotate", root=copy_of_trained)


# The full-data fit


def test_the_full_data_fit_predicts_test_rows_and_is_refused_out_of_fold(copy_of_trained):
    root, workspace = copy_of_trained, Workspace(copy_of_trained)
    predict.main(root=root)
    full = workspace.fold_dir("baseline", ALL_DATA)
    assert manifest_of(root, ALL_DATA)["trained_without_fold"] is None
    assert (full / "test.parquet").exists()
    submit.main(run="baseline", all_data=True, root=root)
    shutil.rmtree(workspace.fold_dir("baseline", 0))
    shutil.copytree(full, workspace.fold_dir("baseline", 0))
    with pytest.raises(UserError, match=r"fold0: its model saw fold 0"):
        submit.main(run="baseline", root=root)


def test_all_folds_made_again_take_the_full_data_fit_back(copy_of_trained):
    root = copy_of_trained
    train.main(overrides=["epochs=3"], overwrite=True, root=root)
    assert not Workspace(root).has_full_fit("baseline")


def test_another_folds_model_put_in_the_place_of_a_fold_is_refused(copy_of_trained):
    root, workspace = copy_of_trained, Workspace(copy_of_trained)
    shutil.rmtree(workspace.fold_dir("baseline", 0))
    shutil.copytree(workspace.fold_dir("baseline", 1), workspace.fold_dir("baseline", 0))
    with pytest.raises(UserError, match="saw fold 0"):
        predict.main(overwrite=True, root=root)


def test_the_full_data_fit_has_no_best_epoch(copy_of_trained):
    with pytest.raises(UserError, match="holds no row out"):
        train.main(fold="all-data", name="other", overrides=["select=best"], root=copy_of_trained)


# Seeds


def test_a_range_of_seeds_is_a_run_each():
    assert train.seed_runs(["lr=1", "seed=1..3"]) == [
        ("-seed1", ["lr=1", "seed=1"]),
        ("-seed2", ["lr=1", "seed=2"]),
        ("-seed3", ["lr=1", "seed=3"]),
    ]
    assert train.seed_runs(["seed=7"]) == [("", ["seed=7"])]


# Teachers


def test_distillation_asks_the_folds_own_teacher_and_keeps_its_hash(copy_of_trained):
    root = copy_of_trained
    train.main(fold="0", name="student", overrides=["distill_from=[baseline]"], root=root)
    manifest = manifest_of(root, 0, "student")
    assert manifest["teachers"] == {"baseline": manifest_of(root, 0)["files"]["last.safetensors"]["sha256"]}


def test_a_teacher_that_saw_the_fold_is_refused(copy_of_trained):
    root, folder = copy_of_trained, Workspace(copy_of_trained).fold_dir("baseline", 0)
    manifest = json.loads((folder / "manifest.json").read_text())
    artifacts.save_manifest(folder, {**manifest, "trained_without_fold": 1})
    with pytest.raises(UserError, match=r"unsafe teacher.*it saw fold 0"):
        train.main(fold="0", name="student", overrides=["distill_from=[baseline]"], root=root)


def test_a_teacher_that_is_not_trained_is_named(copy_of_trained):
    with pytest.raises(UserError, match=r"run missing is not trained there"):
        train.main(fold="0", name="student", overrides=["distill_from=[missing]"], root=copy_of_trained)


@pytest.mark.parametrize("task", TARGETS)
def test_every_task_trains_with_a_teacher_a_mean_teacher_and_averages(task, tmp_path):
    root = prepare(tmp_path, task, 90, 20, **{**EVERYTHING, "epochs": 2, "swa_from_epoch": 2})
    train.main(fold="0", overrides=["consistency_weight=1.0"], name="first", root=root)
    train.main(fold="0", overrides=["distill_from=[first]", "consistency_weight=1.0"], name="student", root=root)
    log = pd.read_csv(Workspace(root).log_path("student", 0))
    assert np.isfinite(log[["train_loss", "valid_loss"]]).all(axis=None)


def test_unlabelled_images_change_what_is_learned(tmp_path):
    root = prepare(tmp_path, "multiclass", 90, 20, epochs=2, ema_decay=0.9)
    for name, words in (("without", []), ("with", ["consistency_weight=5.0"])):
        train.main(fold="0", name=name, overrides=words, root=root)
    one, other = (Workspace(root).weights_path(name, 0, "last").read_bytes() for name in ("without", "with"))
    assert one != other
