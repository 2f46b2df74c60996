"""The confusion matrix keeps every row, and stays readable however many classes there are."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sklearn.metrics import recall_score

from kfold.report.confusion import WORST_CLASSES, confusion_section, drawn_part, row_shares, worst_classes, worst_pairs
from kfold.report.parts import Picture, Table


def simulate(num_classes, num_rows=4000, seed=0):
    generator = np.random.default_rng(seed)
    truth = generator.integers(num_classes, size=num_rows)
    decided = np.where(generator.random(num_rows) < 0.7, truth, generator.integers(num_classes, size=num_rows))
    return truth, decided


def counts_of(truth, decided, num_classes):
    counts = np.zeros((num_classes, num_classes), int)
    np.add.at(counts, (truth, decided), 1)
    return counts


@pytest.mark.parametrize("num_classes", [2, 10, 200])
def test_rows_sum_to_the_class_counts(num_classes):
    truth, decided = simulate(num_classes)
    counts = counts_of(truth, decided, num_classes)
    chosen = worst_classes(counts)
    shown = drawn_part(counts, chosen)
    assert shown.sum(axis=1).tolist() == np.bincount(truth, minlength=num_classes)[chosen].tolist()
    np.testing.assert_allclose(row_shares(shown).sum(axis=1), 1)
    recalls = recall_score(truth, decided, average=None)[chosen]
    np.testing.assert_allclose(np.diag(row_shares(shown)), recalls)
    assert len(chosen) == (WORST_CLASSES if num_classes == 200 else num_classes)


def test_the_worst_classes_are_those_with_the_most_wrong_rows():
    counts = 100 * np.eye(50, dtype=int)
    counts[7, 31] = counts[40, 31] = 9  # 31 is right about its own rows, and wrong about others
    assert {7, 31, 40} <= set(worst_classes(counts))
    assert worst_pairs(counts) == [(7, 31, 9, 9 / 109), (40, 31, 9, 9 / 109)]


@pytest.mark.parametrize("num_classes", [2, 10, 200])
def test_a_picture_of_any_number_of_classes_is_drawn_with_their_names_on_it(num_classes):
    names = [f"$class_{number}$" if number % 2 else f"_{number}" for number in range(num_classes)]  # no formulas
    section = confusion_section(*simulate(num_classes), names)
    pictures = [part for part in section.parts if isinstance(part, Picture)]
    assert len(pictures) == 2
    for picture in pictures:
        assert max(picture.figure.get_size_inches()) < 16
        FigureCanvasAgg(picture.figure).draw()
        drawn = [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]
        assert drawn == [name for name in names if name in drawn]
        assert len(drawn) == min(num_classes, WORST_CLASSES)


def test_the_pairs_are_said_in_words_and_a_perfect_model_has_none():
    truth = np.array([0, 0, 1, 1, 2])
    section = confusion_section(truth, np.array([0, 1, 1, 0, 0]), ["a", "b", "c"])
    (table,) = (part for part in section.parts if isinstance(part, Table))
    assert table.rows[0] == ("a", "b", "1", "50.0%")
    assert len(table.rows) == 3
    perfect = confusion_section(truth, truth, ["a", "b", "c"])
    assert not any(isinstance(part, Table) for part in perfect.parts)
    assert "5 of 5" in perfect.parts[0].text


def test_a_class_that_never_occurs_has_a_row_of_zeros():
    counts = counts_of(np.array([0, 0, 2]), np.array([0, 2, 2]), 3)
    assert row_shares(counts)[1].tolist() == [0, 0, 0]
    confusion_section(np.array([0, 0, 2]), np.array([0, 2, 2]), ["a", "b", "c"])
