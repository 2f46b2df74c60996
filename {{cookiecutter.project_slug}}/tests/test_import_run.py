"""A teammate's runs are taken over whole, after every check, or not at all, with every problem said."""

import hashlib
import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_runs import finished_runs
from test_security import Runs

import import_run
import make_folds
import stack
from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.ensemble import nested
from kfold.errors import UserError
from kfold.ledger import read_ledger
from kfold.predictions import read_predictions, write_predictions
from kfold.seals import write_sealed


@pytest.fixture
def theirs(tmp_path):
    """A repository with one run."""
    return duplicate(tmp_path / "theirs", ["baseline"])


@pytest.fixture
def all_theirs(tmp_path):
    """The run, a round of pseudo-labels, and a stack of the two."""
    return duplicate(tmp_path / "theirs", ["baseline", "baseline-p1", "stack"])


@pytest.fixture
def ours(tmp_path):
    """The same competition and folds, no runs yet."""
    return duplicate(tmp_path / "ours", [])


def duplicate(root: Path, runs: list[str]) -> Path:
    """Without images, which are not looked at."""
    made = finished_runs()
    (root / "data").mkdir(parents=True)
    for pattern in ("*.csv", "*.yaml", "data/*.csv", *(["runs/ledger.csv"] if runs else [])):
        for path in made.glob(pattern):
            (root / path.relative_to(made)).parent.mkdir(exist_ok=True)
            shutil.copy(path, root / path.relative_to(made))
    for run in runs:
        shutil.copytree(made / "runs" / run, root / "runs" / run)
    return root


def problems_of(theirs: Path, ours: Path, **options) -> list[str]:
    """What does not fit; nothing may be taken then."""
    before = snapshot(ours)
    with pytest.raises(UserError) as refusal:
        import_run.main(theirs, root=ours, **{"runs": ["baseline"], **options})
    assert all("\n" not in problem for problem in refusal.value.problems)
    assert snapshot(ours) == before
    return refusal.value.problems


def snapshot(root: Path) -> dict[str, bytes]:
    found = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def fold(root: Path, number: int = 0, run: str = "baseline") -> Path:
    return root / "runs" / run / f"fold{number}"


def change_manifest(folder: Path, **changes) -> None:
    artifacts.save_manifest(folder, {**artifacts.read_manifest(folder), **changes})


def vouch(folder: Path, name: str) -> None:
    """The manifest takes a file as it is now."""
    manifest = artifacts.read_manifest(folder)
    artifacts.write_manifest(folder, manifest, [name], manifest["files"])


# Taken over


def test_runs_are_taken_over_verified_and_stacked(all_theirs, ours, capsys, monkeypatch):
    before = snapshot(all_theirs)
    import_run.main(all_theirs, root=ours)
    output = capsys.readouterr().out
    assert "left out, because unfinished or a stack: stack" in output
    assert snapshot(all_theirs) == before
    make_folds.verify(root=ours)
    assert capsys.readouterr().out.count("all verified") == 2
    monkeypatch.setattr(nested, "METHODS", {"mean": nested.METHODS["mean"]})
    stack.main(["baseline", "baseline-p1"], method="mean", features=(), root=ours)
    assert "methods on baseline, baseline-p1" in capsys.readouterr().out
    rows = [
        {row["run"]: (row["oof"], float(row["minutes"]) > 0) for row in read_ledger(root / "runs" / "ledger.csv")}
        for root in (all_theirs, ours)
    ]
    assert {run: rows[1][run] for run in ("baseline", "baseline-p1")} == {
        run: rows[0][run] for run in ("baseline", "baseline-p1")
    }


def test_a_run_that_lacks_a_fold_is_left_out_unless_it_is_named(all_theirs, ours, capsys):
    for name in ("fold1", "all-data"):
        (all_theirs / "runs" / "baseline-p1" / name / "manifest.json").unlink(missing_ok=True)
    import_run.main(all_theirs, root=ours)
    assert "left out, because unfinished or a stack: baseline-p1, stack" in capsys.readouterr().out
    assert Workspace(ours).run_names() == ["baseline"]
    assert any("fold1: not finished" in line for line in problems_of(all_theirs, ours, runs=["baseline-p1"]))


def test_what_is_there_already_says_so(theirs, ours, capsys):
    import_run.main(theirs, ["baseline"], root=ours)
    before = snapshot(ours)
    import_run.main(theirs, ["baseline"], root=ours)
    assert "run baseline: imported before, nothing to do" in capsys.readouterr().out
    assert snapshot(ours) == before
    change_manifest(fold(theirs), score=0.5)
    assert "imported before from other files" in problems_of(theirs, ours)[0]


def test_the_runs_folder_alone_will_do_and_another_name(theirs, ours, tmp_path):
    moved = shutil.move(theirs / "runs", tmp_path / "anna")
    import_run.main(Path(moved), ["baseline"], name="anna-best", root=ours)
    make_folds.verify(["anna-best"], ours)
    origin = json.loads((ours / "runs" / "anna-best" / "imported.json").read_text())
    assert (origin["run"], origin["from"]) == ("baseline", str(moved))
    assert list(origin["manifests"]) == ["fold0", "fold1", "fold2", "all-data"]


def test_a_prefix_keeps_names_apart(all_theirs, ours):
    import_run.main(all_theirs, ["baseline"], root=ours)
    import_run.main(all_theirs, ["baseline", "baseline-p1"], prefix="anna-", root=ours)
    assert Workspace(ours).run_names() == ["anna-baseline", "anna-baseline-p1", "baseline"]
    make_folds.verify(root=ours)


def test_a_stack_comes_with_its_parts_and_without_them_that_is_said(all_theirs, ours, capsys):
    import_run.main(all_theirs, ["stack"], name="their-stack", root=ours)
    assert "a stack of baseline, baseline-p1, not here by this name" in capsys.readouterr().out
    import_run.main(all_theirs, ["baseline", "baseline-p1", "stack"], root=ours)
    assert "not here by this name" not in capsys.readouterr().out
    make_folds.verify(["stack", "their-stack"], ours)


def test_a_stack_of_a_run_that_is_another_here_is_refused(all_theirs, ours):
    import_run.main(all_theirs, ["baseline-p1"], name="baseline", root=ours)
    (problem,) = problems_of(all_theirs, ours, runs=["stack"], name="their-stack")
    assert "a stack of a run baseline that is not our run baseline" in problem


def test_versions_teachers_optimism_and_trials_are_said(all_theirs, ours, capsys):
    folder = all_theirs / "runs" / "baseline-p1"
    write_sealed(folder / "environment.json", json.dumps({**artifacts.environment(), "torch": "<b>1.0</b>\n"}))
    change_manifest(fold(all_theirs, run="baseline-p1"), length_from_validation=True)
    (all_theirs / "competition.py").write_text("# another\n")
    shutil.copy(Path(import_run.__file__).with_name("competition.py"), ours / "competition.py")
    import_run.main(all_theirs, ["baseline-p1"], root=ours)
    output = capsys.readouterr().out
    assert "torch <b>1.0</b>\\n (here" in output
    assert "its score is optimistic" in output
    assert "it was taught by baseline, not here by this name" in output
    assert "competition.py differs" in output


def test_no_state_no_picture_and_nothing_unlisted_is_copied(all_theirs, ours):
    for name in ("state.pt", "previous.pt", "last.pkl", "notes.txt"):
        (fold(all_theirs) / name).write_bytes(pickle.dumps(Runs(os.system, "true")))
    import_run.main(all_theirs, ["baseline", "baseline-p1", "stack"], root=ours)
    names = {path.name for path in (ours / "runs").rglob("*")}
    assert names & {"state.pt", "previous.pt", "last.pkl", "notes.txt", "importance.png"} == set()
    assert {"importance.csv", "pseudo.parquet", "last.safetensors", "lightgbm.txt"} <= names


def test_a_killed_import_leaves_nothing_that_counts(theirs, ours, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(import_run, "check_run", killed)
        with pytest.raises(KeyboardInterrupt):
            import_run.main(theirs, ["baseline"], root=ours)
    assert Workspace(ours).run_names() == []
    import_run.main(theirs, ["baseline"], root=ours)
    assert sorted(os.listdir(ours / "runs" / ".import")) == [".lock"]


def killed(*_arguments):
    raise KeyboardInterrupt


def test_what_was_checked_is_what_is_taken_whatever_becomes_of_theirs_meanwhile(theirs, ours, monkeypatch):
    before = {number: artifacts.read_manifest(fold(theirs, number)) for number in range(3)}
    copy_sealed = import_run.copy_run.__globals__["copy_sealed"]

    def copy_while_it_changes(source, target, names):
        change_manifest(fold(theirs, 1), score=0.123)
        copy_sealed(source, target, names)

    with monkeypatch.context() as patch:
        patch.setitem(import_run.copy_run.__globals__, "copy_sealed", copy_while_it_changes)
        import_run.main(theirs, ["baseline"], root=ours)
    assert {number: artifacts.read_manifest(fold(ours, number)) for number in range(3)} == before
    assert "imported before from other files" in problems_of(theirs, ours)[0]


def test_a_folder_that_nobody_may_enter_is_passed_over(theirs, ours, monkeypatch):
    (theirs / "runs" / "lost+found").mkdir()
    stat = Path.stat

    def refuse(path, **options):
        if path.parent.name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    import_run.main(theirs, root=ours)
    assert Workspace(ours).run_names() == ["baseline"]


def test_a_folder_of_runs_that_cannot_be_read_is_told(theirs, ours, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match="runs: cannot be read \\(Permission denied"):
        import_run.main(theirs, root=ours)


@pytest.mark.parametrize("content", [b"{}", b"[]", b"no", b"\xff"])
def test_a_damaged_note_of_where_a_run_came_from_is_named(content, theirs, ours):
    import_run.main(theirs, ["baseline"], root=ours)
    path = ours / "runs" / "baseline" / "imported.json"
    path.write_bytes(content)
    assert f"{path}: damaged" in problems_of(theirs, ours)[0]
    write_sealed(path, content)  # by a hand that knows how
    assert f"{path}: damaged" in problems_of(theirs, ours)[0]


def test_a_changed_byte_of_the_note_is_named(theirs, ours):
    import_run.main(theirs, ["baseline"], root=ours)
    path = ours / "runs" / "baseline" / "imported.json"
    path.write_bytes(path.read_bytes().replace(b"imported_at", b"imported_it"))
    assert f"{path}: damaged" in problems_of(theirs, ours)[0]


def test_columns_in_another_order_are_joined_by_name(theirs, ours):
    before = {row["run"]: row["oof"] for row in read_ledger(theirs / "runs" / "ledger.csv")}
    for number in range(3):
        rewrite(fold(theirs, number), lambda found: {"values": found.values[:, ::-1], "names": found.names[::-1]})
    import_run.main(theirs, ["baseline"], root=ours)
    assert {row["run"]: row["oof"] for row in read_ledger(ours / "runs" / "ledger.csv")}["baseline"] == before[
        "baseline"
    ]


def rewrite(folder: Path, change) -> None:
    """Out-of-fold predictions of other content, which the manifest vouches for."""
    path = folder / "oof.parquet"
    found = read_predictions(path, artifacts.read_manifest(folder)["fold_stamp"])
    write_predictions(path, replace(found, **change(found)))
    vouch(folder, path.name)


# What does not fit


def test_other_folds_are_told_id_by_id(all_theirs, ours):
    path = ours / "folds.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    others = np.flatnonzero(table["label"] == table["label"][0])
    row = others[table["fold"][others] != table["fold"][0]][0]
    table.loc[[0, row], "fold"] = table.loc[[row, 0], "fold"].to_numpy()
    table.to_csv(path, index=False)
    problems = problems_of(all_theirs, ours, runs=["baseline", "baseline-p1"])
    for run in ("baseline", "baseline-p1"):
        told = [line for line in problems if line.startswith(f"run {run}: ")]
        assert "its folds are others" in told[0]
        assert [line.split("'")[1] for line in told[1:]] == sorted([table["id"][0], table["id"][row]])
        assert all("fold is '" in line for line in told[1:])


def test_the_same_folds_in_other_bytes_are_told_so(theirs, ours):
    path = ours / "folds.csv"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert "though ids, folds and targets are the same" in problems_of(theirs, ours)[0]


def test_other_targets_and_ids_are_told(theirs, ours):
    folds, train = ours / "folds.csv", ours / "data" / "train.csv"
    tables = [pd.read_csv(path, dtype=str, keep_default_na=False) for path in (folds, train)]
    image_id, label = tables[0]["id"][3], tables[0]["label"][3]
    gone = tables[0]["id"][7]
    other = next(name for name in tables[0]["label"] if name != label)
    for table, column, path in ((tables[0], "id", folds), (tables[1], "image_id", train)):
        table.loc[table[column] == image_id, "label"] = other
        table[table[column] != gone].to_csv(path, index=False)
    problems = problems_of(theirs, ours)
    assert any(f"id '{image_id}': label is '{other}' here, '{label}' there" in line for line in problems)
    assert any(f"id '{gone}' is only there" in line for line in problems)


def test_without_their_folds_the_stamp_alone_tells(theirs, ours):
    (theirs / "folds.csv").unlink()
    with (ours / "folds.csv").open("a") as file:
        file.write("\n")
    assert "their folds.csv does not tell which" in problems_of(theirs, ours)[0]


def test_their_folds_of_today_are_not_taken_for_those_of_the_run(theirs, ours):
    for root, text in ((theirs, "\n"), (ours, "\n\n")):
        with (root / "folds.csv").open("a") as file:
            file.write(text)
    assert f"{theirs / 'folds.csv'} is not the one that the run was made with" in problems_of(theirs, ours)[0]


def test_other_test_ids_are_named(theirs, ours):
    for name in ("test", "sample_submission"):
        path = ours / "data" / f"{name}.csv"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:-1]))
    gone = lines[-1].split(",")[0].strip()
    assert any(f"1 foreign ids, the first is '{gone}'" in line for line in problems_of(theirs, ours))


@pytest.mark.parametrize(("old", "new"), [("task: multiclass", "task: binary"), ("[label]", "[other]")])
def test_another_competition_is_refused(old, new, theirs, ours):
    path = theirs / "runs" / "baseline" / "competition.yaml"
    text = path.read_text()
    if old == "[label]":
        text, old, new = text.replace("\n- label", "\n- other"), "\n- label", "\n- other"
    write_sealed(path, text.replace(old, new))
    (problem, *_) = problems_of(theirs, ours)
    assert "here it is" in problem or "metric" in problem, problem


def test_every_problem_of_every_run_is_listed(all_theirs, ours):
    (fold(all_theirs) / "last.safetensors").write_bytes(b"damaged")
    (fold(all_theirs, 2) / "manifest.json").unlink()
    write_sealed(all_theirs / "runs" / "baseline-p1" / "config.yaml", "mystery: 1\n")
    problems = "\n".join(problems_of(all_theirs, ours, runs=["baseline", "baseline-p1"]))
    assert f"{fold(all_theirs) / 'last.safetensors'}: damaged or changed" in problems
    assert f"{fold(all_theirs, 2)}: not finished" in problems
    assert "unknown key 'mystery'" in problems


@pytest.mark.parametrize("name", ["oof.parquet", "test.parquet", "last.safetensors", "log.csv", "manifest.json"])
def test_any_changed_byte_of_a_fold_is_named(name, theirs, ours):
    path = fold(theirs, 1) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert any(str(path) in line for line in problems_of(theirs, ours))


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "competition.yaml", "SHA256SUMS"])
def test_any_changed_byte_of_a_run_is_named(name, theirs, ours):
    path = theirs / "runs" / "baseline" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert any(str(path) in line for line in problems_of(theirs, ours))


def test_predictions_that_do_not_score_as_claimed_are_refused(theirs, ours):
    rewrite(fold(theirs), lambda found: {"values": found.values[::-1]})
    change_manifest(fold(theirs), score=0.987654)
    assert any("oof.parquet: scores" in line for line in problems_of(theirs, ours))


def test_folds_of_different_kinds_of_weights_are_refused(theirs, ours):
    rewrite(fold(theirs), lambda found: {"stamps": {**found.stamps, "weights": "swa"}})
    assert "its folds differ in weights" in problems_of(theirs, ours)[0]


def test_a_model_that_saw_its_fold_is_refused(theirs, ours):
    change_manifest(fold(theirs), trained_without_fold=1)
    assert any("its model saw fold 0" in line for line in problems_of(theirs, ours))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"runs": ["nothing"]}, "run 'nothing': not in"),
        ({"name": "../up"}, "run name '../up'"),
        ({"name": "a b"}, "run name 'a b'"),
        ({"prefix": "<b>"}, "run name '<b>baseline'"),
        ({"name": "ablations"}, "that folder is ablate.py's"),
        ({"name": "stack"}, "--as stack: stack.py puts its results there"),
        ({"runs": ["baseline", "stack"], "name": "x"}, "--as x: names one run"),
        ({"name": "x", "prefix": "y"}, "--as x: names one run"),
    ],
)
def test_odd_wishes_are_refused(options, problem, all_theirs, ours):
    assert problem in problems_of(all_theirs, ours, **options)[0]


def test_a_name_that_is_taken_is_refused(theirs, ours):
    shutil.copytree(theirs / "runs" / "baseline", ours / "runs" / "baseline")
    assert "run baseline: there is one of this name here" in problems_of(theirs, ours)[0]


def test_folders_without_runs_and_our_own_are_refused(theirs, ours, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, problem in ((tmp_path / "empty", "no runs in it"), (tmp_path / "none", "no runs in it")):
        assert problem in problems_of(folder, ours)[0]
    with pytest.raises(UserError, match="is this repository itself"):
        import_run.main(theirs, root=theirs)


# Hostile files


@pytest.mark.parametrize("name", ["oof.parquet", "manifest.json", "config.yaml"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_links_pipes_and_folders_are_refused_at_once(name, kind, theirs, ours, tmp_path):
    path = (theirs / "runs" / "baseline" if name == "config.yaml" else fold(theirs)) / name
    content = path.read_bytes()
    path.unlink()
    if kind == "link":
        (tmp_path / "outside").write_bytes(content)
        path.symlink_to(tmp_path / "outside")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    told = problems_of(theirs, ours)
    assert any(str(theirs) in line and (kind != "link" or "is a link" in line) for line in told), told


@pytest.mark.parametrize("what", ["run", "fold"])
def test_folders_that_are_links_are_refused(what, theirs, ours, tmp_path):
    folder = theirs / "runs" / "baseline" if what == "run" else fold(theirs)
    shutil.move(folder, tmp_path / "outside")
    folder.symlink_to(tmp_path / "outside")
    assert any(f"{folder}: is a link" in line for line in problems_of(theirs, ours))


@pytest.mark.parametrize(
    "name", ["../../../escaped", "/etc/passwd", "state.pt", "x.pkl", "a\nb", "<script>", "CON", "sub/oof.parquet", ""]
)
def test_a_manifest_that_lists_anything_but_files_of_a_stage_is_refused(name, theirs, ours):
    manifest = artifacts.read_manifest(fold(theirs))
    entry = {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}
    artifacts.save_manifest(fold(theirs), {**manifest, "files": {**manifest["files"], name: entry}})
    assert any("which no stage writes" in line for line in problems_of(theirs, ours))


ODD_ENTRIES = [None, [], "x", {"bytes": 1}, {"sha256": "0", "bytes": 1}, {"sha256": 1, "bytes": "1"}]
FACTS = ["fold_stamp", "predicted", "weights", "minutes", "score", "trained_without_fold", "config_hash", "kind"]


@pytest.mark.parametrize("entry", ODD_ENTRIES)
def test_entries_of_other_kinds_are_refused(entry, theirs, ours):
    manifest = artifacts.read_manifest(fold(theirs))
    artifacts.save_manifest(fold(theirs), {**manifest, "files": {**manifest["files"], "last.safetensors": entry}})
    assert any("which no stage writes" in line for line in problems_of(theirs, ours))


@pytest.mark.parametrize("key", FACTS)
def test_facts_of_other_kinds_end_in_lines_not_in_a_traceback(key, theirs, ours):
    for value in ([], {"a": []}, 10**400):
        change_manifest(fold(theirs), **{key: value})
        try:
            import_run.main(theirs, ["baseline"], root=ours)
        except UserError as error:
            told = error.problems
        else:
            told = []
        assert (ours / "runs" / "baseline").exists() == (told == [])
        shutil.rmtree(ours / "runs")


def test_weights_that_are_a_pickle_are_refused_and_not_run(theirs, ours, tmp_path):
    canary = tmp_path / "canary"
    (fold(theirs) / "last.safetensors").write_bytes(pickle.dumps(Runs(os.system, f"touch {canary}")))
    vouch(fold(theirs), "last.safetensors")
    told = problems_of(theirs, ours)
    assert any("last.safetensors: damaged or not a weights file" in line for line in told), told
    assert not canary.exists()


@pytest.mark.parametrize(("rows", "length", "more_columns"), [(100_000, 1000, 0), (10, 10**6, 0), (10, 10, 100)])
def test_a_parquet_bomb_is_refused_before_it_is_read(rows, length, more_columns, theirs, ours, monkeypatch):
    """Whatever repeats packs into a few kB: rows, long texts, columns."""
    path = fold(theirs) / "test.parquet"
    names = [*pq.read_schema(path).names, *map(str, range(more_columns))]
    columns = {name: pa.array(["x" * length] * rows) if name == "id" else pa.array([0.0] * rows) for name in names}
    pq.write_table(pa.table(columns), path, compression="zstd", use_dictionary=length < 10**6)
    assert path.stat().st_size < 2_000_000
    vouch(fold(theirs), path.name)
    monkeypatch.setattr("kfold.predictions.pq.read_table", killed)
    assert any(f"test.parquet: claims {rows:,} rows" in line for line in problems_of(theirs, ours))


def test_a_long_text_is_refused_before_it_is_read(theirs, ours):
    path = theirs / "runs" / "baseline" / "config.yaml"
    os.truncate(path, 2**34)  # takes no room on the disk
    assert any("config.yaml: has 17,179,869,184 bytes" in line for line in problems_of(theirs, ours))


def test_more_than_the_disk_holds_is_refused(theirs, ours, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    assert any("bytes, 5 are free here" in line for line in problems_of(theirs, ours))


def test_odd_names_of_folders_stay_text(theirs, ours, capsys):
    odd = theirs / "runs" / "<script>alert(1)<"
    shutil.copytree(theirs / "runs" / "baseline", odd)
    assert "run name '<script>" in problems_of(theirs, ours, runs=[odd.name])[0]
    capsys.readouterr()
