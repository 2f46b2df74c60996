"""pseudo_label.py: each fold's student has that fold's own teachers, a round counts only beyond noise, a kill costs
nothing. Training is stood in for by functions that write what train.py and predict.py write; the last test is real."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_pipeline import prepare

import predict
import pseudo_label
import train
from kfold import artifacts, intervals
from kfold.artifacts import ALL_DATA, Workspace
from kfold.config import load_competition, load_config, settings_hash
from kfold.data.folds import read_folds
from kfold.ensemble.pseudo_files import read_pseudo, read_teachers, teacher_facts
from kfold.errors import UserError
from kfold.files import file_sha256
from kfold.predictions import Predictions, write_predictions

CLASSES = ("cat", "dog", "elk")
NUM_TRAIN, NUM_TEST, NUM_FOLDS = 90, 40, 3
TRAIN_IDS = [f"train{number:03}" for number in range(NUM_TRAIN)]
TEST_IDS = np.array([f"test{number:03}" for number in range(NUM_TEST)], object)
LABELS = np.arange(NUM_TRAIN) % 3
FOLD = np.arange(NUM_TRAIN) // 3 % NUM_FOLDS


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A competition with a finished run; train.main and predict.main write results of the accuracy in QUALITY."""
    (tmp_path / "data").mkdir()
    train_table = pd.DataFrame({"image_id": TRAIN_IDS, "label": [CLASSES[label] for label in LABELS]})
    train_table.to_csv(tmp_path / "data" / "train.csv", index=False)
    pd.DataFrame({"image_id": TEST_IDS}).to_csv(tmp_path / "data" / "test.csv", index=False)
    frozen = pd.DataFrame({"id": TRAIN_IDS, "fold": FOLD, "group": "", "duplicate_group": ""})
    frozen.assign(label=train_table["label"]).to_csv(tmp_path / "folds.csv", index=False)
    (tmp_path / "competition.yaml").write_text(
        "project_name: Test\ntask: multiclass\nmetric: accuracy\ntarget_columns: [label]\nnum_folds: 3\n"
    )
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "baseline.yaml").write_text("epochs: 3\n")
    monkeypatch.setattr(intervals, "NUM_RESAMPLES_AT_MOST", 20)  # of the bootstrap, for speed
    monkeypatch.setattr(train, "main", fake_train)
    monkeypatch.setattr(predict, "main", fake_predict)
    monkeypatch.setattr(sys.modules[__name__], "QUALITY", {"baseline": 0.5, "baseline-p1": 0.9, "baseline-p2": 0.9})
    make_run(tmp_path, "baseline")
    return tmp_path


QUALITY: dict[str, float] = {}  # share of the validation rows that a run has right


def make_run(root: Path, run: str, **manifest) -> None:
    fake_train(config_path=root / "configs" / "baseline.yaml", name=run, root=root)
    fake_predict(run=run, root=root)
    for fold in range(NUM_FOLDS):
        change_manifest(root, run, fold, **manifest)


def change_manifest(root: Path, run: str, fold: int, **changes) -> None:
    folder = root / "runs" / run / f"fold{fold}"
    artifacts.save_manifest(folder, {**artifacts.read_manifest(folder), **changes})


def fake_train(fold="all", config_path=None, overrides=(), name="", overwrite=False, root=None, **_) -> None:
    """Weights are the name of run and fold; with pseudo_from it reads pseudo.parquet, as train.py does."""
    workspace = Workspace(root)
    facts, config = load_competition(workspace.competition_path), load_config(config_path, overrides)
    folds = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    artifacts.register_run(workspace, name, facts, config, range(NUM_FOLDS), overwrite)
    for number in range(NUM_FOLDS):
        if artifacts.is_done(workspace, name, number, folds.stamp):
            continue
        names = ["last.safetensors", "oof.parquet"]
        if config.pseudo_from:
            read_own_pseudo(root, name, number)
            names.append("pseudo.parquet")
        folder = workspace.fold_dir(name, number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "last.safetensors").write_text(f"{name} {number} {config.epochs}")
        valid = folds.fold == number
        right = np.random.default_rng(number).random(valid.sum()) < QUALITY[name]
        values = np.eye(3, dtype=np.float32)[np.where(right, LABELS[valid], (LABELS[valid] + 1) % 3)]
        stamps = {
            "fold_stamp": folds.stamp,
            "config_hash": settings_hash(config),
            "weights_sha256": file_sha256(folder / "last.safetensors"),
            "task": "multiclass",
            "tta": "none",
        }
        oof = Predictions(folds.ids[valid], values, CLASSES, stamps, folds.fold[valid])
        write_predictions(folder / "oof.parquet", oof)
        artifacts.write_manifest(folder, {"run": name, "trained_without_fold": number, **stamps}, names)


def fake_predict(run="", weights="", tta="", root=None) -> None:
    """Row t is surely of class (t + fold) % 3 where t is even, and unsure else."""
    for number in range(NUM_FOLDS):
        folder = root / "runs" / run / f"fold{number}"
        manifest = artifacts.read_manifest(folder)
        values = np.full((NUM_TEST, 3), 0.05, np.float32)
        values[np.arange(NUM_TEST), (np.arange(NUM_TEST) + number) % 3] = 0.9
        values[1::2] = 1 / 3
        stamps = {key: value for key, value in manifest.items() if isinstance(value, str)}
        write_predictions(folder / "test.parquet", Predictions(TEST_IDS, values, CLASSES, stamps))
        files = manifest.pop("files")
        facts = {**manifest, "predicted": {"tta": "flips", "weights": "last"}, "unreadable_test_ids": []}
        artifacts.write_manifest(folder, facts, ["test.parquet"], files)


def read_own_pseudo(root: Path, run: str, fold: int):
    workspace = Workspace(root)
    facts = load_competition(workspace.competition_path)
    folds = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    config = load_config(workspace.run_config_path(run))
    by_run = read_teachers(workspace, config.pseudo_from, fold, NUM_FOLDS, folds.stamp)
    teachers = [teacher_facts(model) for models in by_run.values() for model in models]
    path = workspace.pseudo_path(run, fold)
    return read_pseudo(path, fold, folds.stamp, "multiclass", CLASSES, teachers, TEST_IDS, folds.ids)


def content(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and "runs" in path.parts}


def verdict_of(root: Path, run: str) -> dict:
    return json.loads((root / "runs" / run / "round.json").read_text())


def manifest_of(root: Path, run: str, fold: int) -> dict:
    return json.loads((root / "runs" / run / f"fold{fold}" / "manifest.json").read_text())


# Labels


def test_each_fold_learns_from_its_own_teacher_and_the_origin_of_each_row_is_kept(root):
    pseudo_label.main(root=root)
    for fold in range(NUM_FOLDS):
        table = pd.read_parquet(root / "runs" / "baseline-p1" / f"fold{fold}" / "pseudo.parquet")
        assert set(table["teacher_fold"]) == {fold}
        assert set(table["teacher_run"]) == {"baseline"}
        assert set(table["teacher_weights_sha256"]) == {manifest_of(root, "baseline", fold)["weights_sha256"]}
        rows = read_own_pseudo(root, "baseline-p1", fold)
        assert list(rows.ids) == list(TEST_IDS[::2])
        assert list(rows.targets.argmax(axis=1)) == [(int(name[4:]) + fold) % 3 for name in rows.ids]


def test_the_full_fit_learns_from_the_mean_of_all_folds(root):
    pseudo_label.main(overrides=["pseudo_threshold=0.3", "pseudo_targets=soft"], root=root)
    rows = read_own_pseudo(root, "baseline-p1", ALL_DATA)
    assert list(rows.ids) == list(TEST_IDS)
    np.testing.assert_allclose(rows.targets, 1 / 3, atol=1e-6)  # the three folds contradict each other


def test_several_teachers_label_with_their_mean(root):
    QUALITY["second"] = 0.5
    make_run(root, "second")
    for fold in range(NUM_FOLDS):
        path = root / "runs" / "second" / f"fold{fold}" / "test.parquet"
        predictions = artifacts.read_predictions(path, manifest_of(root, "second", fold)["fold_stamp"])
        values = np.full((NUM_TEST, 3), 0.3, np.float32)
        values[:, 0] = 0.4
        write_predictions(path, Predictions(TEST_IDS, values, CLASSES, predictions.stamps))
        manifest = manifest_of(root, "second", fold)
        artifacts.write_manifest(path.parent, manifest, list(manifest.pop("files")))
    pseudo_label.main(["baseline", "second"], overrides=["pseudo_threshold=0.61", "pseudo_targets=soft"], root=root)
    rows = read_own_pseudo(root, "baseline-p1", 0)
    assert list(rows.ids) == [name for name in TEST_IDS[::2] if int(name[4:]) % 3 == 0]
    np.testing.assert_allclose(rows.targets, [[0.65, 0.175, 0.175]] * len(rows.ids), atol=1e-6)


def test_unreadable_test_images_and_ids_of_training_rows_are_never_taken(root):
    change_manifest(root, "baseline", 1, unreadable_test_ids=["test002"])
    for name in ("train.csv", "../folds.csv"):
        path = root / "data" / name
        path.write_text(path.read_text().replace("train089", "test000"))
    shutil.rmtree(root / "runs")
    make_run(root, "baseline")
    change_manifest(root, "baseline", 1, unreadable_test_ids=["test002"])
    pseudo_label.main(root=root)
    taken = [set(read_own_pseudo(root, "baseline-p1", fold).ids) for fold in range(NUM_FOLDS)]
    assert all("test000" not in ids for ids in taken)
    assert ["test002" in ids for ids in taken] == [True, False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trained_without_fold": None}, "was trained on all rows, so it saw fold 1"),
        ({"trained_without_fold": 0}, "was trained without fold 0, so it saw fold 1"),
        ({"fitted_on_oof": True}, "name the runs that it is made of"),
        ({"fold_stamp": "0" * 64}, "trained on other folds"),
    ],
)
def test_an_unsafe_teacher_is_refused_before_anything_is_written(root, changes, message):
    change_manifest(root, "baseline", 1, **changes)
    before = content(root)
    with pytest.raises(UserError, match=f"run baseline, fold 1: unsafe teacher.*{message}"):
        pseudo_label.main(root=root)
    assert content(root) == before


def test_nothing_sure_enough_ends_the_loop_with_a_remedy_and_leaves_the_run_current(root, capsys):
    before = content(root)
    pseudo_label.main(overrides=["pseudo_threshold=0.95"], root=root)
    output = capsys.readouterr().out
    assert "no test row is sure enough in fold 0, 1, 2: the loop stops; lower the threshold" in output
    assert "current run: baseline\n" in output
    assert content(root) == before


# Rounds


def test_a_round_that_gains_teaches_the_next_and_one_within_noise_stops_the_loop(root, capsys):
    pseudo_label.main(rounds=3, thresholds=[0.9, 0.8], overrides=["cooldown_epochs=1"], root=root)
    output = capsys.readouterr().out
    assert "beyond noise: kept" in output
    assert "within noise: rejected, baseline-p1 stays the current run" in output
    assert "current run: baseline-p1\nnext: python submit.py --run baseline-p1\n" in output
    first, second = (verdict_of(root, f"baseline-p{number}") for number in (1, 2))
    assert (first["kept"], second["kept"]) == (True, False)
    assert (first["teachers"], second["teachers"]) == (["baseline"], ["baseline-p1"])
    assert (first["threshold"], second["threshold"]) == (0.9, 0.8)
    assert (first["after"], second["difference"]) == (second["before"], 0)
    assert first["low"] > 0
    assert set(first["rows_per_class"]) == set(CLASSES)
    assert [sum(counts) for counts in zip(*first["rows_per_class"].values(), strict=True)] == [20, 20, 20]
    assert not (root / "runs" / "baseline-p3").exists()
    config = load_config(root / "runs" / "baseline-p2" / "config.yaml")
    assert config.pseudo_from == ("baseline-p1",)
    assert (config.epochs, config.cooldown_epochs) == (3, 1)


def test_a_worse_student_is_rejected(root, capsys):
    QUALITY["baseline-p1"] = 0.1
    pseudo_label.main(rounds=2, root=root)
    assert "beyond noise: rejected, baseline stays the current run" in capsys.readouterr().out
    assert verdict_of(root, "baseline-p1")["high"] < 0


def test_the_other_teachers_stay(root):
    QUALITY["second"] = 0.5
    make_run(root, "second")
    pseudo_label.main(["baseline", "second"], rounds=2, overrides=["pseudo_threshold=0.5"], root=root)
    assert verdict_of(root, "baseline-p2")["teachers"] == ["baseline-p1", "second"]


def test_rounds_that_are_judged_say_so_and_change_no_byte(root, capsys):
    pseudo_label.main(rounds=2, root=root)
    before = content(root)
    pseudo_label.main(rounds=2, root=root)
    assert capsys.readouterr().out.count("done before") == 2
    assert content(root) == before
    pseudo_label.main(rounds=3, root=root)  # a rejected round ends the loop for good
    assert content(root) == before


def test_a_dry_run_counts_and_writes_nothing(root, capsys):
    before = content(root)
    pseudo_label.main(dry_run=True, root=root)
    output = capsys.readouterr().out
    assert content(root) == before
    lines = [line.split() for line in output.splitlines()]
    assert ["cat", "6", "to", "7"] in lines
    assert ["0", "20", "50.0%", "0.900"] in lines


def test_a_kill_while_a_student_trains_loses_nothing_and_rewrites_no_label(root, monkeypatch):
    def killed(*_arguments, **options):
        if killed.folds_left == 0:
            raise KeyboardInterrupt
        killed.folds_left -= 1
        return real(*_arguments, **options)

    real, killed.folds_left = artifacts.is_done, 2
    with monkeypatch.context() as patched:
        patched.setattr(artifacts, "is_done", killed)
        with pytest.raises(KeyboardInterrupt):
            pseudo_label.main(root=root)
    run_dir = root / "runs" / "baseline-p1"
    assert not (run_dir / "round.json").exists()
    before = {path: path.stat().st_mtime_ns for path in run_dir.glob("*/*") if path.name != ".lock"}
    assert len([path for path in before if path.name == "pseudo.parquet"]) == NUM_FOLDS + 1
    assert len([path for path in before if path.name == "manifest.json"]) == 2
    pseudo_label.main(root=root)
    assert verdict_of(root, "baseline-p1")["kept"]
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path for path in before if before[path] != after[path]} == {
        path for path in before if path.name == "manifest.json"  # predict.py added to those
    }  # fmt: skip


def test_a_kill_before_the_verdict_is_mended_by_running_it_again(root, monkeypatch):
    pseudo_label.main(root=root)
    expected = verdict_of(root, "baseline-p1")
    (root / "runs" / "baseline-p1" / "round.json").unlink()
    pseudo_label.main(root=root)
    assert verdict_of(root, "baseline-p1") == expected


def test_other_settings_do_not_mix_into_a_round_and_overwrite_makes_it_again(root):
    pseudo_label.main(root=root)
    with pytest.raises(UserError, match=r"baseline-p1: this round .*pseudo_per_class=4: --overwrite"):
        pseudo_label.main(overrides=["pseudo_per_class=4"], root=root)
    (root / "runs" / "baseline-p1" / "round.json").unlink()
    with pytest.raises(UserError, match=r"made with other settings; now pseudo_per_class=4"):
        pseudo_label.main(overrides=["pseudo_per_class=4"], root=root)
    pseudo_label.main(overrides=["pseudo_per_class=4"], overwrite=True, root=root)
    assert set(sum(verdict_of(root, "baseline-p1")["rows_per_class"].values(), [])) == {4}
    assert len(read_own_pseudo(root, "baseline-p1", 2).ids) == 12


def test_a_round_whose_teacher_was_trained_again_stands_with_a_note_until_it_is_made_again(root, capsys):
    pseudo_label.main(root=root)
    weights = root / "runs" / "baseline" / "fold1" / "last.safetensors"
    weights.write_text("trained again")
    change_manifest(root, "baseline", 1, weights_sha256=file_sha256(weights))
    pseudo_label.main(root=root)
    assert "its teachers have other weights now than when they labelled it" in capsys.readouterr().out
    (root / "runs" / "baseline-p1" / "round.json").unlink()
    with pytest.raises(UserError, match=r"fold1.pseudo\.parquet: .*its teachers changed since fold 1.*--overwrite"):
        pseudo_label.main(root=root)
    pseudo_label.main(overwrite=True, root=root)
    assert verdict_of(root, "baseline-p1")["kept"]


def test_a_damaged_file_of_labels_is_named_though_the_round_is_done(root):
    pseudo_label.main(root=root)
    path = root / "runs" / "baseline-p1" / "fold1" / "pseudo.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"fold1.pseudo\.parquet: damaged or changed"):
        pseudo_label.main(root=root)


def test_settings_that_do_not_make_the_teachers_kind_of_weights_are_refused_before_training(root):
    for fold in range(3):
        manifest = manifest_of(root, "baseline", fold)
        change_manifest(root, "baseline", fold, predicted={**manifest.get("predicted", {}), "weights": "swa"})
    before = content(root)
    with pytest.raises(UserError, match="baseline predicts with weights=swa, which these settings do not make"):
        pseudo_label.main(root=root)
    assert content(root) == before


def test_a_teacher_whose_epoch_was_chosen_on_the_fold_is_refused(root):
    change_manifest(root, "baseline", 1, kind="best")
    with pytest.raises(UserError, match="predicts with the epoch that was best on fold 1.*--weights last"):
        pseudo_label.main(root=root)


def test_a_damaged_verdict_is_named(root):
    pseudo_label.main(root=root)
    path = root / "runs" / "baseline-p1" / "round.json"
    for text in ("{", "[]", "{}"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"round\.json: damaged: delete it"):
            pseudo_label.main(root=root)


def test_the_student_is_predicted_as_the_run_it_is_compared_with(root, monkeypatch):
    asked = []
    monkeypatch.setattr(predict, "main", lambda **options: (asked.append(options), fake_predict(**options)))
    pseudo_label.main(root=root)
    assert asked == [{"run": "baseline-p1", "weights": "last", "tta": "flips", "root": root}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "--rounds 0"),
        ({"thresholds": [0.9, 0.8]}, "2 for 1 rounds: say --rounds 2"),
        ({"thresholds": [0.9], "overrides": ["pseudo_top_share=0.2"]}, "without pseudo_threshold and pseudo_top_share"),
        ({"overrides": ["pseudo_from=[a]"]}, "name the teachers with --run"),
        ({"overrides": ["tta=flips"]}, "the student is predicted with the first run's views"),
        ({"overrides": ["pseudo_per_clas=3"]}, "did you mean pseudo_per_class"),
        ({"runs": ["baseline", "baseline"]}, "baseline is named twice"),
        ({"runs": ["baseline", "baseline-p1"]}, "baseline-p1 is the student of a round itself"),
        ({"runs": ["../x"]}, "run name"),
        ({"runs": ["none"]}, "no such run"),
        ({"runs": ["baseline", "none"]}, "run none, fold 0: is not trained"),
    ],
)
def test_contradictory_wishes_are_refused(root, options, message):
    before = content(root)
    with pytest.raises(UserError, match=message):
        pseudo_label.main(**options, root=root)
    assert content(root) == before


def test_settings_may_stand_after_the_options_that_take_several_words(monkeypatch):
    words = ["--run", "a", "b", "epochs=2", "--rounds", "2", "--thresholds", "0.9", "0.8", "pseudo_per_class=5"]
    monkeypatch.setattr(sys, "argv", ["pseudo_label.py", *words])
    arguments = pseudo_label.parse_arguments()
    assert (arguments.run, arguments.thresholds) == (["a", "b"], [0.9, 0.8])
    assert arguments.overrides == ["epochs=2", "pseudo_per_class=5"]


# For real


def test_a_real_student_trains_on_its_own_folds_labels_and_on_no_other(tmp_path, capsys):
    root = prepare(tmp_path, "multiclass", 150, 40, epochs=2)
    train.main(root=root)
    predict.main(root=root)
    capsys.readouterr()
    words = ["pseudo_top_share=0.3", "pseudo_targets=soft", "cooldown_epochs=1", "epochs=3"]
    pseudo_label.main(overrides=words, root=root)
    assert "pseudo-labelled" in capsys.readouterr().out
    run_dir = root / "runs" / "baseline-p1"
    test_ids = set(pd.read_csv(root / "data" / "test.csv", dtype=str).iloc[:, 0])
    for fold in range(3):
        table = pd.read_parquet(run_dir / f"fold{fold}" / "pseudo.parquet")
        assert set(table["id"]) <= test_ids
        assert set(table["teacher_run"]) == {"baseline"}
        assert set(table["teacher_fold"]) == {fold}
        assert set(table["teacher_weights_sha256"]) == {manifest_of(root, "baseline", fold)["weights_sha256"]}
        assert "pseudo.parquet" in manifest_of(root, "baseline-p1", fold)["files"]
    assert {"kept", "before", "after", "low", "high"} <= set(verdict_of(root, "baseline-p1"))
    before = content(root)
    pseudo_label.main(overrides=words, root=root)
    assert content(root) == before

    # Labels of fold 0's teacher, which saw fold 1, are no labels for fold 1.
    shutil.copy(run_dir / "fold0" / "pseudo.parquet", run_dir / "fold1" / "pseudo.parquet")
    (run_dir / "fold1" / "manifest.json").unlink()
    saved = run_dir / "config.yaml"
    with pytest.raises(
        UserError, match=r"fold1.pseudo\.parquet: .*its teacher saw fold 1: it was trained without fold 0"
    ):
        train.main(fold="1", config_path=saved, name="baseline-p1", root=root)
    pseudo_label.main(overrides=words, root=root)  # the fold is not done: labelled and trained again
    assert set(pd.read_parquet(run_dir / "fold1" / "pseudo.parquet")["teacher_fold"]) == {1}
    assert content(root).keys() == before.keys()
