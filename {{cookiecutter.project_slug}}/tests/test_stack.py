"""stack.py on prediction files written by hand: what it joins, chooses, writes and refuses."""

import io
import json
import re
from pathlib import Path

import cv2
import lightgbm
import numpy as np
import pandas as pd
import pytest

import stack
import submit
from kfold import artifacts
from kfold.artifacts import Workspace, write_manifest
from kfold.ensemble import gbdt, nested, stack_files, stack_inputs
from kfold.ensemble.stack_settings import StackSettings
from kfold.ensemble.tuning import read_tuned
from kfold.errors import UserError
from kfold.files import file_sha256, locked
from kfold.ledger import read_ledger
from kfold.metrics import resolve_metric
from kfold.predictions import Predictions, read_predictions, write_predictions

NUM_TRAIN, NUM_TEST, NUM_FOLDS = 120, 24, 3
TRAIN_IDS = np.array([f"t{number:03}" for number in range(NUM_TRAIN)], object)
TEST_IDS = np.array([f"{number:03}" for number in range(NUM_TEST)], object)
CELLS = {  # task -> target columns of a row
    "multiclass": (["label"], lambda number: [("cat", "dog", "owl")[number % 3]]),
    "binary": (["label"], lambda number: [("no", "yes")[number % 2]]),
    "multilabel": (["odd", "low"], lambda number: [str(number % 2), str(number // 2 % 2)]),
    "regression": (["height"], lambda number: [str(number % 7)]),
}
METRIC_OF = {"multiclass": "accuracy", "binary": "roc_auc", "multilabel": "roc_auc", "regression": "rmse"}


@pytest.fixture(autouse=True)
def _fast(request, monkeypatch):
    """Two methods and small trees: they have their own tests, and here they only cost time."""
    monkeypatch.setattr(gbdt, "MAX_ROUNDS", 4)
    monkeypatch.setitem(gbdt.PARAMETERS, "num_threads", 1)
    kept = {"mean", "lightgbm" if "with_trees" in request.fixturenames else "simplex"}
    every = dict(nested.METHODS)
    for name in set() if "every_method" in request.fixturenames else set(every) - kept:
        del nested.METHODS[name]
    yield
    nested.METHODS.clear()
    nested.METHODS.update(every)  # in their order


@pytest.fixture
def with_trees():
    """LightGBM and the mean."""


@pytest.fixture
def every_method():
    """All of METHODS."""


def make_root(root: Path, task: str = "multiclass", metric: str = "auto", extra=None) -> Path:
    """A repository's facts, tables and folds; no runs yet. extra: number of the row -> more columns of both tables."""
    columns, cells = CELLS[task]
    extra = extra or (lambda number: {})
    (root / "data").mkdir(parents=True)
    group = "group_column: patient\n" if "patient" in extra(0) else ""
    (root / "competition.yaml").write_text(
        f"project_name: Test\ntask: {task}\nmetric: {metric}\nnum_folds: {NUM_FOLDS}\n"
        f"target_columns: [{', '.join(columns)}]\n{group}"
    )
    rows = {
        name: [
            {"image_id": image_id, **dict(zip(columns, cells(number), strict=True)), **extra(number)}
            for number, image_id in enumerate(ids)
        ]
        for name, ids in (("train", TRAIN_IDS), ("solution", TEST_IDS))
    }
    train, solution = (pd.DataFrame(rows[name]).astype(str) for name in ("train", "solution"))
    train.to_csv(root / "data" / "train.csv", index=False)
    solution.to_csv(root / "data" / "solution.csv", index=False)
    solution.drop(columns=columns).to_csv(root / "data" / "test.csv", index=False)
    solution[["image_id", *columns]].to_csv(root / "data" / "sample_submission.csv", index=False)
    folds = train[["image_id", *columns]].rename(columns={"image_id": "id"})
    folds.insert(1, "fold", fold_of())
    folds.insert(2, "group", train.get("patient", ""))
    folds.insert(3, "duplicate_group", "")
    folds.to_csv(root / "folds.csv", index=False, lineterminator="\n")
    return root


def fold_of() -> np.ndarray:
    return np.arange(NUM_TRAIN) // 12 % NUM_FOLDS


def truth(root: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Targets of the training and of the test rows, and their names."""
    facts = submit.load_competition(root / "competition.yaml")
    tables = [pd.read_csv(root / "data" / f"{name}.csv", dtype=str) for name in ("train", "solution")]
    decoded = submit.competition.decode_targets(pd.concat(tables), facts)
    return decoded.values[:NUM_TRAIN], decoded.values[NUM_TRAIN:], decoded.names


def add_run(root: Path, run: str, seed: int, noise: float = 0.7, limit: int = 0, change=lambda values: values) -> Path:
    """A finished run with errors of its own. The files' rows are shuffled by the seed, their columns in reverse."""
    task = submit.load_competition(root / "competition.yaml").task
    train, test, names = truth(root)
    folder, generator = root / "runs" / run, np.random.default_rng(seed)
    stamps = {"fold_stamp": file_sha256(root / "folds.csv"), "config_hash": run, "task": task, "tta": "none"}
    for fold in range(NUM_FOLDS):
        valid = fold_of() == fold
        for rows, ids, values in (("oof", TRAIN_IDS[valid], train[valid]), ("test", TEST_IDS, test)):
            values = values + generator.normal(0, noise, values.shape)
            if task != "regression":
                values = 1 / (1 + np.exp(-3 * (values - 0.5)))
            if task == "multiclass":
                values = values / values.sum(axis=1, keepdims=True)
            order = generator.permutation(len(ids))
            write_predictions(
                folder / f"fold{fold}" / f"{rows}.parquet",
                Predictions(ids[order], change(values)[order][:, ::-1].astype(np.float32), names[::-1], stamps),
            )
        facts = {"run": run, "trained_without_fold": fold}
        write_manifest(folder / f"fold{fold}", facts, ["oof.parquet", "test.parquet"])
    (folder / "config.yaml").write_text(f"limit: {limit}\n")
    return folder


def add_two(root: Path, noise: float = 0.7) -> Path:
    add_run(root, "a", seed=1, noise=noise)
    add_run(root, "b", seed=2, noise=noise)
    return root


@pytest.fixture
def root(tmp_path):
    return add_two(make_root(tmp_path / "repository"))


def result(root: Path, name: str = "stack", rows: str = "oof") -> pd.DataFrame:
    """All rows of the result's files, as predictions by id."""
    parts = [pd.read_parquet(root / "runs" / name / f"fold{fold}" / f"{rows}.parquet") for fold in range(NUM_FOLDS)]
    return pd.concat(parts)


def score_of(root: Path, name: str = "stack") -> float:
    task = submit.load_competition(root / "competition.yaml").task
    train, _, names = truth(root)
    values = result(root, name).set_index("id").loc[TRAIN_IDS, [f"p_{column}" for column in names]].to_numpy()
    return resolve_metric(METRIC_OF[task], task).function(train, values)


def read_bytes(root: Path, name: str = "stack") -> dict[str, bytes]:
    """The result's files, without times."""
    folder = root / "runs" / name
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json" and not path.name.startswith(".")
    }


# What comes out


@pytest.mark.parametrize("task", CELLS)
def test_each_task_gives_a_run_that_has_each_id_once_and_can_be_submitted(task, tmp_path, capsys):
    root = add_two(make_root(tmp_path / "r", task))
    stack.main(root=root)
    output = capsys.readouterr().out
    assert "next: python submit.py --run stack" in output
    oof = result(root)
    assert sorted(oof["id"]) == sorted(TRAIN_IDS)
    assert dict(zip(oof["id"], oof["fold"], strict=True)) == dict(zip(TRAIN_IDS, fold_of(), strict=True))
    for fold in range(NUM_FOLDS):
        test = pd.read_parquet(root / "runs" / "stack" / f"fold{fold}" / "test.parquet")
        assert sorted(test["id"]) == sorted(TEST_IDS)
    better = resolve_metric(METRIC_OF[task], task).better
    assert better(
        score_of(root), min(score_of(root, "a"), score_of(root, "b"), key=lambda s: -s if task == "regression" else s)
    )
    submit.main(run="stack", root=root)
    output = capsys.readouterr().out
    assert f"run stack, out of fold: {METRIC_OF[task]} {score_of(root):.5f}" in output
    assert len(re.findall(rf"solution.csv: {METRIC_OF[task]} \d\.\d+, 95% interval", output)) == 2
    assert "the best single run, " in output


def test_the_mean_of_two_runs_is_their_mean_row_by_row(root):
    stack.main(method="mean", root=root)
    for rows in ("oof", "test"):
        for fold in range(NUM_FOLDS):
            a, b, mean = (
                pd.read_parquet(root / "runs" / run / f"fold{fold}" / f"{rows}.parquet").set_index("id")
                for run in ("a", "b", "stack")
            )
            columns = [name for name in mean if name.startswith("p_")]
            expected = (a.loc[mean.index, columns] + b.loc[mean.index, columns]) / 2
            np.testing.assert_allclose(mean[columns], expected, atol=1e-6)


def test_test_predictions_come_from_the_folds_own_models_not_from_their_mean(root):
    stack.main(method="mean", root=root)
    folders = [root / "runs" / "stack" / f"fold{fold}" for fold in range(NUM_FOLDS)]
    tests = [pd.read_parquet(folder / "test.parquet").set_index("id").loc[TEST_IDS].to_numpy() for folder in folders]
    assert not np.allclose(tests[0], tests[1])


def test_shuffled_rows_in_a_runs_files_change_nothing(root):
    stack.main(root=root)
    before = read_bytes(root)
    stamp = file_sha256(root / "folds.csv")
    for path in (root / "runs" / "b").rglob("*.parquet"):
        found = read_predictions(path, stamp)
        order = np.random.default_rng(5).permutation(len(found.ids))
        names = tuple(sorted(found.names))
        columns = [found.names.index(name) for name in names]
        values = found.values[order][:, columns]
        write_predictions(path, Predictions(found.ids[order], values, names, found.stamps))
        facts = {"run": "b", "trained_without_fold": int(path.parent.name[4:])}
        write_manifest(path.parent, facts, ["oof.parquet", "test.parquet"])
    stack.main(root=root, overwrite=True)
    after = read_bytes(root)
    assert before.keys() == after.keys()
    compared = [name for name in before if not name.endswith(".parquet")]
    assert [name for name in compared if before[name] != after[name]] == []
    for name in before.keys() - set(compared):  # their stamps name the inputs' bytes
        old, new = read_values(before[name]), read_values(after[name])
        pd.testing.assert_frame_equal(old, new)


def read_values(content: bytes) -> pd.DataFrame:
    return pd.read_parquet(io.BytesIO(content))


def test_the_out_of_fold_rows_of_a_fold_do_not_change_with_its_own_targets(tmp_path, with_trees):
    kept = []
    for flip in (False, True):
        root = add_two(make_root(tmp_path / str(flip), "binary"))
        if flip:
            flip_targets(root, fold=1)
        stack.main(method="lightgbm", root=root)
        kept.append(pd.read_parquet(root / "runs" / "stack" / "fold1" / "oof.parquet"))
        kept.append(pd.read_parquet(root / "runs" / "stack" / "fold0" / "oof.parquet"))
    pd.testing.assert_frame_equal(kept[0], kept[2])
    assert not kept[1].equals(kept[3])


def flip_targets(root: Path, fold: int) -> None:
    """Other labels for the rows of one fold, in all tables; the runs' files stay, but for the stamp."""
    for name, key in (("folds.csv", "id"), ("data/train.csv", "image_id")):
        table = pd.read_csv(root / name, dtype=str, keep_default_na=False)
        mine = table[key].isin(TRAIN_IDS[fold_of() == fold])
        table.loc[mine, "label"] = table.loc[mine, "label"].map({"no": "yes", "yes": "no"})
        table.to_csv(root / name, index=False, lineterminator="\n")
    for path in (root / "runs").rglob("*.parquet"):
        found = pd.read_parquet(path)
        names = tuple(name[2:] for name in found if name.startswith("p_"))
        stamps = {"fold_stamp": file_sha256(root / "folds.csv"), "config_hash": "x", "task": "binary", "tta": "none"}
        values = found[[f"p_{name}" for name in names]].to_numpy()
        write_predictions(path, Predictions(found["id"].to_numpy(object), values, names, stamps))
        facts = {"run": path.parents[1].name, "trained_without_fold": int(path.parent.name[4:])}
        write_manifest(path.parent, facts, ["oof.parquet", "test.parquet"])


def test_runs_of_random_predictions_score_as_chance_by_every_method(tmp_path, every_method):
    root = make_root(tmp_path / "r", "binary")
    for seed in range(4):
        generator = np.random.default_rng(100 + seed)
        add_run(root, f"r{seed}", seed, change=lambda values, g=generator: g.random(values.shape))
    stack.main(root=root)
    table = pd.read_csv(root / "runs" / "stack" / "blend.csv").set_index("name")
    assert set(nested.METHODS) <= set(table.index)
    assert (abs(table["nested"] - 0.5) < 0.2).all()  # 3.8 standard errors of an AUC of 60 against 60 rows
    assert abs(score_of(root) - 0.5) < 0.2


def test_the_ledger_tables_and_manifests_say_what_was_done(root):
    stack.main(method="mean", root=root)
    (row,) = read_ledger(root / "runs" / "ledger.csv")
    assert row["config_difference"] == "stack of a b: method=mean"
    assert float(row["oof"]) == pytest.approx(score_of(root), abs=1e-5)
    manifest = json.loads((root / "runs" / "stack" / "fold1" / "manifest.json").read_text())
    assert (manifest["trained_without_fold"], manifest["fitted_on_oof"], manifest["stack_of"]) == (
        None,
        True,
        ["a", "b"],
    )
    stamps = read_predictions(root / "runs/stack/fold1/oof.parquet", manifest["fold_stamp"]).stamps
    assert {key: stamps[key] for key in ("config_hash", "weights_sha256", "task", "tta")} == {
        "config_hash": manifest["config_hash"],
        "weights_sha256": manifest["weights_sha256"],
        "task": "multiclass",
        "tta": "-",
    }
    correlation = pd.read_csv(root / "runs" / "stack" / "correlation.csv", index_col="run")
    assert correlation.shape == (2, 2)
    assert correlation.loc["a", "a"] == 1
    assert correlation.loc["a", "b"] == correlation.loc["b", "a"] < 1
    blend = pd.read_csv(root / "runs" / "stack" / "blend.csv")
    assert blend["name"].tolist() == ["a", "b", "mean", "simplex"]


def test_a_stack_can_be_stacked_but_never_stands_on_itself(root, capsys):
    stack.main(runs=["a", "b"], name="first", root=root)
    add_run(root, "c", seed=3)
    stack.main(runs=["first", "c"], name="second", method="mean", root=root)
    assert score_of(root, "second") > score_of(root, "c") - 0.05
    workspace = Workspace(root)
    assert artifacts.runs_within(workspace, "second") == ["second", "first", "c", "a", "b"]
    with pytest.raises(UserError, match="second stands on first"):
        stack.main(runs=["second", "a"], name="first", root=root)
    capsys.readouterr()
    stack.main(root=root)
    assert artifacts.stack_of(workspace, "stack") == ("a", "b", "c")  # stacks are not taken by themselves


def test_on_a_stack_that_was_fitted_only_what_is_not_fitted_may_stand(root, capsys):
    """Its rows know the targets of every fold but their own: measured with fits on top, an AUC of 0.57 by chance."""
    stack.main(runs=["a", "b"], name="fitted", method="simplex", root=root)
    stack.main(runs=["a", "b"], name="plain", method="mean", root=root)
    capsys.readouterr()
    stack.main(runs=["fitted", "a"], name="second", root=root)
    output = capsys.readouterr().out
    assert "fitted: fitted on out-of-fold rows already" in output
    table = pd.read_csv(root / "runs" / "second" / "blend.csv")
    assert table["name"].tolist() == ["fitted", "a", "mean"]
    for runs in (["fitted", "a"], ["second", "b"]):
        with pytest.raises(UserError, match="--method simplex: does not fit .*choose auto, best_single, mean$"):
            stack.main(runs=runs, name="third", method="simplex", root=root)
    stack.main(runs=["plain", "a"], name="third", method="simplex", root=root)


def test_a_run_whose_epochs_were_chosen_on_its_rows_is_called_optimistic_and_is_no_best_single(root, capsys):
    add_run(root, "chosen", seed=5, noise=0.01)
    for fold in range(NUM_FOLDS):
        folder = root / "runs" / "chosen" / f"fold{fold}"
        artifacts.save_manifest(folder, {**artifacts.read_manifest(folder), "kind": "best"})
    stack.main(runs=["a", "chosen"], method="best_single", root=root)
    output = capsys.readouterr().out
    assert "run chosen: its score is optimistic" in output
    table = pd.read_csv(root / "runs" / "stack" / "blend.csv").set_index("name")
    assert np.isnan(table["nested"]["chosen"])
    assert table["optimistic"]["chosen"] > table["nested"]["a"]
    assert score_of(root, "stack") == pytest.approx(score_of(root, "a"))
    submit.main(root=root)
    assert "run chosen is left out: its score is optimistic" in capsys.readouterr().out
    submit.main(run="chosen", root=root)
    assert "its score is optimistic" in capsys.readouterr().out


def test_a_stack_of_predictions_that_were_made_again_is_refused_as_stale(root):
    stack.main(runs=["a", "b"], method="mean", root=root)
    add_run(root, "b", seed=9)
    with pytest.raises(UserError, match=r"run stack: run b, fold 0, oof\.parquet is another one since"):
        submit.main(run="stack", root=root)
    stack.main(runs=["a", "b"], method="mean", root=root)
    submit.main(run="stack", root=root)


# Which runs


def test_trial_runs_and_rejected_rounds_are_left_out_by_name_unless_asked_for(root, capsys):
    add_run(root, "trial", seed=3, limit=60)
    for run, kept in (("a-p1", True), ("a-p2", False)):
        add_run(root, run, seed=4)
        (root / "runs" / run / "round.json").write_text(json.dumps({"kept": kept}))
    stack.main(method="mean", root=root)
    output = capsys.readouterr().out
    assert "run trial is left out: a trial run on 60 rows" in output
    assert "run a-p2 is left out: its round of pseudo-labels gained nothing" in output
    assert artifacts.stack_of(Workspace(root), "stack") == ("a", "a-p1", "b")
    stack.main(runs=["a", "a-p2"], name="asked", method="mean", root=root)
    with pytest.raises(UserError, match="--runs trial: a trial run on 60 rows"):
        stack.main(runs=["a", "trial"], name="asked", root=root)


@pytest.mark.parametrize(
    ("runs", "name", "message"),
    [
        (["a", "a"], "stack", "a is named twice"),
        (["a", "typo"], "stack", "'typo': no such run"),
        (["a"], "b", "a trained run has this name"),
        (["a"], "../b", "run name"),
        (["../runs/a", "b"], "stack", "run name"),
    ],
)
def test_runs_and_names_that_cannot_be_are_refused(root, runs, name, message):
    with pytest.raises(UserError, match=message):
        stack.main(runs=runs, name=name, root=root)


@pytest.mark.parametrize(
    ("wish", "message"), [({"method": "magic"}, "--method magic: unknown"), ({"features": ["x"]}, "--features x")]
)
def test_unknown_methods_and_features_are_refused(root, wish, message):
    with pytest.raises(UserError, match=message):
        stack.main(root=root, **wish)


@pytest.mark.parametrize("rows", ["oof", "test"])
def test_changed_bytes_are_refused_by_name(root, rows):
    path = root / "runs" / "b" / "fold1" / f"{rows}.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"b.fold1.{rows}.parquet: damaged or changed"):
        stack.main(runs=["a", "b"], root=root)
    assert not (root / "runs" / "stack" / "fold0" / "manifest.json").exists()


def test_out_of_fold_rows_of_other_folds_are_refused_by_name(root):
    path = root / "runs" / "b" / "fold2" / "oof.parquet"
    found = read_predictions(path, file_sha256(root / "folds.csv"))
    write_predictions(path, Predictions(found.ids, found.values, found.names, {**found.stamps, "fold_stamp": "stale"}))
    write_manifest(path.parent, {"run": "b", "trained_without_fold": 2}, ["oof.parquet", "test.parquet"])
    with pytest.raises(UserError, match=r"b.fold2.oof.parquet: made with other folds"):
        stack.main(runs=["a", "b"], root=root)


def test_a_run_whose_model_saw_the_fold_is_refused(root):
    folder = root / "runs" / "b" / "fold2"
    write_manifest(folder, {"run": "b", "trained_without_fold": 1}, ["oof.parquet", "test.parquet"])
    with pytest.raises(UserError, match="fold2"):
        stack.main(runs=["a", "b"], root=root)


# Once more


def test_run_again_it_does_nothing_and_after_a_change_it_says_what_changed(root, capsys):
    stack.main(root=root)
    before = {path: path.stat().st_mtime_ns for path in (root / "runs" / "stack").rglob("*.parquet")}
    capsys.readouterr()
    stack.main(root=root)
    done = (
        "stack stack: done before, of the same runs (--overwrite makes it again)\nnext: python submit.py --run stack\n"
    )
    assert capsys.readouterr().out == done
    assert before == {path: path.stat().st_mtime_ns for path in before}
    add_run(root, "b", seed=9)
    stack.main(root=root)
    output = capsys.readouterr().out
    assert "made again, because these changed: run b, fold 0, oof.parquet, run b, fold 0, test.parquet" in output
    stack.main(method="mean", root=root)
    assert "because these changed: method\n" in capsys.readouterr().out
    assert artifacts.stack_of(Workspace(root), "stack") == ("a", "b")


def test_overwrite_gives_the_same_bytes(root):
    stack.main(root=root)
    before = read_bytes(root)
    stack.main(root=root, overwrite=True)
    assert read_bytes(root) == before


@pytest.mark.parametrize("file_name", ["fold0/test.parquet", "tuned.json"])
def test_a_damaged_result_is_named_and_overwrite_mends_it(root, file_name):
    stack.main(root=root)
    (root / "runs" / "stack" / file_name).write_bytes(b"{}")
    with pytest.raises(UserError, match=Path(file_name).name):
        stack.main(root=root)
    with pytest.raises(UserError, match=Path(file_name).name):
        submit.main(run="stack", root=root)
    stack.main(root=root, overwrite=True)
    submit.main(run="stack", root=root)


def test_a_kill_before_the_last_manifest_leaves_it_undone(root, monkeypatch, capsys):
    stack.main(root=root)
    write_fold = stack_files.write_fold

    def killed(this, part, minutes):
        if part.number == 2:
            raise KeyboardInterrupt
        write_fold(this, part, minutes)

    with monkeypatch.context() as patch:
        patch.setattr(stack_files, "write_fold", killed)
        with pytest.raises(KeyboardInterrupt):
            stack.main(method="simplex", root=root)
    with pytest.raises(UserError, match="this stack was not finished: run stack.py --name stack --runs a b"):
        submit.main(run="stack", root=root)
    submit.main(root=root)
    assert "run stack is left out: this stack was not finished" in capsys.readouterr().out
    stack.main(method="mean", root=root)
    submit.main(run="stack", root=root)


def test_two_at_once_are_refused(root):
    with locked(root / "runs" / "stack" / "fold1"), pytest.raises(UserError, match="in use by process"):
        stack.main(root=root)


# Methods and features


def test_a_method_that_is_asked_for_is_taken_and_the_choice_still_shown(root, capsys):
    stack.main(root=root)
    by_itself = StackSettings(**submit_yaml(root)).method
    other = "simplex" if by_itself == "mean" else "mean"
    capsys.readouterr()
    stack.main(method=other, root=root)
    assert f"{other} is taken, as asked for; by itself it would be {by_itself}" in capsys.readouterr().out
    assert submit_yaml(root)["method"] == other


def submit_yaml(root: Path) -> dict:
    return artifacts.read_yaml(root / "runs" / "stack" / "config.yaml")


@pytest.mark.parametrize(
    ("task", "names"), [("binary", ["lightgbm.txt"]), ("multilabel", ["lightgbm_0.txt", "lightgbm_1.txt"])]
)
def test_the_trees_are_kept_though_another_method_is_chosen_and_read_back(task, names, tmp_path, with_trees):
    root = add_two(make_root(tmp_path / "r", task))
    stack.main(method="mean", root=root)
    folder = root / "runs" / "stack"
    for fold in range(NUM_FOLDS):
        manifest = json.loads((folder / f"fold{fold}" / "manifest.json").read_text())
        assert {*names, "feature_map.csv"} <= set(manifest["files"])
        features = pd.read_csv(folder / f"fold{fold}" / "feature_map.csv")
        for name in names:
            booster = lightgbm.Booster(model_file=str(folder / f"fold{fold}" / name))
            assert booster.feature_name() == features["feature"].tolist()
        assert any(text.startswith("a ") for text in features["name"])
    assert (folder / "importance.png").read_bytes().startswith(b"\x89PNG")
    importance = pd.read_csv(folder / "importance.csv")
    assert set(importance["name"]) == set(features["name"])


def test_groups_and_metadata_reach_the_trees(tmp_path, with_trees):
    root = add_two(
        make_root(
            tmp_path / "r",
            "binary",
            extra=lambda number: {"age": number % 2 * 30 + number % 5, "patient": f"p{number // 12}"},
        ),
        noise=3.0,
    )
    stack.main(method="lightgbm", root=root)
    names = pd.read_csv(root / "runs" / "stack" / "importance.csv")["name"].tolist()
    assert names[0] == "metadata_age"  # it gives the label away
    assert any("group" in name for name in names)
    assert score_of(root) > 0.95
    stack.main(method="lightgbm", features=["oof"], name="without", root=root)
    assert score_of(root, "without") < 0.9
    names = pd.read_csv(root / "runs" / "without" / "importance.csv")["name"]
    assert not names.str.contains("group|metadata|image").any()


def test_embeddings_are_used_when_their_file_is_given(root, with_trees):
    ids = [*TRAIN_IDS, *TEST_IDS]
    values = np.random.default_rng(0).normal(size=(len(ids), 3))
    table = pd.DataFrame({"id": ids, **{f"e{place}": values[:, place].astype(np.float32) for place in range(3)}})
    table.to_parquet(root / "own.parquet")
    stack.main(method="lightgbm", embeddings=root / "own.parquet", root=root)
    names = pd.read_csv(root / "runs" / "stack" / "fold0" / "feature_map.csv")["name"]
    assert names.str.contains("embedding").any()
    with pytest.raises(UserError, match=r"embeddings.parquet: no such file"):
        stack.main(name="other", features=["embeddings"], root=root)


def test_image_statistics_are_read_once(root, monkeypatch, with_trees):
    for folder, ids in (("train_images", TRAIN_IDS), ("test_images", TEST_IDS)):
        (root / "data" / folder).mkdir()
        for place, image_id in enumerate(ids):
            picture = np.full((6, 5, 3), place, np.uint8)
            cv2.imwrite(str(root / "data" / folder / f"{image_id}.png"), picture)
    stack.main(method="mean", root=root)
    names = pd.read_csv(root / "runs" / "stack" / "fold0" / "feature_map.csv")["name"]
    assert names.str.contains("image_width").any()
    before = read_bytes(root)
    cv2.imwrite(str(root / "data" / "train_images" / "t000.png"), np.zeros((9, 9, 3), np.uint8))
    measured = []
    monkeypatch.setattr(
        stack_inputs, "image_statistics", lambda paths, title: measured.append(paths) or real(paths, title)
    )
    stack.main(method="mean", root=root, overwrite=True)
    assert [[path.name for path in paths] for paths in measured] == [["t000.png"]]
    assert read_bytes(root)["fold0/oof.parquet"] == before["fold0/oof.parquet"]


real = stack_inputs.image_statistics


# Tuning, and what follows


def test_thresholds_are_fitted_stored_and_applied_by_submit(tmp_path, capsys):
    root = make_root(tmp_path / "r", "binary", "accuracy")
    add_run(root, "shy", seed=1, noise=0.3, change=lambda values: values * 0.4)
    stack.main(method="best_single", root=root)
    assert "beyond noise, adopted" in capsys.readouterr().out
    tuned = read_tuned((root / "runs" / "stack" / "tuned.json").read_text(), "tuned.json")
    assert 0 < tuned.tuning.thresholds[0] < 0.4
    submit.main(run="stack", root=root)
    output = capsys.readouterr().out
    assert f"tuning by thresholds, nested: accuracy {tuned.nested:.5f}" in output
    hidden = [float(found) for found in re.findall(r"solution.csv: accuracy (\S+),", output)]
    assert hidden[0] > 0.8  # tuned
    assert hidden[1] == 0.5  # the single run says "no" to everything
    assert pd.read_csv(root / "submission.csv", dtype=str)["label"].nunique() == 2


def test_submit_prefers_a_single_run_where_the_stack_is_within_noise(tmp_path, capsys, all_resamples):
    root = make_root(tmp_path / "r")
    add_run(root, "a", seed=1, noise=0.3)
    add_run(root, "b", seed=2, noise=0.3)
    stack.main(method="mean", root=root)
    capsys.readouterr()
    submit.main(root=root)
    output = capsys.readouterr().out
    assert re.search(
        r"run [ab] is chosen; minus stack -?\+?0.*within noise, and fewer models are simpler \(1 against 2", output
    )


def test_submit_takes_a_stack_that_is_better_beyond_noise(tmp_path, capsys):
    root = make_root(tmp_path / "r", "regression")
    for seed in range(6):
        add_run(root, f"r{seed}", seed, noise=2.0)
    stack.main(method="mean", root=root)
    capsys.readouterr()
    submit.main(root=root)
    output = capsys.readouterr().out
    assert "run stack is chosen" in output
    scores = [float(found) for found in re.findall(r"solution.csv: rmse (\S+),", output)]
    assert scores[0] < scores[1]


def test_stages_that_need_a_model_refuse_a_stack_in_one_line(root):
    stack.main(method="mean", root=root)
    with pytest.raises(UserError, match="run stack: a stack"):
        artifacts.refuse_stack(Workspace(root), "stack")
    artifacts.refuse_stack(Workspace(root), "a")
    with pytest.raises(UserError, match="run stack: a stack"):
        submit.main(run="stack", all_data=True, root=root)
