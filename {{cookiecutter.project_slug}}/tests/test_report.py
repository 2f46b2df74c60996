"""What report.py says of runs: order, differences, what is unfinished or damaged, and the leaderboard's scores."""

import json
import re
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from finished_runs import finished_runs
from written_runs import write_competition, write_run

import competition
import make_folds
import report
from kfold.artifacts import Workspace
from kfold.config import load_competition
from kfold.data.folds import read_folds
from kfold.errors import UserError
from kfold.intervals import FoldScores, paired_difference
from kfold.ledger import read_ledger
from kfold.metrics import resolve_metric
from kfold.report.leaderboard import Entry
from kfold.report.parts import Picture
from kfold.report.public_scores import noise_warnings, public_section
from kfold.report.reading import RunFound, read_run

ACCURACY = resolve_metric("accuracy", "multiclass")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = write_competition(tmp_path_factory.mktemp("written"), "multiclass", group=True)
    write_run(root, "baseline", 0.9)
    write_run(root, "better", 0.4, lr=0.123)
    write_run(root, "worse", 3.0, seed=2)
    write_run(root, "lucky", 0.0, kind="best")
    return root


@pytest.fixture
def root(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "copy"))


def texts(root: Path) -> str:
    """What a reader of the page sees, a space between elements."""
    page = (root / "report.html").read_text(encoding="utf-8").partition("</style>")[2]
    return unescape(re.sub(r"<[^>]*>", " ", page))


def section(root: Path, title: str) -> str:
    page = (root / "report.html").read_text(encoding="utf-8")
    found = re.search(rf'<h2 id="[^"]*">{re.escape(title)}.*?</section>', page, re.S)
    assert found, title
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", found[0])))


def read(root: Path, run: str):
    workspace = Workspace(root)
    facts = load_competition(workspace.competition_path)
    folds = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    targets = competition.decode_targets(folds.table, facts)
    return read_run(workspace, run, folds, targets, facts.task), folds, targets


def test_the_best_run_comes_first_with_its_paired_difference(root, capsys):
    report.main(root=root)
    lines = capsys.readouterr().out.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("run "))
    assert [line.split()[0] for line in lines[place + 1 : place + 5]] == ["lucky", "better", "baseline", "worse"]
    assert lines[-1].startswith("next: ")
    better, folds, targets = read(root, "better")
    baseline = read(root, "baseline")[0]
    value, low, high = paired_difference(ACCURACY, targets.values, better.oof, baseline.oof, folds.group_or_none)
    assert re.search(rf"{re.escape(f'{value:+.5f}')} +{re.escape(f'{low:+.5f} to {high:+.5f}')}", lines[place + 2])
    assert f"{value:+.5f} {low:+.5f} to {high:+.5f}" in section(root, "Leaderboard")


def test_in_detail_it_shows_the_run_that_is_submitted_not_an_optimistic_one(root, capsys):
    report.main(root=root)
    assert "in detail: better" in texts(root)
    assert "Confusion: better" in texts(root)
    assert "optimistic: its score is optimistic" in section(root, "Leaderboard")
    report.main(runs=["worse", "lucky"], root=root)
    assert "in detail: worse, lucky" in texts(root)


def test_an_unfinished_run_shows_what_it_has_and_is_no_damage(root, capsys):
    (root / "runs" / "better" / "fold1" / "manifest.json").unlink()
    shutil.rmtree(root / "runs" / "worse" / "fold0")
    shutil.rmtree(root / "runs" / "worse" / "fold1")
    report.main(root=root)
    captured = capsys.readouterr()
    assert captured.err == ""
    found, folds, _ = read(root, "better")
    assert (found.has_oof == (folds.fold == 0)).all()
    assert "1 of 2 folds; " in section(root, "Leaderboard")
    assert "0 of 2 folds" in section(root, "Leaderboard")
    assert sorted(found.logs) == [0, 1]  # the second one is not vouched for yet, but there


@pytest.mark.parametrize("name", ["fold0/oof.parquet", "fold0/manifest.json", "config.yaml", "fold1/log.csv"])
def test_a_damaged_run_is_named_and_the_others_still_show(root, name, capsys):
    path = root / "runs" / "worse" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    report.main(root=root)
    captured = capsys.readouterr()
    assert f"warning: runs/worse/{name}: " in captured.err
    assert f"runs/worse/{name}: " in section(root, "Leaderboard")
    assert re.search(r"better +0\.\d+", captured.out)
    assert "Confusion: better" in texts(root)


@pytest.mark.parametrize("text", ["limit: many", "limit: -1", "limit: true", "stack_of: 3", "stack_of: better"])
@pytest.mark.parametrize("is_sealed", [False, True])
def test_odd_settings_of_a_run_are_named_and_the_others_still_show(root, text, is_sealed, capsys):
    (root / "runs" / "worse" / "config.yaml").write_text(text + "\n")
    if not is_sealed:
        (root / "runs" / "worse" / "SHA256SUMS").unlink()
    report.main(root=root)
    captured = capsys.readouterr()
    assert "worse/config.yaml: " in captured.err
    assert re.search(r"better +0\.\d+", captured.out)


@pytest.mark.parametrize("table", ["choices", "blend", "importance"])
def test_a_table_without_its_columns_is_named(root, table, capsys):
    (root / "runs" / "better" / f"{table}.csv").write_text("a,b\n1,<script>\n")
    report.main(root=root)
    assert f"warning: runs/better/{table}.csv: damaged, it lacks " in capsys.readouterr().err


@pytest.mark.parametrize("row", ["x,1,1,1,1", ",,,,", "inf,1,1,1,1"])
def test_a_damaged_log_that_no_manifest_vouches_for_is_named(root, row, capsys):
    (root / "runs" / "better" / "fold1" / "manifest.json").unlink()
    (root / "runs" / "better" / "fold1" / "log.csv").write_text(f"epoch,train_loss,valid_loss,score,lr\n{row}\n")
    report.main(runs=["better"], root=root)
    assert "warning: runs/better/fold1/log.csv: damaged, an epoch is no number" in capsys.readouterr().err
    assert "up to epoch 3" in section(root, "Learning curves")


def test_before_the_first_run_the_page_has_the_data_check(written, tmp_path, capsys):
    root = Path(
        shutil.copytree(
            written, tmp_path / "none", ignore=shutil.ignore_patterns("baseline", "better", "worse", "lucky")
        )
    )
    report.main(root=root)
    assert "no finished run" in section(root, "Leaderboard")
    assert "As of 20" in section(root, "Data check")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "next: python train.py --fold all"
    assert not any(line.startswith("run ") for line in lines)  # no table without a row


def test_runs_of_other_folds_are_named_once_with_all_their_folds(root, capsys):
    facts = json.loads((root / "competition.yaml").read_text())
    (root / "competition.yaml").write_text(json.dumps({**facts, "fold_seed": 7}))
    make_folds.main(root=root, overwrite=True)
    capsys.readouterr()
    report.main(root=root)
    captured = capsys.readouterr()
    pattern = r"warning: runs/(\w+): fold 0, 1: made with other folds \(stamp \w{12}, folds.csv has \w{12}\): make .*"
    found = [re.fullmatch(pattern, line) for line in captured.err.splitlines()]
    assert all(found)
    assert [match[1] for match in found] == ["baseline", "better", "lucky", "worse"]
    assert "made with other folds" in captured.out.splitlines()[-1]


# What comes next


def last_line(capsys) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_the_next_line_names_a_run_that_can_be_submitted_and_has_a_row_in_the_ledger(root, capsys):
    report.main(root=root)
    assert last_line(capsys) == "next: open report.html; after an upload: python report.py --log-lb better SCORE"
    report.main(runs=["lucky"], root=root)
    assert last_line(capsys).endswith("--log-lb lucky SCORE")
    (root / "runs" / "lucky" / "fold1" / "manifest.json").unlink()
    report.main(runs=["lucky"], root=root)
    assert last_line(capsys) == "next: open report.html, then python submit.py"
    report.main(compare=["lucky", "worse"], root=root)
    assert last_line(capsys).endswith("--log-lb worse SCORE")
    (root / "runs" / "ledger.csv").unlink()
    report.main(root=root)
    assert last_line(capsys) == "next: open report.html, then python submit.py"


def test_where_no_run_can_be_submitted_the_next_line_says_why(root, capsys):
    for name in ("baseline", "better", "lucky", "worse"):
        (root / "runs" / name / "fold1" / "manifest.json").unlink()
    report.main(root=root)
    expected = "run baseline is left out: fold 1 is not trained: run train.py --fold 1"
    assert last_line(capsys) == f"next: open report.html; no run can be submitted yet: {expected}"


def test_a_data_check_that_is_none_is_named(root, capsys):
    (root / "data_check.json").write_text('{"errors": 5}')
    report.main(root=root)
    assert "warning: data_check.json: damaged: run python make_folds.py --check" in section(root, "Data check")


def test_findings_of_the_data_check_are_kept_also_those_that_stop_it(root, capsys):
    (root / "data" / "train_images" / "i007.png").write_bytes(b"no image")
    with pytest.raises(UserError):
        make_folds.main(root=root, overwrite=True)
    report.main(root=root)
    found = section(root, "Data check")
    assert re.search(r"error data/train_images/i007\.png: ", found)
    assert str(root) not in texts(root)


def test_two_runs_are_compared_alone_on_the_rows_of_both(root, capsys):
    report.main(compare=["better", "worse"], root=root)
    out = capsys.readouterr().out
    one, folds, targets = read(root, "better")
    other = read(root, "worse")[0]
    value, low, high = paired_difference(ACCURACY, targets.values, one.oof, other.oof, folds.group_or_none)
    said = f"better minus worse, accuracy of 48 rows: {value:+.5f}, 95% interval {low:+.5f} to {high:+.5f}: "
    assert said in out
    assert said in section(root, "better against worse")
    assert "lucky" not in texts(root)
    counts = re.findall(r"(?:both right|only \S+ right|both wrong) (\d+)", section(root, "better against worse"))
    assert sum(map(int, counts)) == 48
    with pytest.raises(UserError, match="the same run is named twice"):
        report.main(compare=["better", "better"], root=root)


def test_one_of_two_runs_that_are_compared_can_be_shown_in_detail(root, capsys):
    report.main(runs=["worse"], compare=["better", "worse"], root=root)
    assert "in detail: worse" in texts(root)
    assert "better minus worse" in capsys.readouterr().out


@pytest.mark.parametrize(("runs", "compare"), [(["nothing"], ()), ((), ["better", "nothing"])])
def test_a_run_that_is_not_there_is_named(root, runs, compare):
    with pytest.raises(UserError, match="run 'nothing': no such run .* there are baseline, better, lucky, worse"):
        report.main(runs=runs, compare=compare, root=root)


def test_only_the_settings_that_differ_are_listed(root, capsys):
    report.main(root=root)
    found = section(root, "Settings")
    assert re.search(r"lr 0\.0003 0\.0003 0\.123 0\.0003", found)
    assert "batch_size" not in found


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["baseline"], "runs are named behind --run"),
        (["--fold", "1"], "are for --augment-preview"),
        (["--config", "configs/x.yaml", "--compare", "a", "b"], "are for --augment-preview"),
        (["--run", "a", "--log-lb", "a", "0.5"], "--run is for the page"),
        (["--augment-preview", "--run", "a"], "--run is for the page"),
    ],
)
def test_words_that_would_change_nothing_are_refused(words, meant, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["report.py", *words])
    with pytest.raises(SystemExit) as ended:
        report.parse_arguments()
    assert ended.value.code == 2
    assert meant in capsys.readouterr().err


def test_words_that_belong_together_are_taken(monkeypatch):
    for line in ("", "--run a b", "--run a --compare a b", "--log-lb a -0.5", "--augment-preview --fold 1 lr=1e-3"):
        monkeypatch.setattr("sys.argv", ["report.py", *line.split()])
        report.parse_arguments()


# The leaderboard's scores


def test_a_leaderboard_score_is_recorded_digit_by_digit_and_shown(root, capsys):
    before = {row["run"]: row for row in read_ledger(root / "runs" / "ledger.csv")}
    report.log_score("better", "0.87345678", root=root)
    after = {row["run"]: row for row in read_ledger(root / "runs" / "ledger.csv")}
    assert after["better"] == {**before["better"], "leaderboard": "0.87345678"}
    assert after["worse"] == before["worse"]
    report.main(root=root)
    assert "0.87345678" in section(root, "Leaderboard")
    assert "too few for a rank correlation" in section(root, "Cross-validation and leaderboard")


def test_a_score_of_no_run_or_no_number_is_refused(root):
    with pytest.raises(UserError, match="no row of run 'nothing': there are baseline"):
        report.log_score("nothing", "0.5", root=root)
    for score in ("nan", "inf", "best", "1_0", "0_5", "1e999", ""):
        with pytest.raises(
            UserError, match=f"--log-lb better {score}: not a number: write the leaderboard's score, such"
        ):
            report.log_score("better", score, root=root)
    with pytest.raises(UserError, match="not a number: write 0.5, with a point for the comma"):
        report.log_score("better", "0,5", root=root)


@pytest.mark.parametrize(
    ("cell", "remedy"),
    [("0,873", "write 0.873, with a point for the comma"), ("0_873", "write the leaderboard's score, such as 0.873")],
)
def test_a_hand_written_score_that_is_no_number_is_named_and_known_nowhere(root, cell, remedy, capsys):
    path = root / "runs" / "ledger.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    row = int(table.index[table["run"] == "better"][0])
    table.loc[row, "leaderboard"] = cell
    table.loc[table["run"] == "worse", "leaderboard"] = " 0.5 "
    table.to_csv(path, index=False, lineterminator="\r\n")
    report.main(root=root)
    captured = capsys.readouterr()
    expected = f"runs/ledger.csv: row {row + 2} (run 'better'): leaderboard is not a number ('{cell}'): {remedy}"
    assert captured.err.splitlines() == [f"warning: {expected}"]
    assert expected in section(root, "Leaderboard")
    assert cell not in section(root, "Leaderboard").replace(expected, "")
    assert cell not in captured.out
    assert re.search(r"^worse .* 0\.5$", captured.out, re.MULTILINE)
    public = section(root, "Cross-validation and leaderboard")
    assert "1 run: too few" in public
    assert " worse " in public
    assert "better 0." not in public


def test_a_ledger_that_a_comma_broke_is_named_and_the_rest_still_shows(root, capsys):
    path = root / "runs" / "ledger.csv"
    first, row, *others = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([first, f"{row}0,873", *others]) + "\n", encoding="utf-8")
    report.main(root=root)
    expected = "warning: runs/ledger.csv: row 2 has more cells than the header: mend it (a number has a point)"
    assert capsys.readouterr().err.splitlines() == [expected]
    assert "Confusion: better" in texts(root)


def test_a_row_that_somebody_changed_is_not_sealed_again(root):
    path = root / "runs" / "ledger.csv"
    path.write_bytes(path.read_bytes().replace(b"321", b"999"))
    with pytest.raises(UserError, match="the row of run 'better' is damaged or was edited"):
        report.log_score("better", "0.5", root=root)


def entry(name: str, by_fold: dict[int, float], public: str = "") -> Entry:
    pooled = float(np.mean(list(by_fold.values())))
    scores = FoldScores(by_fold, pooled, pooled - 0.01, pooled + 0.01)
    return Entry(RunFound(name, np.zeros((1, 1))), scores, 1, None, {"leaderboard": public})


def test_a_gain_that_is_smaller_than_the_noise_of_the_folds_is_warned_of():
    base = entry("baseline", {0: 0.80, 1: 0.90, 2: 0.70})
    steady = entry("steady", {0: 0.81, 1: 0.915, 2: 0.712})  # the folds differ much, the gains do not
    shaky = entry("shaky", {0: 0.90, 1: 0.85, 2: 0.71})
    loss = entry("loss", {0: 0.70, 1: 0.95, 2: 0.70})
    warnings = noise_warnings([steady, shaky, base, loss], "baseline", ACCURACY)
    assert len(warnings) == 1
    gains = np.array([0.10, -0.05, 0.01])
    assert f"shaky over baseline: the gain in CV, {gains.mean():+.5f}" in warnings[0]
    assert f"the fold noise, {gains.std(ddof=1):.5f}" in warnings[0]


@pytest.mark.parametrize(("public", "rank", "is_warned"), [((0.1, 0.2, 0.4), 1, False), ((0.4, 0.2, 0.1), -1, True)])
def test_cross_validation_is_held_against_the_leaderboard_by_ranks(public, rank, is_warned):
    entries = [entry(f"r{number}", {0: 0.5 + number / 10}, str(score)) for number, score in enumerate(public)]
    parts = public_section(entries, "r0", ACCURACY).parts
    said = next(part.text for part in parts if hasattr(part, "text"))
    assert f"over 3 runs: {rank:.5f}" in said
    assert said.startswith("warning: ") == is_warned
    assert any(isinstance(part, Picture) for part in parts)


# What the second level leaves


def test_rounds_choices_blends_and_importance_of_real_runs_are_shown(tmp_path, capsys):
    root = Path(shutil.copytree(finished_runs(), tmp_path / "real"))
    report.main(runs=["stack"], root=root)
    assert capsys.readouterr().err == ""
    rounds = section(root, "Pseudo-labels")
    taken = [pd.read_parquet(root / "runs" / "baseline-p1" / f"fold{number}" / "pseudo.parquet") for number in range(3)]
    rows = re.findall(r" (\d) (\d+) (\d+) (\d+)(?= )", rounds.partition("fold 2")[2])
    assert [sum(int(row[1 + number]) for row in rows) for number in range(3)] == [len(table) for table in taken]
    choices = section(root, "Weights and views")
    assert "snapshots 0." in choices
    assert "taken" in choices
    blends = section(root, "Blends and stacks")
    assert "stack: lightgbm of baseline, baseline-p1" in blends
    assert "correlation of errors" in blends
    assert "what LightGBM looked at" in blends
    assert "baseline-p1 accuracy" not in blends
    assert "fold 2" in section(root, "Learning curves")
