"""predict.py reads each test image once, whatever looks at it, and leaves the same files whichever way it goes."""

import importlib
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_pipeline import prepare

import predict
import train
from kfold import inference, inference_choice
from kfold.artifacts import Workspace
from kfold.data.cache import FileReader
from kfold.engines.inference import Inference
from kfold.errors import UserError
from kfold.inference_choice import Wish

RUNS = ("baseline", "other", "larger")
FOLDED = Inference(channels_last=True, fold_batchnorm=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs whose images are read alike, with pixel statistics of their own, and one of another size."""
    root = prepare(tmp_path_factory.mktemp("passes"), "multiclass", 59, 13, epochs=1, batch_size=4, cache="off")
    words = {"baseline": [], "other": ["seed=7", "input_statistics=dataset"], "larger": ["image_size=40"]}
    for run in RUNS:
        train.main(overrides=words[run], name=run, root=root)
    predict.main(run=RUNS, tta="flips", root=root)
    return root


@pytest.fixture
def copy_of_trained(trained, tmp_path):
    copy = Path(shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("data")))
    (copy / "data").symlink_to(trained / "data")
    return copy


@pytest.fixture
def reads(monkeypatch):
    """How often each image file is read, by its folder and name."""
    counts, read = Counter(), FileReader.__call__

    def counted(reader, row):
        path = Path(reader.paths[row])
        counts[path.parent.name, path.name] += 1
        return read(reader, row)

    monkeypatch.setattr(FileReader, "__call__", counted)
    return counts


def contents(root: Path, run: str) -> dict[str, bytes]:
    """What is predicted of each fold, and with what."""
    found = {}
    for number in range(3):
        for rows in ("oof", "test"):
            path = Workspace(root).predictions_path(run, number, rows)
            found[f"{rows}{number}"] = path.read_bytes()
        found[f"predicted{number}"] = json.dumps(predicted(root, run)[number])
    return found


def predicted(root: Path, run: str) -> list:
    folders = [Workspace(root).fold_dir(run, number) for number in range(3)]
    return [json.loads((folder / "manifest.json").read_text()).get("predicted") for folder in folders]


def limit_memory(monkeypatch, root: Path, num_models: float) -> None:
    size = Workspace(root).weights_path("baseline", 0, "last").stat().st_size
    monkeypatch.setattr(predict, "memory_for_models", lambda device: num_models * size)


def test_an_image_is_read_once_for_all_folds_and_views_and_for_all_runs_that_read_it_alike(copy_of_trained, reads):
    predict.main(run=RUNS[:2], tta="d4", overwrite=True, root=copy_of_trained)
    tests = {name: count for (folder, name), count in reads.items() if folder == "test_images"}
    assert len(tests) == 13
    assert set(tests.values()) == {1}
    held_out = [count for (folder, _), count in reads.items() if folder == "train_images"]
    assert len(held_out) == 59
    assert set(held_out) == {
        4
    }  # for each of two runs once for d4, and once for the plain view that it is compared with


def test_views_that_are_compared_share_one_reading(copy_of_trained, reads):
    predict.main(tta="none,hflip,flips,d4", overwrite=True, root=copy_of_trained)
    held_out = {count for (folder, _), count in reads.items() if folder == "train_images"}
    assert held_out == {2}  # once plain, while weights are chosen, and once for the three others


def test_a_run_of_another_size_is_read_by_itself(copy_of_trained, reads):
    predict.main(run=RUNS, tta="none", overwrite=True, root=copy_of_trained)
    assert {count for (folder, _), count in reads.items() if folder == "test_images"} == {2}


@pytest.mark.parametrize("num_models", [0.1, 4.5])
def test_a_run_is_predicted_the_same_alone_in_company_and_in_little_memory(
    copy_of_trained, num_models, monkeypatch, capsys
):
    expected = {run: contents(copy_of_trained, run) for run in RUNS}
    predict.main(run="other", overwrite=True, root=copy_of_trained)
    assert contents(copy_of_trained, "other") == expected["other"]
    limit_memory(monkeypatch, copy_of_trained, num_models)
    predict.main(run=RUNS, overwrite=True, root=copy_of_trained)
    assert {run: contents(copy_of_trained, run) for run in RUNS} == expected
    passes = {0.1: "1 folds of 6: 6 passes", 4.5: "4 folds of 6: 2 passes"}
    assert f"the memory holds the models of {passes[num_models]}" in capsys.readouterr().out


def test_a_stop_in_the_middle_keeps_what_is_finished_and_leaves_nothing_half_written(copy_of_trained, monkeypatch):
    """Stopped in the second of three passes: fold 0 is new, the others are as they were."""
    root, before = copy_of_trained, contents(copy_of_trained, "baseline")
    limit_memory(monkeypatch, root, 1.5)
    look, calls = inference.predict_rows, []

    def stopped(wanted, ids, image_dir_name, *more, **options):
        calls.append(image_dir_name)
        if calls.count("test_images") == 2:
            raise KeyboardInterrupt
        return look(wanted, ids, image_dir_name, *more, **options)

    with monkeypatch.context() as patched:
        patched.setattr(inference, "predict_rows", stopped)
        with pytest.raises(KeyboardInterrupt):
            predict.main(tta="hflip", root=root)
    after = contents(root, "baseline")
    changed = {key for key in before if after[key] != before[key]}
    assert changed == {"oof0", "test0", "predicted0"}
    assert [one["tta"] for one in predicted(root, "baseline")] == ["hflip", "flips", "flips"]
    predict.main(root=root)
    finished = contents(root, "baseline")
    predict.main(tta="hflip", overwrite=True, root=root)
    assert contents(root, "baseline") == finished


# The way


@pytest.fixture
def folded_is_fastest(monkeypatch):
    calls = []
    monkeypatch.setattr(inference_choice, "choose_inference", lambda *_: calls.append(1) or (FOLDED, []))
    return calls


def test_one_way_is_found_for_held_out_and_test_rows_and_kept(copy_of_trained, folded_is_fastest, capsys):
    root, plain = copy_of_trained, contents(copy_of_trained, "baseline")
    assert Inference(**predicted(root, "baseline")[0]["inference"]).is_plain
    predict.main(root=root, wish=Wish("auto"))
    assert [Inference(**one["inference"]) for one in predicted(root, "baseline")] == [FOLDED] * 3
    folded = contents(root, "baseline")
    for number in range(3):
        for rows in ("oof", "test"):
            path = Workspace(root).predictions_path("baseline", number, rows)
            values = pd.read_parquet(path).filter(like="p_").to_numpy()
            path.write_bytes(plain[f"{rows}{number}"])
            others = pd.read_parquet(path).filter(like="p_").to_numpy()
            assert 0 < np.abs(values - others).max() < 1e-4
            path.write_bytes(folded[f"{rows}{number}"])
    assert len(folded_is_fastest) == 1
    for wish in (Wish(), Wish("auto")):
        capsys.readouterr()
        predict.main(root=root, wish=wish)
        assert "predicted before" in capsys.readouterr().out
    predict.main(tta="none", root=root)  # other views, the same way
    assert [Inference(**one["inference"]) for one in predicted(root, "baseline")] == [FOLDED] * 3
    assert len(folded_is_fastest) == 1
    predict.main(tta="flips", root=root, wish=Wish("plain"))
    assert contents(root, "baseline") == plain


def test_no_trial_is_run_for_a_few_batches(copy_of_trained, folded_is_fastest):
    predict.main(overwrite=True, root=copy_of_trained)
    assert folded_is_fastest == []


def test_a_trial_of_real_models_ends_in_a_way_that_is_near_enough(copy_of_trained, capsys):
    predict.main(root=copy_of_trained, wish=Wish("auto", tolerance=1e-9))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("run baseline: ")]
    assert "largest difference of a probability from float32; allowed 1e-04, of less than float32 1e-09" in lines[0]
    assert lines[1].startswith("run baseline: as trained ")
    assert "bfloat16, channels last, BatchNorm folded" in lines[1].split("; taken: ")[0]
    assert "bfloat16" not in lines[1].split("; taken: ")[1]


def test_an_engine_that_is_not_installed_is_refused_with_the_remedy(copy_of_trained, monkeypatch):
    importer = importlib.import_module

    def without(name, *more):
        if name == "openvino":
            raise ModuleNotFoundError("No module named 'openvino'")
        return importer(name, *more)

    monkeypatch.setattr(importlib, "import_module", without)
    before = contents(copy_of_trained, "baseline")
    with pytest.raises(UserError, match=r"--engine openvino: cannot be imported .*: pip install openvino, or use"):
        predict.main(root=copy_of_trained, wish=Wish(engine="openvino"))
    assert contents(copy_of_trained, "baseline") == before
    with pytest.raises(UserError, match=r"--speed plain --engine openvino: .*: give one of the two"):
        predict.main(root=copy_of_trained, wish=Wish("plain", "openvino"))
