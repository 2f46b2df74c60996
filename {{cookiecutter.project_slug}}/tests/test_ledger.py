"""The ledger: one row a run, kept whole, safe to open in a spreadsheet."""

import csv
from concurrent.futures import ThreadPoolExecutor

import pytest

from kfold.errors import UserError
from kfold.ledger import COLUMNS, read_ledger, record_run

ROW = {
    "run": "baseline",
    "config_difference": "lr=0.001",
    "metric": "r2",
    "oof": 0.98765432,
    "oof_low": 0.98,
    "oof_high": float("nan"),
    "fold_scores": "0.98 0.99",
    "minutes": 1.5,
    "images_per_second": 812.0,
}


def cells(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_a_run_has_one_row_in_the_contracted_columns(tmp_path):
    path = tmp_path / "runs" / "ledger.csv"
    record_run(path, ROW)
    header, row = cells(path)
    assert tuple(header) == COLUMNS
    found = dict(zip(header, row, strict=True))
    assert (found["oof"], found["oof_high"], found["leaderboard"]) == ("0.987654", "", "")
    assert len(found["finished_at"]) == len("2026-01-01 00:00:00")


def test_recording_again_replaces_the_row_in_place(tmp_path):
    path = tmp_path / "ledger.csv"
    for run in ("a", "b", "c"):
        record_run(path, {**ROW, "run": run})
    record_run(path, {**ROW, "run": "b", "oof": 0.5})
    assert [(row["run"], row["oof"]) for row in read_ledger(path)] == [
        ("a", "0.987654"),
        ("b", "0.5"),
        ("c", "0.987654"),
    ]


def test_a_leaderboard_score_and_own_columns_entered_by_hand_stay(tmp_path):
    path = tmp_path / "ledger.csv"
    record_run(path, ROW)
    rows = cells(path)
    rows[0].append("my notes")
    rows[1][COLUMNS.index("leaderboard")] = "0.971"
    rows[1].append("try again, with flips")
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    record_run(path, {**ROW, "oof": 0.99})
    record_run(path, {**ROW, "run": "next"})
    first, second = read_ledger(path)
    assert (first["oof"], first["leaderboard"], first["my notes"]) == ("0.99", "0.971", "try again, with flips")
    assert (second["leaderboard"], second["my notes"]) == ("", "")
    record_run(path, {**ROW, "leaderboard": 0.98})
    assert read_ledger(path)[0]["leaderboard"] == "0.98"


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "-0.1 -0.2"])
def test_a_cell_that_a_spreadsheet_would_run_gets_an_apostrophe(tmp_path, text):
    path = tmp_path / "ledger.csv"
    record_run(path, {**ROW, "config_difference": text})
    assert cells(path)[1][COLUMNS.index("config_difference")] == f"'{text}"
    record_run(path, {**ROW, "run": "other"})  # rows that are only copied are not guarded twice
    assert cells(path)[1][COLUMNS.index("config_difference")] == f"'{text}"
    assert read_ledger(path)[0]["config_difference"] == text


def test_negative_numbers_stay_numbers(tmp_path):
    path = tmp_path / "ledger.csv"
    record_run(path, {**ROW, "oof": -0.25, "oof_low": -1e-9})
    row = cells(path)[1]
    assert row[COLUMNS.index("oof")] == "-0.25"
    assert float(row[COLUMNS.index("oof_low")]) == -1e-9


def test_text_with_commas_quotes_and_line_ends_survives(tmp_path):
    path = tmp_path / "ledger.csv"
    text = 'a,"b"\nc; é 漢'
    record_run(path, {**ROW, "config_difference": text})
    record_run(path, {**ROW, "run": "other"})
    assert read_ledger(path)[0]["config_difference"] == text


def test_runs_that_finish_at_once_all_keep_their_row(tmp_path):
    path = tmp_path / "ledger.csv"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: record_run(path, {**ROW, "run": f"run{number}"}), range(24)))
    assert sorted(row["run"] for row in read_ledger(path)) == sorted(f"run{number}" for number in range(24))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"run;oof\na;1\n", "no column 'run'"),
        (b"", "no column 'run'"),
        (b"run,oof\na,1,2\n", "row 2 has more cells"),
        (b"run,oof\n\xff,1\n", "not UTF-8"),
    ],
)
def test_a_file_that_is_no_ledger_any_more_is_named_and_kept(tmp_path, content, expected):
    path = tmp_path / "ledger.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        record_run(path, ROW)
    assert path.read_bytes() == content


def test_a_row_must_name_its_run_and_known_columns(tmp_path):
    with pytest.raises(ValueError, match="no run"):
        record_run(tmp_path / "ledger.csv", {"oof": 1.0})
    with pytest.raises(ValueError, match="typo"):
        record_run(tmp_path / "ledger.csv", {**ROW, "typo": 1})
