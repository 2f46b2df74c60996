"""The stages one after another on real images, as a person runs them."""

import atexit
import contextlib
import fnmatch
import functools
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open

import demo_data
import make_folds
import predict
import stack
import submit
import train
from kfold.artifacts import Workspace
from kfold.errors import UserError
from kfold.files import atomic_write
from kfold.predictions import read_predictions

REPOSITORY = Path(__file__).resolve().parent.parent
TARGETS = {
    "multiclass": "[label]",
    "binary": "[label]",
    "multilabel": "[even, prime, round]",
    "regression": "[label]",
}
FAR_ABOVE_CHANCE = {"accuracy": 0.5, "roc_auc": 0.75, "r2": 0.3}  # chance: 0.1, 0.5 and 0
METRICS = {"multiclass": "accuracy", "binary": "roc_auc", "multilabel": "roc_auc", "regression": "r2"}


def write_settings(root: Path, task: str, **config) -> None:
    """A small competition and a tiny model: trained in seconds."""
    (root / "configs").mkdir(parents=True, exist_ok=True)
    (root / "competition.yaml").write_text(
        f"project_name: Test\ntask: {task}\nmetric: {METRICS[task]}\ntarget_columns: {TARGETS[task]}\nnum_folds: 3\n"
    )
    values = {
        "backbone": "test_resnet",
        "pretrained": False,
        "image_size": 32,
        "hflip": False,
        "epochs": 6,
        "lr": 0.003,
        "workers": 0,
        "speed": "plain",
        **config,
    }
    (root / "configs" / "baseline.yaml").write_text(json.dumps(values))


def thin_out(root: Path, num_train: int, num_test: int) -> None:
    """Keep the first rows of the demo's tables."""
    for name, count in (
        ("train", num_train),
        ("test", num_test),
        ("sample_submission", num_test),
        ("solution", num_test),
    ):
        table = pd.read_csv(root / "data" / f"{name}.csv", dtype=str, keep_default_na=False)
        table.head(count).to_csv(root / "data" / f"{name}.csv", index=False)


@functools.cache
def demo_of(task: str) -> Path:
    """The demo's data folder, 1,797 images, written once a process."""
    root = Path(tempfile.mkdtemp(prefix="demo-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    write_settings(root, task)
    demo_data.main(root=root)
    return root / "data"


def prepare(root: Path, task: str, num_train: int = 420, num_test: int = 60, **config) -> Path:
    """A repository with the first images of the demo, and its folds."""
    write_settings(root, task, **config)
    shutil.copytree(demo_of(task), root / "data", ignore=lambda folder, names: fnmatch.filter(names, "*.png"))
    thin_out(root, num_train, num_test)
    for name in ("train", "test"):
        for image_id in pd.read_csv(root / "data" / f"{name}.csv", dtype=str)["image_id"]:
            shutil.copy(demo_of(task) / f"{name}_images" / f"{image_id}.png", root / "data" / f"{name}_images")
    make_folds.main(root=root)
    return root


def pooled_score(output: str) -> float:
    return float(output.split("pooled")[1].split()[0].rstrip(","))


@pytest.mark.parametrize("task", TARGETS)
def test_each_task_goes_from_the_demo_to_a_submission_far_above_chance(task, tmp_path, capsys):
    root = prepare(tmp_path, task, 300, batch_size=16, epochs=4)  # scores: 0.89, 0.98, 0.98 and 0.72
    train.main(root=root)
    score = pooled_score(capsys.readouterr().out)
    assert score > FAR_ABOVE_CHANCE[METRICS[task]]
    predict.main(root=root)
    capsys.readouterr()
    submit.main(root=root)
    hidden = capsys.readouterr().out.split("solution.csv: ")[1]  # wrong, shuffled or foreign test rows score as chance
    assert float(hidden.split()[1].rstrip(",")) > FAR_ABOVE_CHANCE[METRICS[task]]
    submission = pd.read_csv(root / "submission.csv", dtype=str)
    sample = pd.read_csv(root / "data" / "sample_submission.csv", dtype=str)
    assert list(submission.columns) == list(sample.columns)
    assert set(submission.iloc[:, 0]) == set(sample.iloc[:, 0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small multiclass run, trained and predicted; tests copy it before they change it."""
    root = prepare(tmp_path_factory.mktemp("trained"), "multiclass", 150, 40, epochs=2)
    train.main(root=root)
    predict.main(root=root)
    return root


@pytest.fixture
def copy_of_trained(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def test_every_train_id_has_exactly_one_oof_row_in_its_own_fold(trained):
    folds = pd.read_csv(trained / "folds.csv", dtype=str)
    parts = [pd.read_parquet(trained / "runs" / "baseline" / f"fold{number}" / "oof.parquet") for number in range(3)]
    oof = pd.concat(parts)
    assert sorted(oof["id"]) == sorted(folds["id"])
    merged = folds.merge(oof, on="id")
    assert (merged["fold_x"].astype(int) == merged["fold_y"]).all()


def test_a_fold_folder_holds_the_contracted_files_and_a_manifest_of_them(trained):
    folder = trained / "runs" / "baseline" / "fold1"
    names = {"last.safetensors", "best.safetensors", "oof.parquet", "test.parquet", "log.csv"}
    assert names | {"manifest.json"} == {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == names
    assert manifest["trained_without_fold"] == 1
    assert list(pd.read_csv(folder / "log.csv").columns) == [
        "epoch", "train_loss", "valid_loss", "score", "lr", "skipped", "accumulate", "seconds", "images_per_second"
    ]  # fmt: skip
    run = folder.parent
    assert {"config.yaml", "competition.yaml", "environment.json"} <= {path.name for path in run.iterdir()}
    ledger = pd.read_csv(trained / "runs" / "ledger.csv")
    assert list(ledger["run"]) == ["baseline"]


def test_prediction_files_carry_the_stamps(trained):
    folder = trained / "runs" / "baseline" / "fold0"
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("oof", "test"):
        predictions = read_predictions(folder / f"{name}.parquet", manifest["fold_stamp"])
        assert {"fold_stamp", "config_hash", "weights_sha256", "task", "versions", "tta"} <= set(predictions.stamps)
        assert predictions.stamps["weights_sha256"] == manifest["files"]["last.safetensors"]["sha256"]
        assert predictions.values.dtype == np.float32
        assert np.allclose(predictions.values.sum(axis=1), 1, atol=1e-5)


def test_weights_hold_no_pickle_and_say_what_they_are(trained):
    with safe_open(trained / "runs" / "baseline" / "fold0" / "last.safetensors", "pt") as file:
        card = json.loads(file.metadata()["kfold"])
    assert card["backbone"] == "test_resnet"
    assert card["names"] == [str(digit) for digit in range(10)]


def test_a_finished_stage_run_again_says_so_and_changes_no_byte(copy_of_trained, capsys):
    def content():
        return {
            path: path.read_bytes() for path in copy_of_trained.rglob("*") if path.is_file() and "runs" in path.parts
        }

    before = content()
    train.main(root=copy_of_trained)
    predict.main(root=copy_of_trained)
    output = capsys.readouterr().out
    assert output.count("done before") == 3
    assert output.count("predicted before") == 1
    assert content() == before


def test_permuting_train_csv_and_the_prediction_files_changes_no_score(copy_of_trained, capsys):
    root = copy_of_trained
    submit.main(root=root)
    capsys.readouterr()
    train.main(root=root)
    expected = pooled_score(capsys.readouterr().out)
    table = pd.read_csv(root / "data" / "train.csv", dtype=str)
    table.sample(frac=1, random_state=0).to_csv(root / "data" / "train.csv", index=False)
    workspace = Workspace(root)
    shuffle_predictions(workspace)
    train.main(root=root)
    assert pooled_score(capsys.readouterr().out) == expected
    before = (root / "submission.csv").read_bytes()
    submit.main(root=root)
    assert (root / "submission.csv").read_bytes() == before


def shuffle_predictions(workspace: Workspace) -> None:
    import pyarrow.parquet as pq

    from kfold import artifacts

    for number in range(3):
        folder = workspace.fold_dir("baseline", number)
        for name in ("oof", "test"):
            table = pq.read_table(folder / f"{name}.parquet")
            order = np.random.default_rng(number).permutation(len(table))
            pq.write_table(table.take(order), folder / f"{name}.parquet")
        manifest = artifacts.read_manifest(folder)
        artifacts.write_manifest(folder, {**manifest}, list(manifest.pop("files")))


def test_training_twice_gives_the_same_bytes(trained, tmp_path):
    root = prepare(tmp_path, "multiclass", 150, 40, epochs=2, workers=2)
    train.main(fold="1", root=root)
    for name in ("last.safetensors", "best.safetensors"):
        again, first = (folder / "runs" / "baseline" / "fold1" / name for folder in (root, trained))
        assert again.read_bytes() == first.read_bytes()


def test_a_flipped_byte_in_weights_or_predictions_is_named(copy_of_trained):
    for name, stage in (("last.safetensors", predict), ("test.parquet", submit)):
        path = copy_of_trained / "runs" / "baseline" / "fold2" / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"fold2.{name}: damaged or changed"):
            stage.main(root=copy_of_trained)
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def test_settings_edited_after_the_training_are_refused_by_every_later_stage(copy_of_trained):
    path = copy_of_trained / "runs" / "baseline" / "config.yaml"
    path.write_text(path.read_text().replace("seed: 42", "seed: 43"))
    for stage in (predict.main, submit.main):
        with pytest.raises(UserError, match=r"config\.yaml"):
            stage(root=copy_of_trained)


def test_a_run_may_not_take_the_stacks_name(copy_of_trained):
    with pytest.raises(UserError, match="cannot be called stack"):
        train.main(name="stack", root=copy_of_trained)


def test_other_settings_do_not_mix_into_a_run(copy_of_trained):
    with pytest.raises(UserError, match=r"made with other settings; now lr=0\.01.*give the new run a name"):
        train.main(overrides=["lr=0.01"], root=copy_of_trained)
    train.main(fold="0", overrides=["lr=0.01", "epochs=1"], name="faster", root=copy_of_trained)
    assert Workspace(copy_of_trained).run_names() == ["baseline", "faster"]


def test_results_on_other_folds_are_refused_by_every_stage(copy_of_trained):
    root = copy_of_trained
    (root / "competition.yaml").write_text((root / "competition.yaml").read_text() + "fold_seed: 7\n")
    make_folds.main(root=root, overwrite=True)
    with pytest.raises(UserError, match="other folds"):
        submit.main(run="baseline", root=root)
    with pytest.raises(UserError, match="other folds"):
        predict.main(overwrite=True, root=root)  # its validation rows were trained on: a leak
    with pytest.raises(UserError, match="other folds"):
        train.main(root=root)
    train.main(overwrite=True, overrides=["epochs=1"], root=root)
    predict.main(root=root)
    submit.main(root=root)


def test_a_wrong_choice_with_overwrite_leaves_the_run_as_it_was(copy_of_trained):
    config = (copy_of_trained / "runs" / "baseline" / "config.yaml").read_bytes()
    with pytest.raises(UserError, match="resnet81"):
        train.main(overwrite=True, overrides=["backbone=resnet81"], root=copy_of_trained)
    assert (copy_of_trained / "runs" / "baseline" / "config.yaml").read_bytes() == config
    assert Workspace(copy_of_trained).trained_folds("baseline") == [0, 1, 2]


def test_a_stop_while_all_folds_are_redone_leaves_none_of_the_old_ones_done(copy_of_trained, monkeypatch):
    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "fit", stop)
    with pytest.raises(KeyboardInterrupt):
        train.main(overwrite=True, overrides=["lr=0.01"], root=copy_of_trained)
    assert Workspace(copy_of_trained).trained_folds("baseline") == []


def test_a_stop_between_predictions_and_manifest_is_mended_by_running_the_stages_again(
    copy_of_trained, monkeypatch, capsys
):
    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(predict.artifacts, "write_manifest", stop)
        with pytest.raises(KeyboardInterrupt):
            predict.main(tta="flips", root=copy_of_trained)
    train.main(root=copy_of_trained)
    assert "predictions were interrupted" in capsys.readouterr().out
    predict.main(root=copy_of_trained)
    submit.main(root=copy_of_trained)


def test_views_once_chosen_stay_when_the_pipeline_runs_again(copy_of_trained, capsys):
    predict.main(tta="flips", root=copy_of_trained)
    predict.main(root=copy_of_trained)
    assert "predicted before with weights=last, tta=flips" in capsys.readouterr().out


def test_predicting_does_not_vouch_for_a_damaged_file(copy_of_trained):
    path = copy_of_trained / "runs" / "baseline" / "fold0" / "best.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"best\.safetensors: damaged or changed"):
        predict.main(tta="flips", root=copy_of_trained)


def test_too_small_a_limit_is_refused(copy_of_trained):
    with pytest.raises(UserError, match=r"limit=2: too few rows for 3 folds: take 6 or more"):
        train.main(overrides=["limit=2"], root=copy_of_trained)


def test_tta_is_shown_beside_the_score_without_it(copy_of_trained, capsys):
    predict.main(tta="flips", root=copy_of_trained)
    output = capsys.readouterr().out
    rows = [line for line in output.splitlines() if line.split()[:1] in (["none"], ["flips"])]
    assert [line.split()[0] for line in rows] == ["none", "flips"]
    assert rows[1].endswith("<- taken")
    assert "noise" in rows[1]


def test_a_bad_test_image_gets_the_prior_and_is_listed(copy_of_trained, capsys):
    root = copy_of_trained
    test_id = pd.read_csv(root / "data" / "test.csv", dtype=str).iloc[3, 0]
    (root / "data" / "test_images" / f"{test_id}.png").write_bytes(b"<html>")
    predict.main(root=root, overwrite=True)
    assert f"id '{test_id}' gets the prior prediction" in capsys.readouterr().err
    folder = root / "runs" / "baseline" / "fold0"
    assert json.loads((folder / "manifest.json").read_text())["unreadable_test_ids"] == [test_id]
    folds = pd.read_csv(root / "folds.csv", dtype=str)
    shares = folds[folds["fold"] != "0"]["label"].value_counts(normalize=True)
    row = pd.read_parquet(folder / "test.parquet").set_index("id").loc[test_id]
    assert row["p_7"] == pytest.approx(shares["7"], abs=1e-6)


def test_a_trial_run_on_few_rows_has_its_own_name(copy_of_trained):
    train.main(overrides=["limit=60", "epochs=1"], root=copy_of_trained)
    predict.main(run="baseline-limit60", root=copy_of_trained)
    submit.main(run="baseline-limit60", root=copy_of_trained)
    oof = [
        pd.read_parquet(copy_of_trained / "runs" / "baseline-limit60" / f"fold{number}" / "oof.parquet")
        for number in range(3)
    ]
    assert sum(map(len, oof)) == 60


def test_choosing_the_best_epoch_is_called_optimistic(copy_of_trained, capsys):
    train.main(overrides=["select=best", "epochs=2"], name="best", root=copy_of_trained)
    assert "optimistic" in capsys.readouterr().out


def copy_code(root: Path) -> Path:
    """The scripts and the package, without settings, data and results."""
    shutil.copytree(REPOSITORY / "kfold", root / "kfold", ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*REPOSITORY.glob("*.py"), *REPOSITORY.glob("*.sh")]:
        shutil.copy(path, root)
    return root


def exit_code(script: Path, *words: str) -> int:
    """Of the script as a command, but in this process, which has imported torch and all else already."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(script), *words])
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        return ended.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


STAND_IN = """#!/bin/bash
printf '%s\\n' "$PWD" "$@" > "$CALLS/new" && mv "$CALLS/new" "$CALLS/words"
until [ -e "$CALLS/code" ]; do sleep 0.02; done
code="$(cat "$CALLS/code")" && rm "$CALLS/code" && exit "$code"
"""


def run_pipeline_sh(root: Path, calls: Path, *names: str) -> int:
    """The exit code of pipeline.sh, started elsewhere; its interpreter hands each stage over to this process."""
    calls.mkdir()
    interpreter = calls / "python"
    interpreter.write_text(STAND_IN)
    interpreter.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(interpreter), "CALLS": str(calls)}
    running = subprocess.Popen(["bash", str(root / "pipeline.sh"), *names], cwd="/", env=environment)
    try:
        while running.poll() is None:
            if (calls / "words").exists():
                folder, script, *words = (calls / "words").read_text().splitlines()
                (calls / "words").unlink()
                with contextlib.chdir(folder):
                    atomic_write(calls / "code", str(exit_code(Path(script).resolve(), *words)))
            time.sleep(0.02)
    finally:
        running.kill()
    return running.returncode


def test_pipeline_sh_runs_every_stage_from_any_folder_and_skips_what_is_done(tmp_path, capsys):
    """In a path with spaces and non-Latin letters. With an interpreter of its own it runs in test_resume.py."""
    root = copy_code(tmp_path / "мой проект 猫")
    write_settings(root, "multiclass", epochs=1, pseudo_top_share=0.5)
    demo_data.main(root=root)
    thin_out(root, 90, 20)
    assert run_pipeline_sh(root, tmp_path / "вызовы calls", "baseline") == 0  # then pseudo-labels and the stack
    assert (root / "submission.csv").exists()
    assert Workspace(root).run_names() == ["baseline", "baseline-p1", "stack"]
    capsys.readouterr()
    for stage in (make_folds.main, train.main, predict.main, stack.main, functools.partial(submit.main, run="stack")):
        stage(root=root)
    assert capsys.readouterr().out.count("done before") == 4  # three folds and the stack


@pytest.mark.parametrize(
    "script", ["demo_data", "make_folds", "train", "predict", "pseudo_label", "stack", "submit", "embed", "ablate"]
)
def test_every_script_helps_and_a_mistake_is_one_line_without_traceback(script, tmp_path, capsys):
    path = copy_code(tmp_path / "empty") / f"{script}.py"
    assert exit_code(path, "--help") == 0
    assert f"python {script}.py" in capsys.readouterr().out
    assert exit_code(path) == 2
    errors = capsys.readouterr().err
    assert ("no trained fold" if script == "predict" else "competition.yaml: no such file") in errors
    assert "Traceback" not in errors
