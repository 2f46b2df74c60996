"""submit.py on prediction files written by hand: what it chooses, writes, refuses and says."""

import inspect
import json
import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_pipeline import exit_code

import competition
import submit
from kfold.artifacts import write_manifest
from kfold.errors import UserError
from kfold.files import file_sha256
from kfold.predictions import Predictions, read_predictions, write_predictions
from kfold.upload import upload

REPOSITORY = Path(__file__).resolve().parents[1]
TRAIN_IDS = [f"t{number:03}" for number in range(90)]
TEST_IDS = [f"{number:03}" for number in range(30)]
NUM_FOLDS = 3
CELLS = {  # task -> target columns of a row
    "multiclass": (["label"], lambda number: [("cat", "dog", "owl")[number % 3]]),
    "binary": (["label"], lambda number: [("no", "yes")[number % 2]]),
    "multilabel": (["odd", "low"], lambda number: [str(number % 2), str(int(number < 40))]),
    "regression": (["height"], lambda number: [str(number % 7)]),
}
METRIC_OF = {"multiclass": "accuracy", "binary": "roc_auc", "multilabel": "roc_auc", "regression": "rmse"}


def make_root(root: Path, task: str = "multiclass", metric: str = "auto", slug: str = "") -> Path:
    """A repository's facts, tables and folds; no runs yet."""
    columns, cells = CELLS[task]
    (root / "data").mkdir(parents=True)
    (root / "competition.yaml").write_text(
        f"project_name: Test\nkaggle_competition: '{slug}'\ntask: {task}\nmetric: {metric}\n"
        f"target_columns: [{', '.join(columns)}]\nnum_folds: {NUM_FOLDS}\n"
    )
    train = pd.DataFrame(
        [[name, *cells(place)] for place, name in enumerate(TRAIN_IDS)], columns=["image_id", *columns]
    )
    solution = pd.DataFrame(
        [[name, *cells(place)] for place, name in enumerate(TEST_IDS)], columns=["image_id", *columns]
    )
    train.to_csv(root / "data" / "train.csv", index=False)
    solution.to_csv(root / "data" / "solution.csv", index=False)
    solution[["image_id"]].to_csv(root / "data" / "test.csv", index=False)
    placeholder = "0.5" if task == "binary" else train.iloc[0, 1]
    sample = solution.iloc[::-1].assign(**dict.fromkeys(columns, placeholder))
    sample.to_csv(root / "data" / "sample_submission.csv", index=False)
    folds = train.rename(columns={"image_id": "id"})
    folds.insert(1, "fold", [(place // 3) % NUM_FOLDS for place in range(len(folds))])
    folds.insert(2, "group", "")
    folds.insert(3, "duplicate_group", "")
    folds.to_csv(root / "folds.csv", index=False, lineterminator="\n")
    return root


def truth(root: Path, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Targets of a table (N, C) and their names."""
    facts = submit.load_competition(root / "competition.yaml")
    train = pd.read_csv(root / "data" / "train.csv", dtype=str)
    table = pd.read_csv(root / "data" / f"{name}.csv", dtype=str)
    decoded = competition.decode_targets(pd.concat([train, table]), facts)
    return decoded.values[len(train) :], decoded.names


def add_run(root: Path, run: str = "baseline", noise: float = 0.5, folds=range(NUM_FOLDS), limit: int = 0) -> Path:
    """A finished run; the noise decides its score. The files' rows are shuffled, their columns in reverse."""
    task = submit.load_competition(root / "competition.yaml").task
    targets, names = truth(root, "train")
    test_targets, _ = truth(root, "solution")
    fold_of = pd.read_csv(root / "folds.csv")["fold"].to_numpy()
    folder = root / "runs" / run
    for fold in folds:
        generator = np.random.default_rng(fold)
        stamps = {"fold_stamp": file_sha256(root / "folds.csv"), "config_hash": run, "task": task, "tta": "none"}
        for rows, ids, values in (
            ("oof", np.array(TRAIN_IDS)[fold_of == fold], targets[fold_of == fold]),
            ("test", np.array(TEST_IDS), test_targets),
        ):
            values = np.clip(values + generator.normal(0, noise, values.shape), 0, 1 if task != "regression" else 9)
            if task == "multiclass":
                values = (values + 1e-3) / (values + 1e-3).sum(axis=1, keepdims=True)
            order = generator.permutation(len(ids))
            write_predictions(
                folder / f"fold{fold}" / f"{rows}.parquet",
                Predictions(ids[order], values[order][:, ::-1], names[::-1], stamps),
            )
        facts = {"run": run, "trained_without_fold": fold}
        write_manifest(folder / f"fold{fold}", facts, ["oof.parquet", "test.parquet"])
    (folder / "config.yaml").write_text(f"limit: {limit}\n")
    return folder


def submission(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "submission.csv", dtype=str, keep_default_na=False)


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "repository")


@pytest.mark.parametrize("task", CELLS)
def test_each_task_writes_the_samples_columns_and_rows(task, tmp_path, capsys):
    root = make_root(tmp_path / "r", task)
    add_run(root, noise=0.1)
    submit.main(root=root)
    sample = pd.read_csv(root / "data" / "sample_submission.csv", dtype=str)
    assert list(submission(root).columns) == list(sample.columns)
    assert submission(root)["image_id"].tolist() == sample["image_id"].tolist()
    output = capsys.readouterr().out
    assert f"run baseline, out of fold: {METRIC_OF[task]} " in output
    assert "(hidden labels of the demo)" in output
    assert "warning" not in output


def test_the_submission_is_the_mean_of_the_folds_joined_by_id_and_name(root):
    folder = add_run(root)
    submit.main(root=root)
    parts = [
        pd.read_parquet(folder / f"fold{fold}" / "test.parquet").set_index("id").sort_index(axis=1) for fold in range(3)
    ]
    mean = sum(part.loc[TEST_IDS] for part in parts) / 3
    expected = mean.idxmax(axis=1).str.removeprefix("p_")
    assert submission(root).set_index("image_id")["label"].loc[TEST_IDS].tolist() == expected.tolist()


def test_the_run_with_the_best_out_of_fold_score_is_chosen_and_the_gain_shown(root, capsys):
    add_run(root, "a_noisy", noise=2.0)
    add_run(root, "good", noise=0.1)
    add_run(root, "z_noisy", noise=2.0)
    submit.main(root=root)
    output = capsys.readouterr().out
    assert "run good, out of fold: accuracy 1.00000" in output
    assert "run good is chosen; minus a_noisy +0." in output
    assert "beyond noise" in output


def test_where_less_is_better_the_least_error_is_chosen(tmp_path, capsys):
    root = make_root(tmp_path / "r", "regression")
    add_run(root, "a_noisy", noise=3.0)
    add_run(root, "good", noise=0.1)
    submit.main(root=root)
    assert "run good, out of fold: rmse 0." in capsys.readouterr().out


def test_a_named_run_is_taken_though_another_is_better(root, capsys):
    add_run(root, "noisy", noise=2.0)
    add_run(root, "good", noise=0.1)
    submit.main(run="noisy", root=root)
    assert "run noisy, out of fold" in capsys.readouterr().out


def test_the_hidden_score_of_the_best_single_run_stands_below_that_of_another(root, capsys):
    add_run(root, "good", noise=0.1)
    add_run(root, "noisy", noise=2.0)
    submit.main(run="noisy", root=root)
    lines = [line for line in capsys.readouterr().out.splitlines() if "solution.csv: accuracy" in line]
    assert lines[0].endswith("(hidden labels of the demo)")
    assert "solution.csv: accuracy 1.00000, " in lines[1]
    assert lines[1].endswith("(the best single run, good)")
    submit.main(run="good", root=root)
    assert "the best single run" not in capsys.readouterr().out


def test_a_rejected_round_of_pseudo_labels_is_left_out_but_can_be_named(root, capsys):
    add_run(root, "baseline", noise=1.0)
    folder = add_run(root, "baseline-p1", noise=0.01)
    (folder / "round.json").write_text('{"kept": false}')
    submit.main(root=root)
    output = capsys.readouterr().out
    assert "run baseline-p1 is left out: its round of pseudo-labels gained nothing beyond noise" in output
    assert "run baseline, out of fold" in output
    submit.main(run="baseline-p1", root=root)
    (folder / "round.json").write_text('{"kept": true}')
    submit.main(root=root)
    assert "run baseline-p1, out of fold" in capsys.readouterr().out.split("run baseline, out of fold")[-1]
    (folder / "round.json").write_text("[]")
    submit.main(root=root)
    assert "round.json: damaged" in capsys.readouterr().out


def test_all_data_submits_the_full_data_fit_and_says_whose_score_is_shown(root, capsys):
    folder = add_run(root, noise=0.1)
    with pytest.raises(UserError, match="no full-data fit"):
        submit.main(run="baseline", all_data=True, root=root)
    part = read_predictions(folder / "fold0" / "test.parquet", file_sha256(root / "folds.csv"))
    owl = (np.array(part.names) == "owl").astype(np.float32)
    values = np.tile(owl, (len(part.ids), 1))
    write_predictions(folder / "all-data" / "test.parquet", Predictions(part.ids, values, part.names, part.stamps))
    write_manifest(folder / "all-data", {"run": "baseline", "trained_without_fold": None}, ["test.parquet"])
    submit.main(run="baseline", all_data=True, root=root)
    assert set(submission(root)["label"]) == {"owl"}
    assert "the scores are those of the folds' models" in capsys.readouterr().out
    submit.main(run="baseline", root=root)
    assert set(submission(root)["label"]) == {"cat", "dog", "owl"}


def test_unfinished_and_trial_runs_are_left_out_by_name(root, capsys):
    add_run(root, "short", noise=0.01, folds=[0, 2])
    add_run(root, "trial", noise=0.01, limit=90)
    add_run(root, "whole", noise=1.0)
    submit.main(root=root)
    output = capsys.readouterr().out
    assert "run short is left out: fold 1 is not trained" in output
    assert "run trial is left out: a trial run on 90 rows" in output
    assert "run whole, out of fold" in output


def test_a_missing_fold_is_refused_by_name_and_a_valid_prior_submission_stays(root):
    add_run(root, folds=[0, 2])
    with pytest.raises(UserError, match="fold 1"):
        submit.main(run="baseline", root=root)
    assert set(submission(root)["label"]) == {"cat"}
    assert sorted(submission(root)["image_id"]) == TEST_IDS


def test_a_run_without_test_predictions_is_refused_with_the_remedy(root):
    folder = add_run(root)
    write_manifest(folder / "fold1", {"run": "baseline", "trained_without_fold": 1}, ["oof.parquet"])
    for run in ("", "baseline"):
        with pytest.raises(UserError, match="predict.py --run baseline"):
            submit.main(run=run, root=root)


def test_no_run_at_all_still_leaves_a_valid_prior_submission(root):
    with pytest.raises(UserError, match="no finished run"):
        submit.main(root=root)
    assert len(submission(root)) == len(TEST_IDS)
    with pytest.raises(UserError, match="no such run.*no finished run yet"):
        submit.main(run="typo", root=root)


@pytest.mark.parametrize("name", ["oof.parquet", "test.parquet"])
def test_a_changed_byte_is_named(root, name):
    path = add_run(root) / "fold2" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"fold2.{name}: damaged or changed"):
        submit.main(root=root)


def rewrite(path: Path, change) -> None:
    """Damage a prediction file and make the manifest fit, as a stage with a bug would."""
    stamp = file_sha256(path.parents[3] / "folds.csv")
    write_predictions(path, change(read_predictions(path, stamp)))
    facts = {"run": "baseline", "trained_without_fold": int(path.parent.name[4:])}
    write_manifest(path.parent, facts, ["oof.parquet", "test.parquet"])


def test_predictions_of_another_test_set_are_refused_with_the_id(root):
    path = add_run(root) / "fold1" / "test.parquet"
    rewrite(path, lambda p: Predictions(np.where(p.ids == "004", "x", p.ids), p.values, p.names, p.stamps))
    with pytest.raises(UserError) as caught:
        submit.main(root=root)
    assert any("1 missing ids, the first is '004'" in line for line in caught.value.problems)
    assert any("1 foreign ids, the first is 'x'" in line for line in caught.value.problems)


def test_predictions_of_another_task_or_other_classes_are_refused(root):
    folder = add_run(root)
    for fold in range(NUM_FOLDS):
        rewrite(
            folder / f"fold{fold}" / "test.parquet",
            lambda p: Predictions(p.ids, p.values, tuple(name.upper() for name in p.names), p.stamps),
        )
    with pytest.raises(UserError, match="train it again"):
        submit.main(root=root)


def test_predictions_of_other_folds_are_refused(root):
    add_run(root)
    folds = (root / "folds.csv").read_text().replace("t000,0,", "t000,1,")
    (root / "folds.csv").write_text(folds)
    with pytest.raises(UserError, match="other folds"):
        submit.main(root=root)


def test_postprocess_is_applied(root, monkeypatch):
    add_run(root, noise=0.1)
    monkeypatch.setattr(competition, "postprocess", lambda predictions, facts, tuned: predictions.assign(p_owl=2.0))
    submit.main(root=root)
    assert set(submission(root)["label"]) == {"owl"}


def run_example(function, names: str, **values):
    """Run the code in a docstring of competition.py, as a person would paste it into the function."""
    lines = inspect.getdoc(function).splitlines()
    code = "\n".join(line for line in lines if line.startswith("    ") or not line)
    code = f"def example({names}):\n" + textwrap.indent(textwrap.dedent(code), "    ")
    space = dict(vars(competition))
    exec(code, space)
    return space["example"](**values)


def test_the_examples_in_competition_py_work(root):
    facts = submit.load_competition(root / "competition.yaml")
    table = pd.DataFrame({"image_id": ["a", "b", "c"], "label": ["grade 0", "grade 10", "grade 2"]}, dtype=str)
    assert run_example(competition.decode_targets, "table, facts", table=table, facts=facts).names == ("0", "2", "10")
    metric = run_example(competition.metric, "facts", facts=facts)
    targets, predictions = np.eye(5)[[0, 1]], np.array([[0.1, 0.2, 0.3, 0.4, 0.0], [0.1, 0.2, 0.3, 0.4, 0.0]])
    assert metric.function(targets, predictions) == 0.5
    predictions = pd.DataFrame({"id": ["a"], "p_count": [-1.6], "p_background": [0.3]})
    run_example(competition.postprocess, "predictions", predictions=predictions)
    assert predictions.iloc[0].tolist() == ["a", 0.0, 0.0]


def test_a_failed_check_keeps_the_prior_submission_and_says_so(tmp_path, monkeypatch):
    root = make_root(tmp_path / "r", "binary")
    add_run(root)
    monkeypatch.setattr(competition, "postprocess", lambda predictions, facts, tuned: predictions.assign(p_label=1.5))
    with pytest.raises(UserError) as caught:
        submit.main(root=root)
    assert "not a probability from 0 to 1: row 2 (id '029')" in caught.value.problems[0]
    assert "still holds the prior submission, which is valid" in caught.value.problems[-1]
    assert set(submission(root)["label"]) == {"0.5"}


def test_a_failed_check_keeps_the_valid_submission_of_before(tmp_path, monkeypatch):
    root = make_root(tmp_path / "r", "binary")
    add_run(root)
    submit.main(root=root)
    before = (root / "submission.csv").read_bytes()
    monkeypatch.setattr(competition, "postprocess", lambda predictions, facts, tuned: predictions.assign(p_label=1.5))
    with pytest.raises(UserError, match="still holds the submission of before"):
        submit.main(root=root)
    assert (root / "submission.csv").read_bytes() == before


def test_an_invalid_earlier_file_is_replaced_by_the_prior(root, capsys):
    (root / "submission.csv").write_text("image_id,label\n000,cow\n")
    with pytest.raises(UserError):
        submit.main(root=root)
    assert "the earlier one is not valid" in capsys.readouterr().out
    assert len(submission(root)) == len(TEST_IDS)


def test_raw_data_is_never_overwritten(root):
    with pytest.raises(UserError, match="competition's own files"):
        submit.main(output=root / "data" / "train.csv", root=root)


def test_the_same_run_again_changes_no_byte_and_says_so(root, capsys):
    add_run(root)
    submit.main(root=root)
    before = (root / "submission.csv").read_bytes()
    capsys.readouterr()
    submit.main(root=root)
    assert (root / "submission.csv").read_bytes() == before
    assert "since the submission.csv of before: 0 of 30 rows changed (0.0%)" in capsys.readouterr().out


def test_the_change_since_the_last_submission_is_told(tmp_path, capsys):
    root = make_root(tmp_path / "r", "regression")
    add_run(root, "one", noise=0.1)
    add_run(root, "two", noise=0.2)
    submit.main(run="one", root=root)
    submit.main(run="two", root=root)
    output = capsys.readouterr().out
    assert re.search(r"2\d of 30 rows changed \(\d\d\.\d%\), correlation 0\.99", output), output


def test_a_stub_sample_gives_rows_for_the_whole_test_set_and_is_told(root, capsys):
    add_run(root, noise=0.1)
    sample = pd.read_csv(root / "data" / "sample_submission.csv", dtype=str)
    sample.head(3).to_csv(root / "data" / "sample_submission.csv", index=False)
    submit.main(root=root)
    assert submission(root)["image_id"].tolist() == TEST_IDS
    assert "warning: the sample submission has 3 rows, 30 ids are to be predicted" in capsys.readouterr().out


def test_the_class_mix_is_shown_beside_out_of_fold_and_train(root, capsys):
    add_run(root, noise=0.01)
    submit.main(root=root)
    lines = capsys.readouterr().out.splitlines()
    assert "cat                        33.3%       33.3%       33.3%" in lines


def test_the_mix_of_a_binary_task_is_of_its_positive_class(tmp_path, capsys):
    root = make_root(tmp_path / "r", "binary")
    add_run(root, noise=0.01)
    submit.main(root=root)
    assert "yes                        50.0%       50.0%       50.0%" in capsys.readouterr().out.splitlines()


def test_the_hidden_score_is_the_score_on_the_solution_whatever_its_order(root, capsys):
    add_run(root, noise=1.5)
    solution = pd.read_csv(root / "data" / "solution.csv", dtype=str)
    submit.main(root=root)
    joined = submission(root).merge(solution, on="image_id")
    expected = (joined["label_x"] == joined["label_y"]).mean()
    assert 0.3 < expected < 1
    assert f"solution.csv: accuracy {expected:.5f}" in capsys.readouterr().out
    solution.sample(frac=1, random_state=0).to_csv(root / "data" / "solution.csv", index=False)
    submit.main(root=root)
    assert f"solution.csv: accuracy {expected:.5f}" in capsys.readouterr().out


def test_permuting_train_csv_and_the_parquet_files_changes_neither_score_nor_submission(root, capsys):
    folder = add_run(root)
    submit.main(root=root)
    first, output = (root / "submission.csv").read_bytes(), capsys.readouterr().out
    train = pd.read_csv(root / "data" / "train.csv", dtype=str)
    train.sample(frac=1, random_state=1).to_csv(root / "data" / "train.csv", index=False)
    for fold in range(NUM_FOLDS):
        for rows in ("oof", "test"):
            rewrite(
                folder / f"fold{fold}" / f"{rows}.parquet",
                lambda p: Predictions(p.ids[::-1], p.values[::-1, ::-1], p.names[::-1], p.stamps),
            )
    submit.main(root=root)
    assert (root / "submission.csv").read_bytes() == first
    line = next(line for line in output.splitlines() if "out of fold:" in line)
    assert line in capsys.readouterr().out


# The command, and upload


def test_a_failed_stage_exits_with_2_and_no_traceback(root, capsys):
    assert exit_code(REPOSITORY / "submit.py", "--root", str(root)) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1


@pytest.fixture
def ready(tmp_path):
    """A repository with a slug and a finished run."""
    root = make_root(tmp_path / "with a space", slug="digits-2026")
    add_run(root)
    return root


@pytest.fixture
def fake_kaggle(tmp_path, monkeypatch):
    """Puts a `kaggle` command on PATH that notes its words, says something and exits; the path of its notes."""

    def install(output: str, code: int) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        notes = folder / "words.json"
        (folder / "kaggle").write_text(
            f"#!{sys.executable} -S\nimport json, sys\njson.dump(sys.argv[1:], open({str(notes)!r}, 'w'))\n"
            f"print({output!r})\nsys.exit({code})\n"
        )
        (folder / "kaggle").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return notes

    return install


def test_upload_hands_the_checked_file_to_kaggle(ready, fake_kaggle, capsys):
    notes = fake_kaggle("Successfully submitted to Digits", 0)
    submit.main(upload=True, message="--first try; $(rm -rf)", root=ready)
    assert capsys.readouterr().out.splitlines()[-1] == "Successfully submitted to Digits"
    file, message = f"--file={ready / 'submission.csv'}", "--message=--first try; $(rm -rf)"
    assert json.loads(notes.read_text()) == ["competitions", "submit", "digits-2026", file, message]


def test_upload_without_a_message_says_run_and_score(ready, fake_kaggle):
    notes = fake_kaggle("ok", 0)
    submit.main(upload=True, root=ready)
    assert json.loads(notes.read_text())[-1].startswith("--message=baseline: out of fold accuracy 0.")


@pytest.mark.parametrize(
    ("output", "code", "expected"),
    [
        ("403 - Forbidden", 1, "accept the rules at kaggle.com/competitions/digits-2026/rules"),
        ("404 Client Error: Not Found for url", 1, "there is no such competition"),
        ("400 Client Error: Bad Request", 1, "join the competition"),
        ("401 - Unauthorized", 1, "make a new one"),
        ("something new", 3, "not submitted (something new)"),
        ("Could not submit to competition", 0, "not submitted (Could not submit"),
    ],
)
def test_what_kaggle_refuses_is_one_line_with_the_remedy(tmp_path, fake_kaggle, output, code, expected):
    fake_kaggle(output, code)
    with pytest.raises(UserError) as caught:
        upload("digits-2026", tmp_path / "submission.csv", "message")
    (line,) = caught.value.problems
    assert expected in line


def test_upload_without_the_command_or_with_no_slug_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="pip install kaggle"):
        upload("digits-2026", tmp_path / "submission.csv", "message")
    with pytest.raises(UserError, match="kaggle_competition must be .*, but it is empty"):
        upload("", tmp_path / "submission.csv", "message")
    with pytest.raises(UserError, match="'-x' is not one"):
        upload("-x", tmp_path / "submission.csv", "message")


def test_nothing_is_uploaded_when_a_fold_is_missing(ready, fake_kaggle):
    notes = fake_kaggle("ok", 0)
    (ready / "runs" / "baseline" / "fold0" / "test.parquet").unlink()
    with pytest.raises(UserError, match=r"fold0.test\.parquet: missing"):
        submit.main(upload=True, root=ready)
    assert not notes.exists()
