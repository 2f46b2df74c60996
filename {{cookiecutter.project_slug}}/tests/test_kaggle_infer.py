"""The inference notebook of a bundle, on hidden test sets, in both layouts of /kaggle/input, without a network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kaggle_runs import HIDDEN, LAYOUTS, SLUG, bundle_of, few_trees, load_script, make_tree, runs_to_bundle
from reliability import FULL

from kfold.artifacts import Workspace
from kfold.config import load_competition
from kfold.errors import UserError
from kfold.files import file_sha256
from kfold.kaggle import hidden_rows
from kfold.kaggle.budget import Cost, fit_into, order_by_use, total
from kfold.kaggle.inputs import KaggleTree, find_data
from kfold.kaggle.repository import read_marker
from kfold.metrics import resolve_metric
from kfold.predictions import read_predictions

infer, predict_hidden = load_script("infer"), load_script("predict_hidden")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    few_trees(monkeypatch)


def run_stages(tree: KaggleTree, time_limit: str = "8h") -> pd.DataFrame:
    """The submission, as the notebook makes it."""
    infer.prepare(mounted(tree), tree)
    predict_hidden.main(tree, time_limit)
    infer.submit(tree)
    infer.check(tree)
    return pd.read_csv(tree.submission_path, dtype=str, keep_default_na=False)


def mounted(tree: KaggleTree) -> Path:
    """The bundle, where one of the layouts has it."""
    places = [tree.root / "input" / dataset for _, dataset in LAYOUTS.values()]
    return next(place for place in places if place.exists())


def hidden_ids(tree: KaggleTree) -> list[str]:
    return pd.read_csv(next(tree.root.glob("input/**/test.csv")), dtype=str)["image_id"].tolist()


def test_predictions(root: Path, run: str) -> pd.DataFrame:
    """The mean over folds of a run's test predictions, by id."""
    paths = sorted(Path(root).glob(f"runs/{run}/fold*/test.parquet"))
    return sum(pd.read_parquet(path).set_index("id").sort_index() for path in paths) / len(paths)


test_predictions.__test__ = False  # pytest takes its name for a test


@pytest.mark.parametrize(("layout", "hidden"), [*(("new", hidden) for hidden in HIDDEN), ("old", "ten times")])
def test_every_hidden_test_set_gets_its_own_ids_in_order(layout, hidden, tmp_path):
    tree = make_tree(tmp_path, layout, hidden, bundle_of("weighted"))
    submission = run_stages(tree)
    assert submission["image_id"].tolist() == hidden_ids(tree)
    assert submission["label"].isin([str(digit) for digit in range(10)]).all()
    predictions = test_predictions(tree.repository, "weighted")
    assert np.isfinite(predictions.to_numpy()).all()
    np.testing.assert_allclose(predictions.sum(axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("run", ["trees", "weighted"])
def test_on_the_public_images_a_bundle_says_what_the_runs_said_at_home(run, tmp_path, capsys):
    tree = make_tree(tmp_path, "new", "shuffled", bundle_of(run))
    run_stages(tree)
    at_home = runs_to_bundle()
    for name in ("baseline", "second", run):
        found = test_predictions(tree.repository, name)
        assert found.to_numpy().std() > 0.005  # else everything would agree
        pd.testing.assert_frame_equal(found, test_predictions(at_home, name), rtol=1e-4, atol=1e-5)
    output = capsys.readouterr().out
    assert f"stack {run}: its out-of-fold predictions are within 0.0e+00 of those" in output
    assert f"stack {run}: 1 methods" in output  # not compared with others again


def test_a_full_data_fit_is_submitted_by_itself(tmp_path):
    tree = make_tree(tmp_path, "new", "shuffled", bundle_of("second", all_data=True))
    submission = run_stages(tree)
    assert submission["image_id"].tolist() == hidden_ids(tree)
    found, at_home = (
        pd.read_parquet(root / "runs" / "second" / "all-data" / "test.parquet").set_index("id").sort_index()
        for root in (tree.repository, runs_to_bundle())
    )
    pd.testing.assert_frame_equal(found, at_home, rtol=1e-4, atol=1e-5)
    best = at_home.idxmax(axis=1).str.removeprefix("p_")
    assert submission.set_index("image_id")["label"].sort_index().tolist() == best.tolist()


def test_runs_without_a_stack_are_averaged(tmp_path):
    tree = make_tree(tmp_path, "old", "shuffled", bundle_of("baseline", "second"))
    run_stages(tree)
    mean = (test_predictions(runs_to_bundle(), "baseline") + test_predictions(runs_to_bundle(), "second")) / 2
    found = test_predictions(tree.repository, infer.BLEND)
    pd.testing.assert_frame_equal(found, mean, rtol=1e-4, atol=1e-5)


def test_an_unreadable_hidden_image_gets_the_prior(tmp_path, capsys):
    tree = make_tree(tmp_path, "new", "three rows", bundle_of("baseline"))
    (tmp_path / "input" / "competitions" / SLUG / "test_images" / "hidden_1.png").write_bytes(b"no image")
    submission = run_stages(tree)
    assert len(submission) == 3
    assert "hidden_1' gets the prior prediction" in capsys.readouterr().err
    row = test_predictions(tree.repository, "baseline").loc["hidden_1"].to_numpy()
    train = pd.read_csv(runs_to_bundle() / "data" / "train.csv", dtype=str)
    np.testing.assert_allclose(row, train["label"].value_counts(normalize=True).sort_index(), atol=0.01)


def test_a_prior_submission_is_there_before_any_model_is_read(tmp_path, monkeypatch):
    tree = make_tree(tmp_path, "new", "ten times", bundle_of("weighted"))
    infer.prepare(mounted(tree), tree)
    infer.check(tree)
    before = tree.submission_path.read_bytes()
    path = tree.repository / "runs" / "second" / "fold1" / "last.safetensors"
    path.unlink()
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"fold1.last\.safetensors: damaged or changed"):
        predict_hidden.main(tree)
    assert tree.submission_path.read_bytes() == before


def test_the_check_refuses_a_submission_that_somebody_changed(tmp_path):
    tree = make_tree(tmp_path, "new", "three rows", bundle_of("weighted"))
    infer.prepare(mounted(tree), tree)
    text = tree.submission_path.read_text()
    tree.submission_path.write_text(text.replace("hidden_1", "hidden_9"))
    with pytest.raises(UserError, match="1 ids have no row: 'hidden_1'"):
        infer.check(tree)


# Time


def timed(monkeypatch, seconds: dict[str, tuple[float, float]]) -> None:
    """What measuring finds: seconds an image with views and without, by run."""
    monkeypatch.setattr(hidden_rows, "NUM_TIMED", 2)
    monkeypatch.setattr(hidden_rows, "measure", lambda job: Cost(*seconds[job.run]))


@pytest.mark.parametrize(
    ("limit", "views", "runs"),
    [
        ("1000s", {"baseline": "flips", "second": "none"}, ["baseline", "second"]),
        ("100s", {"baseline": "none", "second": "none"}, ["baseline", "second"]),
        ("40s", None, 1),
        ("1s", {}, []),
    ],
)
def test_views_go_first_then_the_least_useful_model_then_the_prior_stays(
    limit, views, runs, tmp_path, monkeypatch, capsys
):
    timed(monkeypatch, {"baseline": (20.0, 10.0), "second": (10.0, 10.0)})  # 3 images: 60 s or 30 s, and 30 s
    tree = make_tree(tmp_path, "new", "three rows", bundle_of("weighted"))
    submission = run_stages(tree, limit)
    assert submission["image_id"].tolist() == hidden_ids(tree)
    predicted = json.loads(tree.plan_path.read_text())["predicted"]
    output = capsys.readouterr().out
    if runs == 1:
        (only,) = predicted
        assert f"run {only}, out of fold" in output  # submitted alone
        assert "left out" in output
        return
    assert sorted(predicted) == sorted(runs)
    for run, view in views.items():
        stamps = read_stamps(tree.repository, run)
        assert {stamp["tta"] for stamp in stamps} == {view}
    assert ("the prior submission stays" in output) == (not runs)


def read_stamps(root: Path, run: str) -> list[dict]:
    stamp = file_sha256(root / "folds.csv")
    return [dict(read_predictions(path, stamp).stamps) for path in root.glob(f"runs/{run}/fold*/test.parquet")]


def test_speed_is_measured_on_test_images_with_and_without_views(tmp_path):
    tree = make_tree(tmp_path, "old", "ten times", bundle_of("baseline"))
    infer.prepare(mounted(tree), tree)
    jobs, _ = predict_hidden.open_runs(Workspace(tree.repository), read_marker(tree.repository))
    cost = hidden_rows.measure(jobs["baseline"])
    assert cost.with_views > 0
    assert cost.plain > 0
    assert not jobs["baseline"].workers  # chosen anew for all images


costs = st.dictionaries(
    st.sampled_from("abcde"),
    st.tuples(st.floats(0.001, 1), st.floats(1, 8)).map(lambda pair: Cost(pair[0] * pair[1], pair[0])),
    min_size=1,
)


@given(costs, st.integers(1, 10_000), st.floats(0, 20_000))
def test_a_plan_fits_into_the_time_and_keeps_the_most_useful(costs, num_images, seconds):
    planned = fit_into(costs, num_images, seconds)
    assert total(planned) <= seconds or not planned
    assert [one.run for one in planned] == list(costs)[: len(planned)]
    if len(planned) < len(costs):  # a model goes only after every view, and only where it would not fit
        assert not any(one.with_views and costs[one.run].plain < costs[one.run].with_views for one in planned)
        assert sum(cost.plain for cost in list(costs.values())[: len(planned) + 1]) * num_images > seconds
    with_views = [one.with_views for one in planned if costs[one.run].plain < costs[one.run].with_views]
    assert with_views == sorted(with_views, reverse=True)  # the most useful keep theirs longest


def test_of_three_runs_the_one_that_adds_nothing_goes_first():
    targets = np.eye(2, dtype=np.float32)[[0, 0, 1, 1] * 5]
    good = np.clip(targets + 0.1, 0, 1) / 1.2
    noise = np.random.default_rng(0).random(targets.shape).astype(np.float32)
    oof = {"noise": noise / noise.sum(axis=1, keepdims=True), "best": good, "copy": good}
    assert order_by_use(oof, targets, resolve_metric("log_loss", "multiclass"))[-1] == "noise"


# Inputs


def test_the_competition_is_named_where_it_is_not_found(tmp_path):
    facts = load_competition(runs_to_bundle() / "competition.yaml")
    (tmp_path / "input" / "datasets" / "me" / "other").mkdir(parents=True)
    (tmp_path / "input" / "something").mkdir()
    with pytest.raises(UserError, match=r"add the competition to the notebook; tried .*input.something$"):
        find_data(KaggleTree(tmp_path), facts)
    (tmp_path / "input" / "something" / "sample_submission.csv").write_text("image_id,label\n")
    with pytest.raises(UserError, match=r"something: lacks train\.csv, test_images"):
        find_data(KaggleTree(tmp_path), facts)


def test_of_two_samples_the_one_of_the_competition_is_taken(tmp_path):
    facts = load_competition(runs_to_bundle() / "competition.yaml")
    for place in ("other", f"competitions/{SLUG}"):
        (tmp_path / "input" / place / "test_images").mkdir(parents=True)
        for name in ("sample_submission.csv", "train.csv"):
            (tmp_path / "input" / place / name).write_text("image_id,label\n")
    assert find_data(KaggleTree(tmp_path), facts) == tmp_path / "input" / "competitions" / SLUG
    with pytest.raises(UserError, match="set kaggle_competition in competition.yaml"):
        find_data(KaggleTree(tmp_path), facts.model_copy(update={"kaggle_competition": ""}))


# The notebook itself

EXECUTE = """
import sys
import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
kernel = AsyncKernelManager(kernel_name="python3", transport="ipc")  # no port, which a machine without network lacks
NotebookClient(notebook, km=kernel, timeout=280, allow_errors=True).execute()
for cell in notebook.cells:
    for output in cell.get("outputs", []):
        print(output.get("text") or output.get("ename", "") + ": " + output.get("evalue", ""))
"""


def without_network() -> list[str]:
    """Words that cut a process off from every network, where the system allows it; else sitecustomize.py does alone."""
    words = ["unshare", "-n", "-r"]
    allowed = shutil.which("unshare") and subprocess.run([*words, "true"], capture_output=True).returncode == 0
    return words if allowed else []


def execute(notebook: Path, tree: KaggleTree, folder: Path) -> str:
    """What the cells say."""
    command = [*without_network(), sys.executable, "-c", EXECUTE, str(notebook)]
    environment = {**os.environ, "KAGGLE_ROOT": str(tree.root), "JUPYTER_RUNTIME_DIR": str(folder / "runtime")}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("hidden", HIDDEN if FULL else ["ten times"])
def test_the_notebook_runs_cut_off_from_every_network(hidden, tmp_path, figures):
    bundle = bundle_of("weighted")
    tree = make_tree(tmp_path, "new", hidden, bundle)
    output = execute(bundle / "notebook" / "inference.ipynb", tree, tmp_path)
    assert "Error" not in output
    assert "files are as they were sent" in output
    assert "holds a prior submission" in output
    last = output.strip().splitlines()
    assert any(f"submission.csv: valid, {HIDDEN[hidden]} rows" in line for line in last[-3:]), output
    submission = pd.read_csv(tree.submission_path, dtype=str)
    assert submission["image_id"].tolist() == hidden_ids(tree)
    how = "by unshare -n" if without_network() else "in the process only (unshare is not allowed here)"
    figures(f"the inference notebook ran on {HIDDEN[hidden]} hidden images, network cut off {how}")


def find_cell(bundle: Path, tree: KaggleTree) -> subprocess.CompletedProcess:
    """The notebook's first cell as a script."""
    code = nbformat.read(bundle / "notebook" / "inference.ipynb", as_version=4).cells[1].source
    environment = {**os.environ, "KAGGLE_ROOT": str(tree.root)}
    return subprocess.run([sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True)


def test_the_first_cell_names_a_damaged_file_and_another_version(tmp_path):
    bundle = Path(shutil.copytree(bundle_of("weighted"), tmp_path / "copy"))
    tree = make_tree(tmp_path / "kaggle", "new", "three rows", bundle)
    assert find_cell(bundle, tree).returncode == 0
    weights = bundle / "dataset" / "runs" / "baseline" / "fold1" / "last.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = find_cell(bundle, tree)
    assert done.returncode == 1
    assert "1 files missing or damaged (runs/baseline/fold1/last.safetensors)" in done.stderr
    marker = bundle / "dataset" / "bundle.json"
    marker.write_text(marker.read_text() + " ")
    done = find_cell(bundle, tree)
    assert "only other versions" in done.stderr
    marker.unlink()
    done = find_cell(bundle, tree)
    assert "tried " in done.stderr
    assert "my-bundle" in done.stderr
    assert "Traceback" not in done.stderr
