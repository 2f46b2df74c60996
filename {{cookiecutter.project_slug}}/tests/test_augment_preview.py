"""The preview shows what training is given, to the byte: the same images, draws, sizes and mixing."""

import inspect
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_pipeline import prepare

import report
import train
from kfold.artifacts import Workspace
from kfold.data.images import decode_image, read_image
from kfold.rehearsal import augment_preview
from kfold.rehearsal.augment_preview import describe, shown_epochs
from kfold.report.augment_preview import GAP, LEAST, LINE, Cell, SheetRow, draw_sheet, enlarged, fitted
from kfold.training import step

EPOCHS, BATCHES = 3, 3


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("base"), "multiclass", 60, 12, epochs=EPOCHS, batch_size=13)


def given_to_the_model(root, words, monkeypatch):
    """Pixels and targets of each step of a training, in order."""
    pixels, targets = [], []
    normalize, standardized = step.normalize, step.standardized
    monkeypatch.setattr(
        step, "normalize", lambda images, *rest: (pixels.append(images.numpy().copy()), normalize(images, *rest))[1]
    )
    monkeypatch.setattr(
        step,
        "standardized",
        lambda values, card: (targets.append(values.numpy().copy()), standardized(values, card))[1],
    )
    train.main(fold="0", overrides=words, root=root)
    assert len(pixels) == len(targets) == EPOCHS * BATCHES
    return pixels, targets


def previewed(root, words, monkeypatch):
    """The rows of the sheet; the sheet itself is written as well."""
    rows = []

    def note(title, headings, sheet_rows, size):
        rows.extend(sheet_rows)
        return draw_sheet(title, headings, sheet_rows, size)

    monkeypatch.setattr(augment_preview, "draw_sheet", note)
    train.main(fold="0", overrides=words, root=root, rehearsal="augment_preview")
    return rows


@pytest.mark.parametrize(
    "words",
    [
        ["augment=heavy", "mixing=[mixup,cutmix]", "plain_epochs=1", "hflip=true"],
        ["multi_scale=[24,32,40]", "cache=jpeg", "sampler=balanced"],
    ],
    ids=["mixed", "sizes"],
)
def test_every_image_of_the_preview_is_one_that_the_model_got(words, base, tmp_path, monkeypatch, capsys):
    root = shutil.copytree(base, tmp_path / "copy")
    for path in (root / "data" / "train_images").iterdir():  # larger than what is trained on, so that `cache` matters
        noise = np.random.default_rng(len(path.name)).integers(0, 60, (160, 120, 3))
        cv2.imwrite(str(path), (cv2.resize(cv2.imread(str(path)), (120, 160)) // 2 + noise).astype(np.uint8))
    before = previewed(root, words, monkeypatch)
    assert "6 images as training sees them" in capsys.readouterr().out
    pixels, targets = given_to_the_model(root, [*words, "workers=2"], monkeypatch)
    num_found = 0
    for row in before:
        for epoch, cell in zip(shown_epochs(EPOCHS), row.cells, strict=True):
            steps = range(epoch * BATCHES, (epoch + 1) * BATCHES)
            equal = [
                (number, place)
                for number in steps
                for place in range(len(pixels[number]))
                if cell.pixels is not None and np.array_equal(pixels[number][place], cell.pixels)
            ]
            assert (len(equal) > 0) == (cell.pixels is not None)
            for number, place in equal:
                names = tuple("0123456789")
                assert cell.label == describe("multiclass", names, targets[number][place])
            num_found += bool(equal)
    assert num_found > 10
    for old, new in zip(before, previewed(root, words, monkeypatch), strict=True):  # of the run, once it is there
        assert all(np.array_equal(*(cell.pixels for cell in cells)) for cells in zip(old.cells, new.cells, strict=True))


def test_the_file_stands_beside_it_and_the_sheet_lies_in_the_runs_folder(base, tmp_path, monkeypatch):
    root = shutil.copytree(base, tmp_path / "copy")
    rows = previewed(root, ["epochs=1"], monkeypatch)
    workspace = Workspace(root)
    assert workspace.augment_preview_path("baseline").read_bytes().startswith(b"\x89PNG")
    assert not workspace.run_config_path("baseline").exists()  # nothing is registered
    assert not (root / "cache").exists()
    for row in rows:
        path = root / "data" / "train_images" / f"{row.original.label}.png"
        assert np.array_equal(row.original.pixels, read_image(path))
        assert len(row.cells) == 1


@pytest.mark.parametrize("size", [24, 130])
def test_the_pixels_of_a_cell_are_those_of_the_sheet(size):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, size, size, 3)).astype(np.uint8)
    rows = [SheetRow(Cell(few[0], "a $name$"), [Cell(few[1], "x"), Cell(None, "left out")]) for few in images]
    sheet = decode_image(draw_sheet("title", ["epoch 1", "epoch 2"], rows, size))
    zoom = -(-LEAST // size)
    side = size * zoom
    for number, row in enumerate(rows):
        top = 2 * LINE + number * (side + LINE + GAP) + LINE
        for column, expected in enumerate([fitted(row.original.pixels, side), enlarged(row.cells[0].pixels, zoom)]):
            left = GAP + column * (side + GAP)
            assert np.array_equal(sheet[top : top + side, left : left + side], expected)
        left = GAP + 2 * (side + GAP)
        assert (sheet[top : top + side, left : left + side] == 255).all()


def test_a_long_title_is_broken_and_no_text_runs_over_its_place():
    image = np.zeros((LEAST, LEAST, 3), np.uint8)
    rows = [SheetRow(Cell(image, "M" * 40), [Cell(image, "W" * 40)])]
    short, long = (
        decode_image(draw_sheet(title, ["W" * 40], rows, LEAST)) for title in ("W", " ".join(["mixing=WWWW"] * 9))
    )
    lines = -(-9 // ((2 * LEAST + GAP) // 6 // 12))  # each word has 11 letters and a space, each letter 6 pixels
    assert len(long) == len(short) + (lines - 1) * LINE
    for number in range(lines):
        assert (long[number * LINE : (number + 1) * LINE] < 128).any()
    assert (long[:, -GAP:] == 255).all()
    assert (long[:, GAP + LEAST : GAP + LEAST + GAP][(lines + 1) * LINE :] == 255).all()


def test_report_asks_train_for_it_and_says_what_comes_next(monkeypatch, capsys):
    given, signature = {}, inspect.signature(train.main)
    monkeypatch.setattr(train, "main", lambda *some, **named: given.update(signature.bind(*some, **named).arguments))
    report.preview(Path("configs/other.yaml"), "1", ["lr=1e-3", "loss=[focal, lovasz]"])
    assert given == {
        "fold": "1",
        "config_path": Path("configs/other.yaml"),
        "overrides": ["lr=1e-3", "loss=[focal, lovasz]"],
        "rehearsal": "augment_preview",
    }
    next_line = (
        "next: look at it, then python train.py --config configs/other.yaml --fold 1 lr=1e-3 'loss=[focal, lovasz]'"
    )
    assert capsys.readouterr().out.splitlines() == [next_line]


def test_labels_are_said_as_the_loss_gets_them():
    assert describe("multiclass", ("cat", "dog"), np.array([0.0, 1.0])) == "dog"
    assert describe("multiclass", ("cat", "dog"), np.array([0.25, 0.75])) == "dog 0.75, cat 0.25"
    assert describe("multilabel", ("cat", "dog"), np.array([0.0, 0.0])) == "no label"
    assert describe("regression", ("age", "size"), np.array([3.0, 0.125])) == "age 3, size 0.125"
