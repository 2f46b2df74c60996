"""A run is predicted in the number format and layout that it was trained in, test rows as held-out ones."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_pipeline import prepare

import predict
import train
from kfold import inference_choice
from kfold.artifacts import Workspace, read_manifest, save_manifest
from kfold.engines.inference import Inference
from kfold.inference_choice import Wish
from kfold.setup import cleaning
from kfold.setup import speed as setup_speed
from kfold.training import precision
from kfold.training.predicting import predict_logits
from kfold.training.speed import Speed, fallback, prediction_speed
from kfold.training.speed_search import Trial

WAYS = {
    "bfloat16": Speed("bfloat16", channels_last=True, depthwise_float32=True, keep_memory=True),
    "layout": Speed(channels_last=True),
    "plain": Speed(),
}
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Fold 0 of a run for each way; a held-out row of fold 0 is among the test rows, too."""
    root = prepare(
        tmp_path_factory.mktemp("ways"), "multiclass", 48, 15,
        epochs=1, batch_size=8, backbone="test_efficientnet", speed="auto",
    )  # fmt: skip
    folds = pd.read_csv(root / "folds.csv", dtype=str)
    known = folds.loc[folds["fold"] == "0", "id"].iloc[3]
    data = root / "data"
    (source,) = (data / "train_images").glob(f"{known}.*")
    shutil.copyfile(source, data / "test_images" / f"known{source.suffix}")
    for name in ("test", "sample_submission"):
        table = pd.read_csv(data / f"{name}.csv", dtype=str)
        row = table.iloc[[0]].copy()
        row.iloc[0, 0] = "known"
        pd.concat([table, row]).to_csv(data / f"{name}.csv", index=False)
    with pytest.MonkeyPatch.context() as patched:
        for run, speed in WAYS.items():
            patched.setattr(setup_speed, "measure", lambda fold, speed=speed: ([Trial(speed, 1.0)], True))
            (root / "runs" / "speed_choices.json").unlink(missing_ok=True)
            train.main(fold="0", name=run, root=root)
    return root, known


def values_of(root: Path, run: str, rows: str) -> pd.DataFrame:
    return pd.read_parquet(Workspace(root).predictions_path(run, 0, rows)).set_index("id").filter(like="p_")


@pytest.fixture
def copy_of_trained(trained, tmp_path):
    copy = Path(shutil.copytree(trained[0], tmp_path / "copy", ignore=shutil.ignore_patterns("data", "cache")))
    (copy / "data").symlink_to(trained[0] / "data")
    return copy


def test_a_training_row_among_the_test_rows_gets_its_out_of_fold_prediction(copy_of_trained, trained):
    """16 held-out and 16 test rows: one batch each, so that sums are taken alike."""
    known, found = trained[1], {}
    for run in WAYS:
        in_training = values_of(copy_of_trained, run, "oof")
        predict.main(run=run, root=copy_of_trained)
        found[run] = in_training.loc[known].to_numpy()
        assert values_of(copy_of_trained, run, "oof").equals(in_training)
        assert np.array_equal(values_of(copy_of_trained, run, "test").loc["known"], found[run])
        manifest = read_manifest(Workspace(copy_of_trained).fold_dir(run, 0))
        assert manifest["predicted"]["inference"]["dtype"] == "as trained"
    assert not np.array_equal(found["bfloat16"], found["plain"])


def test_another_way_is_kept_until_plain_is_asked_for_which_is_as_it_was_trained(copy_of_trained, monkeypatch):
    folder = Workspace(copy_of_trained).fold_dir("bfloat16", 0)
    as_trained = values_of(copy_of_trained, "bfloat16", "oof")
    folded = Inference(channels_last=True, fold_batchnorm=True)
    monkeypatch.setattr(inference_choice, "choose_inference", lambda *_: (folded, []))
    for tta in ("none", "hflip"):
        predict.main(run="bfloat16", root=copy_of_trained, tta=tta, wish=Wish("auto" if tta == "none" else ""))
        assert read_manifest(folder)["predicted_as"] == str(folded)
    predict.main(run="bfloat16", root=copy_of_trained, tta="none", wish=Wish("plain"))
    assert values_of(copy_of_trained, "bfloat16", "oof").equals(as_trained)
    assert read_manifest(folder)["predicted_as"] == "bfloat16, channels last, depthwise float32"


def test_a_run_of_another_device_is_predicted_as_this_one_can_and_that_is_said_once(copy_of_trained, capsys):
    folder = Workspace(copy_of_trained).fold_dir("bfloat16", 0)
    manifest = read_manifest(folder)
    save_manifest(folder, {**manifest, "device": "cuda", "speed": "float16 channels_last"})
    predict.main(run="bfloat16", root=copy_of_trained)
    told = [line for line in capsys.readouterr().out.splitlines() if "no match" in line]
    assert told == [
        "run bfloat16: fold0: trained in float16 channels_last on cuda, which this cpu is no match for: float32 here"
    ]
    assert read_manifest(folder)["predicted_as"] == "float32"
    predict.main(run="layout", root=copy_of_trained)
    assert "no match" not in capsys.readouterr().out


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_a_gpu_without_bfloat16_falls_back_unless_the_settings_ask_for_it(monkeypatch, has_bfloat16):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    manifest = {"device": "cuda", "speed": "bfloat16 channels_last compiled fused"}
    as_trained = Speed("bfloat16", channels_last=True)
    assert prediction_speed(manifest, "bfloat16", CUDA) == as_trained
    assert prediction_speed(manifest, "auto", CUDA) == (as_trained if has_bfloat16 else Speed("float16"))
    assert bool(fallback(manifest, "auto", CUDA)) != has_bfloat16
    assert not fallback({"device": "cuda"}, "auto", CUDA)
    assert precision.choose_precision("auto", CUDA).dtype == (torch.bfloat16 if has_bfloat16 else torch.float16)


@pytest.mark.parametrize("run", ["bfloat16", "plain"])
def test_labels_are_judged_in_the_way_that_the_judge_was_trained(copy_of_trained, run, monkeypatch):
    seen = []

    def look(model, batches, views, card, device, of, *more):
        layout = next(weight for weight in model.parameters() if weight.ndim == 4 and weight.shape[2] > 1)
        seen.append(Speed(str(of.dtype)[6:], layout.is_contiguous(memory_format=torch.channels_last)))
        return predict_logits(model, batches, views, card, device, of, *more)

    monkeypatch.setattr(cleaning, "predict_logits", look)
    words = ["speed=plain", "clean_labels=0.1", f"clean_labels_from={run}", "workers=0"]
    train.main(fold="0", name="clean", root=copy_of_trained, overrides=words)
    assert seen == [replace(WAYS[run], depthwise_float32=False, keep_memory=False)]
