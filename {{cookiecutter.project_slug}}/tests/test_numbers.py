"""What people write as a number: Python takes more for one than they mean."""

import argparse
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kfold.numbers import decimal, finite_number, is_number, number_remedy, whole

ROOT = Path(__file__).resolve().parents[1]
NONE = ["1_0", "0_873", "nan", "inf", "-Infinity", "\u0661", "0,873", "", "best", "1 000", "0x10", "1e999"]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_that_python_writes_comes_back(number):
    assert finite_number(repr(number)) == finite_number(f" {number!r} ") == decimal(repr(number)) == number
    assert is_number(repr(number))


@given(st.integers(-(10**18) + 1, 10**18 - 1))
def test_every_whole_number_comes_back(number):
    assert whole(str(number)) == number


@pytest.mark.parametrize("word", NONE)
def test_what_only_python_takes_for_a_number_is_none(word):
    assert math.isnan(finite_number(word))
    for read in (decimal, whole):
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(f"'{word}' is not a ")):
            read(word)


def test_a_comma_is_said_to_be_meant_as_a_point():
    assert number_remedy(" -0,873") == "write -0.873, with a point for the comma"
    assert number_remedy("0,8,7") == number_remedy("a,b") == "mend the cell"


def test_no_option_of_a_stage_reads_numbers_as_python_does():
    scripts = [*ROOT.glob("*.py"), *ROOT.glob("kaggle/*.py")]
    assert len(scripts) > 15
    assert [path.name for path in scripts if re.search(r"type=(int|float)\b", path.read_text(encoding="utf-8"))] == []
