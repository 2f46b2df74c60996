"""Every pair of switches that go together, trained on a tiny model: it ends, predicts, and survives interruptions."""

import random
import shutil
from pathlib import Path

import pandas as pd
import pytest
import timm
from covering import covering_rows, pairs_of, rows_with_every_level, valid_pairs
from interrupted import fingerprint, in_pieces
from recipe_matrix import LEVELS, goes, matrix, words_of
from reliability import FULL, count
from safetensors.torch import save_file
from test_pipeline import prepare

import predict
import train

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:Detected call of"),
]
ROWS = range(len(matrix())) if FULL else rows_with_every_level(matrix())


@pytest.fixture(scope="module")
def competitions(tmp_path_factory):
    """task -> a folder with its competition; the pretrained weights are beside it."""
    made: dict[str, Path] = {}

    def competition_of(task: str) -> Path:
        if task not in made:
            root = tmp_path_factory.mktemp(task)
            made[task] = prepare(root, task, 54, 6, epochs=3, batch_size=12, hflip=False)
            save_file(timm.create_model("test_resnet").state_dict(), root / "pretrained.safetensors")
        return made[task]

    return competition_of


def test_the_rows_hold_every_pair_of_choices_that_go_together():
    factors = {factor: list(levels) for factor, levels in LEVELS.items()}
    allowed = valid_pairs(factors, goes)
    covered = set().union(*(pairs_of(row, list(LEVELS)) for row in matrix()))
    assert covered == allowed
    assert len(matrix()) < len(allowed) / 20


def test_a_pair_that_contradicts_itself_is_in_no_row():
    rows = covering_rows({"a": ["0", "1"], "b": ["0", "1"]}, valid_pairs({"a": ["0", "1"], "b": ["0", "1"]}, not_both))
    assert sorted(tuple(row.values()) for row in rows) == [("0", "0"), ("0", "1"), ("1", "0")]


def test_the_rows_of_make_test_hold_every_choice():
    rows = [matrix()[number] for number in rows_with_every_level(matrix())]
    assert set().union(*(row.items() for row in rows)) == set().union(*(row.items() for row in matrix()))
    assert len(rows) < len(matrix()) / 8


def not_both(row):
    return list(row.values()) != ["1", "1"]


@pytest.mark.parametrize("number", ROWS)
def test_switches_train_together_and_an_interruption_changes_no_byte(competitions, number):
    row = matrix()[number]
    root, words = competitions(row["task"]), words_of(row)
    shutil.rmtree(root / "runs", ignore_errors=True)  # of a row that failed
    if "pretrained=true" in words:
        words.append(f"pretrained_path={root / 'pretrained.safetensors'}")

    def start(stop=None):
        train.main(fold="0", overrides=words, name="row", root=root, stop=stop)

    start()
    undisturbed = fingerprint(root, "row")
    predict.main(run="row", root=root)
    predictions = pd.read_parquet(root / "runs" / "row" / "fold0" / "test.parquet").filter(like="p_")
    assert predictions.notna().all().all()
    shutil.rmtree(root / "runs")
    stops = in_pieces(start, random.Random(number).randint(2, 5) + count(5, 0))
    assert stops > 0
    assert fingerprint(root, "row") == undisturbed
