"""Tables for spreadsheets: no cell is a formula, every text comes back, and no stage forgets it."""

import csv
import io
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kfold.ensemble.gbdt import Stacker
from kfold.ensemble.stack_files import error_correlation, write_trees
from kfold.numbers import is_number
from kfold.report.spreadsheet import guard, to_spreadsheet, unguard

REPOSITORY = Path(__file__).resolve().parents[1]
FORMULAS = ["=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1+1", "\uff20SUM(A1)"]
STARTS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("'=+-@\t1"), max_size=8)


@given(TEXTS)
@example("'=1")
@example("''-x")
@settings(deadline=None)
def test_no_guarded_cell_starts_a_formula_and_every_text_comes_back(text):
    guarded = guard(text)
    assert not guarded.startswith(STARTS) or is_number(guarded)
    assert unguard(guarded) == text
    assert guard("-1.5e-3") == "-1.5e-3"
    assert guard("-1_0") == "'-1_0"  # no number but in Python


@pytest.mark.parametrize("formula", [*FORMULAS, "harmless\r=1+1", "harmless\n=1+1"])
def test_formulas_are_guarded_wherever_a_table_holds_them(formula):
    table = pd.DataFrame({"name": [formula, "cat"], formula: [-0.25, 3.0]}, index=[formula, "dog"])
    header, first, second = csv.reader(io.StringIO(to_spreadsheet(table, "run"), newline=""))
    mark = "" if formula.startswith("h") else "'"
    assert header == ["run", "name", f"{mark}{formula}"]
    assert first == [f"{mark}{formula}", f"{mark}{formula}", "-0.25"]
    assert second == ["dog", "cat", "3.0"]


def test_a_table_without_formulas_is_the_one_that_pandas_writes():
    table = pd.DataFrame({"name": ["a", None, "x=1"], "gain": [1.5, np.nan, -2.0], "chosen": [True, False, True]})
    assert to_spreadsheet(table) == table.to_csv(index=False, lineterminator="\r\n")


def test_names_of_columns_and_runs_are_guarded_in_a_stacks_tables(tmp_path):
    formula = "=HYPERLINK(A1)"
    stacker = Stacker(SimpleNamespace(names=[formula]), (0.5,), pd.DataFrame())
    write_trees(tmp_path, stacker, [], [])
    assert pd.read_csv(tmp_path / "feature_map.csv")["name"].tolist() == [f"'{formula}"]
    table = error_correlation({formula: np.eye(3), "b": np.ones((3, 3))}, np.zeros((3, 3)))
    assert to_spreadsheet(table, "run").startswith(f"run,'{formula},b\r\n'{formula},")


def test_only_files_for_programs_are_written_past_the_guard():
    """A new table that people open must go through to_spreadsheet; one for programs is entered here."""
    for_programs = {"demo_data.py", "submit.py", "kfold/ensemble/stack_inputs.py", "kfold/report/spreadsheet.py"}
    code = [path for path in REPOSITORY.rglob("*.py") if path.relative_to(REPOSITORY).parts[0] in CODE]
    assert len(code) > 30
    writers = {
        path.relative_to(REPOSITORY).as_posix()
        for path in code
        if re.search(r"\.to_csv\(", path.read_text(encoding="utf-8"))
    }
    assert writers == for_programs


CODE = {"kfold", *(path.name for path in REPOSITORY.glob("*.py"))}
