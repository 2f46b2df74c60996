"""kfold/seals.py: whatever a kill leaves fits its seal, and whatever else changes is named."""

import os
import subprocess
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kfold import seals
from kfold.errors import UserError
from kfold.ledger import check_ledger, read_ledger, record_run
from kfold.seals import check_seals, refuse_broken_seal, remove_sealed, write_sealed

LEDGER_ROW = {
    "run": "a",
    "metric": "accuracy",
    "oof": 0.95,
    "oof_low": 0.94,
    "fold_scores": "0.94 0.96",
    "minutes": 1.5,
}


class Killed(BaseException):
    pass


def steps_of(monkeypatch, work, killed_at: int) -> bool:
    """Do the work, killed before its write, replacement or deletion of that number; whether it came that far."""
    number = 0

    def before(real):
        def step(*arguments, **options):
            nonlocal number
            number += 1
            if number > killed_at:
                raise Killed
            return real(*arguments, **options)

        return step

    with monkeypatch.context() as patch:
        for module, name in ((os, "replace"), (os, "fsync"), (seals, "atomic_write")):
            patch.setattr(module, name, before(getattr(module, name)))
        try:
            work()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("work", ["first", "again", "the same", "remove"])
def test_a_kill_at_any_step_leaves_files_that_fit_their_seals(work, tmp_path, monkeypatch):
    point, was_killed = 0, True
    while was_killed:
        folder = tmp_path / str(point)
        write_sealed(folder / "other", "other")
        path = folder / "config.yaml"
        if work != "first":
            write_sealed(path, "old")
        new = {"the same": "old"}.get(work, "new")
        did = partial(remove_sealed, path) if work == "remove" else partial(write_sealed, path, new)
        was_killed = steps_of(monkeypatch, did, point)
        assert check_seals(folder)[1] == []
        if path.exists():
            assert path.read_text() in ("old", new)
        did()  # run again, it comes to the end
        names, problems = check_seals(folder)
        assert (names, problems) == ({"other"} | ({"config.yaml"} if work != "remove" else set()), [])
        point += 1
    assert point > 5


def test_the_file_is_read_by_sha256sum(tmp_path):
    write_sealed(tmp_path / "a b.csv", "x\n")
    write_sealed(tmp_path / "b.json", b"{}")
    try:
        done = subprocess.run(
            ["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=tmp_path, capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("no sha256sum here")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a b.csv: OK\nb.json: OK\n"


def test_a_changed_and_a_missing_file_are_named_and_others_are_not(tmp_path):
    for name in ("a", "b", "c"):
        write_sealed(tmp_path / name, name)
    (tmp_path / "a").write_text("A")
    (tmp_path / "b").unlink()
    names, problems = check_seals(tmp_path)
    assert names == {"a", "b", "c"}
    assert [problem.split(":")[0] for problem in problems] == [str(tmp_path / "a"), str(tmp_path / "b")]
    with pytest.raises(UserError, match="a: damaged or changed"):
        refuse_broken_seal(tmp_path / "a")
    refuse_broken_seal(tmp_path / "c")
    refuse_broken_seal(tmp_path / "unlisted")


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_any_changed_byte_of_the_seals_is_seen(tmp_path_factory, place, byte):
    folder = tmp_path_factory.mktemp("run")
    write_sealed(folder / "a", "a")
    path = folder / "SHA256SUMS"
    content = bytearray(path.read_bytes())
    place %= len(content)
    is_same = content[place] == byte
    content[place] = byte
    path.write_bytes(content)
    assert bool(check_seals(folder)[1]) != is_same


def test_a_damaged_line_is_not_mended_by_the_next_write(tmp_path):
    write_sealed(tmp_path / "a", "a")
    (tmp_path / "a").write_text("A")
    write_sealed(tmp_path / "b", "b")
    assert "a: damaged" in check_seals(tmp_path)[1][0]


# The ledger


@pytest.fixture
def ledger(tmp_path):
    path = tmp_path / "runs" / "ledger.csv"
    record_run(path, LEDGER_ROW)
    record_run(path, {**LEDGER_ROW, "run": "b", "config_difference": "lr=0.1, epochs=3"})
    return path


def test_a_leaderboard_score_and_own_columns_are_no_damage(ledger):
    assert check_ledger(ledger) == []
    header, *rows = ledger.read_text().splitlines()
    text = "\r\n".join([header + ",my notes", *(f'{row}0.93,"good, I think"' for row in rows)]) + "\r\n"
    ledger.write_bytes("\ufeff".encode() + text.encode())  # as a spreadsheet saves it
    assert check_ledger(ledger) == []
    assert read_ledger(ledger)[0]["leaderboard"] == "0.93"
    record_run(ledger, {**LEDGER_ROW, "oof": 0.96})
    assert check_ledger(ledger) == []
    assert [row["my notes"] for row in read_ledger(ledger)] == ["good, I think"] * 2


def test_numbers_that_a_spreadsheet_writes_otherwise_are_no_damage(ledger):
    ledger.write_text(ledger.read_text().replace(",0.95,", ",0.950,"))
    assert check_ledger(ledger) == []


def test_every_other_byte_of_the_ledger_counts(ledger):
    content = ledger.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        ledger.write_bytes(changed)
        (problem,) = check_ledger(ledger)
        assert "ledger.csv" in problem


def test_a_damaged_row_is_not_mended_when_another_is_written(ledger):
    ledger.write_text(ledger.read_text().replace("0.95", "0.98", 1))
    record_run(ledger, {**LEDGER_ROW, "run": "b"})
    (problem,) = check_ledger(ledger)
    assert "run 'a'" in problem
