"""Long work shows images and the time that is left, to somebody who looks on; each stage says what comes next."""

import io
import re

import pytest
import torch
from test_pipeline import prepare

import make_folds
import predict
import submit
import train
from kfold import intervals
from kfold.data import progress
from kfold.data.loader import Batch
from kfold.data.progress import image_bar, with_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def batches():
    for size in (8, 8, 3):
        yield Batch(*(torch.zeros(size, 1) for _ in range(4)), [])


def test_a_bar_counts_images_and_leaves_the_batches_alone(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    bars = []
    monkeypatch.setattr(progress, "image_bar", lambda *given: bars.append(image_bar(*given)) or bars[-1])
    assert [len(batch.images) for batch in with_bar(batches(), "fold 0", 19)] == [8, 8, 3]
    assert bars[0].n == 19
    with image_bar("fold 0", 19, 8) as bar:
        assert "8/19" in str(bar)
    shown = terminal.getvalue()
    assert "fold 0" in shown
    assert "image/s" in shown


def test_nothing_is_shown_where_nobody_looks_on(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    assert len(list(with_bar(batches(), "fold 0", 19))) == 3
    assert file.getvalue() == ""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("stages"), "multiclass", 60, 12, epochs=1)


def test_each_stage_ends_with_what_comes_next(root, capsys, monkeypatch):
    monkeypatch.setattr(intervals, "NUM_RESAMPLES_AT_MOST", 4)
    monkeypatch.setattr(intervals, "NUM_RESAMPLES_AT_LEAST", 4)
    ended = []
    for stage, options in (
        (make_folds, {"overwrite": True}),
        (make_folds, {}),
        (train, {"fold": "1"}),
        (train, {}),
        (predict, {}),
        (submit, {}),
    ):
        capsys.readouterr()
        stage.main(root=root, **options)
        ended.append(capsys.readouterr().out)
    assert [text.splitlines()[-1] for text in ended] == [
        "next: python train.py --fold 0",
        "next: python train.py --fold 0",
        "next: the same command with --fold all (fold 0, 2 to train)",
        "next: python predict.py --run baseline",
        "next: python submit.py --run baseline",
        "next: upload submission.csv by hand, or name kaggle_competition in competition.yaml for --upload",
    ]
    for text in ended[2:]:
        assert "    fold  accuracy\n       " in text  # a table


def test_a_training_shows_images_of_each_epoch_and_of_its_validation(root, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    train.main(fold="0", overrides=["epochs=1", "batch_size=8"], name="shown", root=root)
    shown = terminal.getvalue()
    for title, num_images in (("fold 0 epoch 1/1", 40), ("fold 0 validation", 20), ("fold0 last", 20)):
        assert re.search(rf"{title}: .*/{num_images} \[", shown)  # how far a bar came depends on the moment
