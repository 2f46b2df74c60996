"""The gallery shows the rows with the highest loss and the least margin, and keeps a card for an unreadable image."""

import cv2
import numpy as np
import pytest

from kfold.data.images import decode_image, image_kind
from kfold.report.gallery import THUMBNAIL, Rows, gallery_section, losses, margins
from kfold.report.parts import Gallery


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery")
    for row in range(6):
        cv2.imwrite(str(folder / f"{row}.png"), np.full((40, 20 + 300 * (row == 5), 3), 40 * row, np.uint8))
    (folder / "2.png").write_bytes(b"<html>")
    return folder


def rows_of(folder, task, targets, predictions, names, labels=(), groups=("",) * 6):
    ids = np.array([str(row) for row in range(6)], object)
    paths = [folder / f"{row}.png" for row in range(6)]
    return Rows(
        task, targets, predictions, names, labels, ids, np.arange(6) % 3, np.array(groups, object), paths
    )  # fmt: skip


def multiclass(folder, **options):
    predictions = np.array(
        [[0.9, 0.1, 0.0], [0.1, 0.5, 0.4], [0.0, 0.0, 1.0], [0.4, 0.35, 0.25], [0.8, 0.1, 0.1], [0.34, 0.33, 0.33]]
    )
    return rows_of(folder, "multiclass", np.eye(3)[[0, 1, 0, 1, 0, 2]], predictions, ["cat", "dog", "elk"], **options)


def ids_in(gallery):
    return [card.lines[0] for card in gallery.cards]


def test_the_worst_and_the_most_doubtful_come_first(folder):
    worst, doubtful = gallery_section(multiclass(folder)).parts
    assert ids_in(worst) == ["2", "5", "3", "1", "4", "0"]
    assert ids_in(doubtful) == ["5", "3", "1", "4", "0", "2"]
    assert ids_in(gallery_section(multiclass(folder), 2).parts[0]) == ["2", "5"]


def test_a_card_says_truth_prediction_probability_fold_and_duplicates(folder):
    section = gallery_section(multiclass(folder, groups=["g", "", "g", "g", "h", ""]))
    cards = {card.lines[0]: card for card in section.parts[0].cards}
    assert cards["3"].lines[1:] == (
        ["true dog: 0.350", "predicted cat: 0.400", "fold 0", "duplicate: looks like 2 other rows"]
    )
    assert cards["1"].lines[1:] == ["true dog: 0.500", "predicted dog, before elk: 0.400", "fold 1"]
    assert not any("duplicate" in line for line in cards["4"].lines)  # alone in its group


def test_an_unreadable_image_keeps_its_card_and_says_why(folder):
    cards = {card.lines[0]: card for card in gallery_section(multiclass(folder)).parts[0].cards}
    assert cards["2"].thumbnail == b""
    assert cards["2"].lines[-1] == "the image is a web page or text, not an image"


def test_thumbnails_are_small_jpegs_of_the_images_themselves(folder):
    cards = {card.lines[0]: card for card in gallery_section(multiclass(folder)).parts[0].cards}
    for row, shape in ((1, (40, 20, 3)), (5, (16, THUMBNAIL, 3))):
        data = cards[str(row)].thumbnail
        assert image_kind(data) == "jpg"
        pixels = decode_image(data)
        assert pixels.shape == shape
        assert abs(int(pixels.mean()) - 40 * row) <= 1


def test_each_task_has_its_loss_and_its_doubt():
    targets, predictions = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[0.9, 0.1], [0.6, 0.9]])
    expected = [-np.log(0.9), -(np.log(0.6) + np.log(0.1)) / 2]
    np.testing.assert_allclose(losses("multilabel", targets, predictions), expected)
    np.testing.assert_allclose(losses("multiclass", targets, predictions), -np.log([0.9, 0.6]))
    np.testing.assert_allclose(margins("multilabel", predictions), [0.4, 0.1])
    values = np.array([[0.0, 100.0], [2.0, 300.0]])  # standard deviations 1 and 100
    np.testing.assert_allclose(losses("regression", values, values + [[1.0, 0.0], [0.0, 50.0]]), [0.5, 0.25])
    assert np.isfinite(losses("multiclass", np.eye(2), 1 - np.eye(2))).all()


@pytest.mark.parametrize("task", ["binary", "multilabel", "regression"])
def test_every_task_has_cards(task, folder):
    num_columns = 1 if task == "binary" else 2
    values = np.linspace(0, 1, 6 * num_columns).reshape(6, num_columns)
    section = gallery_section(rows_of(folder, task, values.round(), values, ["a", "b"][:num_columns], ("no", "yes")))
    assert len(section.parts) == (1 if task == "regression" else 2)
    assert all(isinstance(part, Gallery) and len(part.cards) == 6 for part in section.parts)
    (card,) = (card for card in section.parts[0].cards if card.lines[0] == "0")
    assert (
        card.lines[1:-1]
        == {
            "binary": ["true no", "predicted no (of yes: 0.000)"],
            "multilabel": ["true none", "predicted none", "farthest off: b: 0.091"],
            "regression": ["a true 0, predicted 0", "b true 0, predicted 0.090909"],
        }[task]
    )
