"""make_folds.py --verify: what a run claims is proved from its files, and a claim that does not hold is one line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from finished_runs import finished_runs
from test_pipeline import exit_code

import make_folds
from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.errors import UserError
from kfold.files import file_sha256
from kfold.ledger import record_run
from kfold.predictions import read_predictions, write_predictions
from kfold.seals import write_sealed


@pytest.fixture
def root(tmp_path):
    return Path(shutil.copytree(finished_runs(), tmp_path / "copy"))


def fold(root: Path, number: int = 0, run: str = "baseline") -> Path:
    return root / "runs" / run / f"fold{number}"


def problems_of(root: Path, *runs: str) -> list[str]:
    with pytest.raises(UserError) as refusal:
        make_folds.verify(runs, root)
    assert all("\n" not in problem for problem in refusal.value.problems)
    return refusal.value.problems


def rewrite(folder: Path, rows: str, predictions) -> None:
    """A prediction file with other contents, and a manifest that vouches for it: what only a proof can find."""
    manifest = artifacts.read_manifest(folder)
    path = folder / f"{rows}.parquet"
    write_predictions(path, predictions)
    artifacts.write_manifest(folder, manifest, [path.name], manifest["files"])


def change_manifest(folder: Path, **changes) -> None:
    artifacts.save_manifest(folder, {**artifacts.read_manifest(folder), **changes})


def read(folder: Path, rows: str = "oof"):
    return read_predictions(folder / f"{rows}.parquet", artifacts.read_manifest(folder)["fold_stamp"])


def test_sound_runs_are_verified_with_their_numbers_and_scores(root, capsys):
    make_folds.verify(["baseline", "stack"], root)
    output = capsys.readouterr().out
    assert "run baseline: 3 folds, " in output
    assert " files, 60 ids: all verified" in output
    score = json.loads((fold(root) / "manifest.json").read_text())["score"]
    assert f"{score:.5f}" in output


def test_a_doubled_id_a_missing_one_and_one_of_another_fold_are_named(root):
    mine, other = read(fold(root)), read(fold(root, 1))
    ids = mine.ids.copy()
    ids[0] = ids[1]
    rewrite(fold(root), "oof", replace(mine, ids=ids))
    told = "\n".join(problems_of(root, "baseline"))
    assert f"fold0/oof.parquet: id '{ids[1]}' occurs twice" in told
    assert f"fold0/oof.parquet: 1 missing ids, the first is '{mine.ids[0]}'" in told
    ids[0] = other.ids[0]
    rewrite(fold(root), "oof", replace(mine, ids=ids))
    assert f"1 foreign ids, the first is '{other.ids[0]}'" in "\n".join(problems_of(root, "baseline"))


def test_rows_that_say_another_fold_are_named(root):
    rewrite(fold(root), "oof", replace(read(fold(root)), fold=np.full(20, 1)))
    assert any("fold0/oof.parquet: holds rows of another fold than 0" in line for line in problems_of(root, "baseline"))


def test_a_score_that_is_not_that_of_the_rows_is_named(root):
    mine = read(fold(root))
    rewrite(fold(root), "oof", replace(mine, values=mine.values[::-1].copy()))
    change_manifest(fold(root), score=0.99)
    told = "\n".join(problems_of(root, "baseline"))
    assert "fold0/oof.parquet: scores" in told
    assert "manifest.json says 0.99" in told


def test_a_ledger_with_other_scores_than_the_files_is_named_though_its_seal_fits(root):
    rows = pd.read_csv(root / "runs" / "ledger.csv", dtype=str, keep_default_na=False).set_index("run")
    row = rows.loc["baseline"].drop("seal").to_dict()
    record_run(root / "runs" / "ledger.csv", {"run": "baseline", **row, "oof": 0.99})
    (problem,) = problems_of(root, "baseline")
    assert "ledger.csv: run baseline: oof is '0.99', its out-of-fold files give " in problem
    record_run(root / "runs" / "ledger.csv", {"run": "baseline", **row, "fold_scores": "0.5 0.5 0.5"})
    assert "fold_scores are not those of its files" in problems_of(root, "baseline")[0]


def test_a_leaderboard_score_that_was_entered_by_hand_is_no_damage(root):
    path = root / "runs" / "ledger.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.assign(leaderboard="0.876", notes="my own").to_csv(path, index=False, lineterminator="\r\n")
    make_folds.verify((), root)
    table.assign(leaderboard="O.876").to_csv(path, index=False)
    assert "leaderboard is not a number" in problems_of(root)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trained_without_fold": 1}, "its model saw fold 0"),
        ({"run": "other"}, "manifest.json: is of run other"),
        ({"config_hash": "0" * 64}, "made with other settings than config.yaml"),
        ({"weights_sha256": "0" * 64}, "weights_sha256 is not that of its weights files"),
        ({"weights": {"lost.safetensors": 1.0}}, "lists no digest of the weights that it predicts with"),
        ({"fold_stamp": "0" * 64}, "made with other folds than the rest"),
        ({"predicted": {"tta": "d4"}}, "its stamp tta is 'none', manifest.json says 'd4'"),
        ({"predicted": {"tta": "none", "test_ids": "0"}}, "test.parquet: predicted for other test ids"),
    ],
)
def test_a_manifest_that_claims_what_is_not_so_is_named_though_its_digest_fits(root, changes, message):
    change_manifest(fold(root), **changes)
    assert any(message in line and "fold0" in line for line in problems_of(root, "baseline"))


def test_weights_of_another_model_are_named_though_their_digest_fits(root):
    folder = fold(root)
    manifest = artifacts.read_manifest(folder)
    (folder / "best.safetensors").write_bytes(b"not weights")
    artifacts.write_manifest(folder, manifest, ["best.safetensors"], manifest["files"])
    assert any("best.safetensors: damaged or not a weights file" in line for line in problems_of(root, "baseline"))


def test_settings_that_were_changed_are_named(root):
    path = root / "runs" / "baseline" / "config.yaml"
    write_sealed(path, path.read_text().replace("epochs: 1", "epochs: 2"))
    told = problems_of(root, "baseline")
    assert len([line for line in told if "made with other settings than config.yaml" in line]) == 4  # and all-data


def test_other_folds_are_one_line_on_folds_csv(root):
    path = root / "folds.csv"
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join([rows[0], *rows[:0:-1]]))  # the same folds in another order: another stamp
    assert file_sha256(path) != artifacts.read_manifest(fold(root))["fold_stamp"]
    assert "folds.csv: run baseline was not made with these folds" in problems_of(root, "baseline")[0]


def test_a_stack_of_predictions_that_changed_since_is_named(root):
    mine = read(fold(root), "test")
    rewrite(fold(root), "test", replace(mine, values=mine.values[::-1].copy()))
    assert any("is another one since this stack was made" in line for line in problems_of(root, "stack"))


def test_every_problem_of_every_run_is_told_at_once(root, capsys):
    for path in (fold(root) / "log.csv", fold(root, 2, "stack") / "oof.parquet", root / "runs" / "stack" / "blend.csv"):
        path.write_bytes(path.read_bytes()[:-1])
    (root / "runs" / "baseline-p1" / "round.json").write_text("{}")
    told = problems_of(root)
    for name in ("baseline/fold0/log.csv", "stack/fold2/oof.parquet", "stack/blend.csv", "baseline-p1/round.json"):
        assert len([line for line in told if name in line]) == 1, told
    output = capsys.readouterr().out
    assert "run baseline: 3 folds, " in output
    assert "ids: 1 problems" in output


def test_files_that_no_stage_vouches_for_are_notes(root, capsys):
    (fold(root) / "notes.txt").write_text("mine")
    (root / "runs" / "baseline" / ".config.yaml.x.tmp").write_text("half")
    make_folds.verify(["baseline"], root)
    output = capsys.readouterr().out
    assert f"{fold(root) / 'notes.txt'}: no stage vouches for it" in output
    assert "left over from a write that was killed" in output


def test_a_run_with_one_fold_yet_is_verified_with_a_note_and_an_unknown_one_is_named(root, capsys):
    shutil.copytree(root / "runs" / "baseline", root / "runs" / "half")
    for number in range(3):
        change_manifest(fold(root, number, "half"), run="half")
    change_manifest(Workspace(root).fold_dir("half", -1), run="half")
    (fold(root, 2, "half") / "manifest.json").unlink()
    make_folds.verify(["half"], root)
    output = capsys.readouterr().out
    assert "fold2: not finished" in output
    assert "run half: 2 folds" in output
    assert "run lost: no such run" in problems_of(root, "lost")[0]


def test_the_command_ends_with_2_and_a_line_without_traceback(root, capsys):
    shutil.copy(make_folds.__file__, root)
    assert exit_code(root / "make_folds.py", "--verify", "lost") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: run lost: no such run in ")
    assert "Traceback" not in errors
