"""kfold/data/check.py and make_folds.py: every problem of the data at once, errors apart from warnings."""

import cv2
import numpy as np
import pytest

import make_folds
from kfold.artifacts import Workspace
from kfold.config import Competition
from kfold.data.check import check_data
from kfold.data.targets import Targets, decode
from kfold.errors import UserError


@pytest.fixture(autouse=True)
def no_look_at_the_machine(monkeypatch):
    """Starting a process to try the device takes seconds; tests/test_doctor.py does."""
    monkeypatch.setattr(make_folds, "CHECKS", {})


def picture(seed):
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return cv2.imencode(".png", cv2.resize(small, (24, 24), interpolation=cv2.INTER_CUBIC))[1].tobytes()


@pytest.fixture
def root(tmp_path):
    """A sound competition of 12 training and 12 test images."""
    data = tmp_path / "data"
    train = "".join(f"a{row:02d},{'cat' if row % 2 else 'dog'}\n" for row in range(12))
    test = [f"b{row:02d}" for row in range(12)]
    for folder, letter, offset in (("train_images", "a", 0), ("test_images", "b", 100)):
        (data / folder).mkdir(parents=True)
        for row in range(12):
            (data / folder / f"{letter}{row:02d}.png").write_bytes(picture(offset + row))
    (data / "train.csv").write_text("image_id,label\n" + train)
    (data / "test.csv").write_text("image_id\n" + "\n".join(test) + "\n")
    (data / "sample_submission.csv").write_text("image_id,label\n" + "".join(f"{name},cat\n" for name in test))
    write_facts(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _any_machine(monkeypatch):
    """The machine has tests of its own."""
    monkeypatch.setattr(make_folds, "CHECKS", {})


def write_facts(root, **more):
    facts = {"project_name": "x", "task": "multiclass", "target_columns": "[label]", "num_folds": 3, **more}
    (root / "competition.yaml").write_text("".join(f"{key}: {value}\n" for key, value in facts.items()))


def check(root, decoder=decode, **more):
    facts = Competition(
        **{"project_name": "x", "task": "multiclass", "target_columns": ["label"], "num_folds": 3, **more}
    )
    return check_data(Workspace(root), facts, decoder)


def test_sound_data_give_no_error_and_no_warning(root):
    found = check(root)
    assert (found.errors, found.warnings) == ([], [])
    assert found.targets.values.shape == (12, 2)
    assert "train_images: 12 usable images of 12, 24 x 24 to 24 x 24 pixels" in found.notes


def test_problems_of_tables_labels_and_images_are_reported_together(root):
    data = root / "data"
    data.joinpath("train.csv").write_text(data.joinpath("train.csv").read_text().replace("a03,cat", "a03,Cat"))
    (data / "train_images" / "a00.png").write_bytes(b"")
    (data / "train_images" / "a01.png").write_text("<html>")
    (data / "train_images" / "a02.png").unlink()
    (data / "train_images" / "a07.png").write_bytes(picture(5))  # as a05, and both are cats
    (data / "test.csv").write_text((data / "test.csv").read_text() + "b99\n")
    found = check(root)
    errors = found.errors
    assert not any("equal image files" in line for line in found.warnings)  # a00 and a01 have no content to compare
    expected = [
        "sample_submission.csv: id 'b99' of test.csv is missing: download both files again",
        "a00.png: is empty (0 bytes): replace it, or set bad_train_images: drop in competition.yaml",
        "a01.png: is a web page or text, not an image",
        "a02.png: no such file",
        "train.csv: label: labels 'cat' (id 'a01', 5 rows) and 'Cat' (id 'a03', 1 row) differ only by case or spaces",
    ]
    assert len(errors) == len(expected)
    for line, part in zip(errors, expected, strict=True):
        assert part in line


def test_bad_training_images_can_be_dropped_and_bad_test_images_never_stop(root):
    (root / "data" / "train_images" / "a00.png").write_bytes(picture(0)[:200])
    (root / "data" / "test_images" / "b00.png").write_bytes(b"")
    found = check(root, bad_train_images="drop")
    assert found.errors == []
    assert len(found.warnings) == 2
    assert "a00.png: is damaged or cut short (png, 200 bytes): its row is left out of folds.csv" in found.warnings[0]
    assert "b00.png: is empty (0 bytes): it will get the prior prediction" in found.warnings[1]
    assert found.table["image_id"].tolist() == [f"a{row:02d}" for row in range(1, 12)]
    assert len(found.targets.values) == 11


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"image_suffix": ".jpg"}, "12 of 12 images are not there: the files there end with '.png', image_suffix is"),
        ({"train_images": "images"}, "images are not there: there is no such folder: unpack the images there"),
        ({"train_csv": "labels.csv"}, "labels.csv: no such file: the folder holds sample_submission.csv, test.csv"),
        ({"target_columns": ["labels"]}, "train.csv: no column 'labels': did you mean 'label'?"),
    ],
)
def test_a_wrong_setting_is_one_error_with_the_likely_cause(root, more, message):
    errors = check(root, **more).errors
    assert len(errors) == 1
    assert message in errors[0]


def test_ids_that_carry_the_suffix_are_recognised(root):
    path = root / "data" / "train.csv"
    path.write_text(path.read_text().replace(",", ".png,").replace("image_id.png", "image_id"))
    assert "the ids end with .png themselves: set image_suffix to ''" in check(root).errors[0]


def test_ids_that_leave_the_folder_are_errors(root):
    path = root / "data" / "train.csv"
    path.write_text(path.read_text().replace("a00", "../test_images/b00"))
    assert "id '../test_images/b00' leads out of" in check(root).errors[0]
    (root / "data" / "train_images" / "a03.png").write_bytes(b"")
    assert any("a03.png" in problem for problem in check(root).errors)  # one bad id does not hide other bad files


def test_a_sample_of_three_rows_is_a_warning_and_a_foreign_id_an_error(root):
    sample = root / "data" / "sample_submission.csv"
    sample.write_text("image_id,label\nb00,cat\nb01,cat\nb02,cat\n")
    found = check(root)
    assert found.errors == []
    assert "has only 3 of test.csv's 12 ids" in found.warnings[0]
    sample.write_text(sample.read_text() + "zz,cat\n")
    assert any("test.csv: id 'zz' of sample_submission.csv is missing" in line for line in check(root).errors)


def test_copies_are_found_within_train_and_across_and_conflicts_are_told(root):
    data = root / "data"
    (data / "train_images" / "a07.png").write_bytes(picture(4))  # a04's: a dog, a07 is a cat
    (data / "test_images" / "b05.png").write_bytes(picture(2))
    found = check(root)
    assert found.errors == []
    assert dict(zip(found.table["image_id"], found.duplicate_group, strict=True)) == {
        f"a{row:02d}": "a04" if row in (4, 7) else "" for row in range(12)
    }
    assert any(
        "equal image files with different labels ('a04' is 'dog', 'a07' is 'cat')" in line for line in found.warnings
    )
    assert any("1 test images are copies of training images ('b05' of 'a02')" in line for line in found.warnings)


def test_rare_labels_of_a_multilabel_task_are_a_warning(root):
    path = root / "data" / "train.csv"
    path.write_text(path.read_text().replace("a03,cat", "a03,cat owl"))
    found = check(root, task="multilabel")
    assert found.errors == []
    assert found.warnings == [
        "train.csv: label 'owl' has 1 rows, fewer than num_folds = 3: some folds have none to score"
    ]


def test_a_decoder_of_the_user_that_returns_other_rows_is_named(root):
    errors = check(root, lambda table, facts: Targets(np.zeros((3, 2), np.float32), ("a", "b"))).errors
    assert "competition.py: decode_targets must return finite values of 12 rows and 2 columns" in errors[0]


def test_long_lists_are_cut(root):
    for path in (root / "data" / "train_images").iterdir():
        path.write_bytes(b"")
    data = root / "data"
    rows = "".join(f"n{row},cat\n" for row in range(30))
    (data / "train.csv").write_text("image_id,label\n" + rows)
    for row in range(30):
        (data / "train_images" / f"n{row}.png").write_bytes(b"")
    errors = check(root).errors
    assert len([line for line in errors if "is empty" in line]) == 20
    assert "... and 10 more of this kind" in errors


# make_folds.py


def test_make_folds_writes_once_and_says_so(root, capsys):
    make_folds.main(root)
    content = (root / "folds.csv").read_bytes()
    assert "overlaps between folds: groups 0, copies 0" in capsys.readouterr().out
    write_facts(root, fold_seed=1)
    make_folds.main(root)
    assert "already there, nothing to do" in capsys.readouterr().out
    assert (root / "folds.csv").read_bytes() == content
    make_folds.main(root, overwrite=True)
    assert "runs made with the old ones will be refused" in capsys.readouterr().err
    assert (root / "folds.csv").read_bytes() != content


def test_nothing_is_written_when_the_data_have_errors_or_are_only_checked(root, capsys):
    make_folds.main(root, check_only=True)
    assert "the check of data and machine found no errors" in capsys.readouterr().out
    (root / "data" / "train_images" / "a00.png").unlink()
    with pytest.raises(UserError, match=r"a00.png: no such file"):
        make_folds.main(root)
    assert not (root / "folds.csv").exists()


def test_the_check_tells_of_classes_too_rare_for_the_folds(root):
    write_facts(root, num_folds=7)
    with pytest.raises(UserError, match="class 'cat' has 6 rows, fewer than num_folds = 7"):
        make_folds.main(root, check_only=True)


def test_the_check_compares_existing_folds_with_the_data(root, capsys):
    make_folds.main(root)
    lines = (root / "folds.csv").read_text().splitlines()
    fold_of = {line.split(",")[0]: line.split(",")[1] for line in lines[1:]}
    apart = next(name for name in fold_of if fold_of[name] != fold_of["a00"])
    (root / "data" / "train_images" / f"{apart}.png").write_bytes(picture(0))
    make_folds.main(root, check_only=True)
    assert "copies of image 'a00' lie in several folds" in capsys.readouterr().err
    (root / "folds.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UserError, match="id 'a11' of train.csv is missing"):
        make_folds.main(root, check_only=True)
