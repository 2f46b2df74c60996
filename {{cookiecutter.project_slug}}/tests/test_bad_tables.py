"""Tables as they come: whatever is wrong with one is named in a line, and what only looks wrong is read."""

import re
from typing import NamedTuple

import cv2
import numpy as np
import pytest

import make_folds
from kfold.errors import UserError


@pytest.fixture(autouse=True)
def no_look_at_the_machine(monkeypatch):
    """Starting a process to try the device takes seconds; tests/test_doctor.py does."""
    monkeypatch.setattr(make_folds, "CHECKS", {})


ROWS = 12
LABELS = {  # what the rows of a sound train.csv hold, in turn
    "multiclass": ("cat", "dog"),
    "binary": ("no", "yes"),
    "multilabel": ("red blue", "blue"),
    "flags": ("1,0", "0,1"),  # multilabel in two columns
    "regression": ("0.5", "-3"),
}


def train(task="multiclass"):
    labels = [LABELS[task][row % 2] for row in range(ROWS)]
    header = "image_id,red,blue,patient,day\n" if task == "flags" else "image_id,label,patient,day\n"
    return header + "".join(f"a{row:02d},{label},p{row // 2},{row}\n" for row, label in enumerate(labels))


TEST = "image_id\n" + "".join(f"b{row:02d}\n" for row in range(ROWS))
SAMPLE = "image_id,label\n" + "".join(f"b{row:02d},cat\n" for row in range(ROWS))
BIG = "x" * 150_000


class Case(NamedTuple):
    """One competition with one thing wrong: `edit` is the file's bytes, or pairs (old, new) for its sound text."""

    name: str
    file: str
    edit: object
    expected: tuple[str, ...]  # parts of one line
    task: str = "multiclass"
    facts: str = ""  # more lines of competition.yaml


REPLACED = "\N{FULLWIDTH LATIN SMALL LETTER C}at"  # NFKC turns it into cat
TIME = "fold_scheme: time\ntime_column: day"
GROUP = "group_column: patient"

# fmt: off
ERRORS = [
    # The file
    Case("missing", "train.csv", None, ("train.csv: no such file", "sample_submission.csv, test.csv")),
    Case("empty", "train.csv", b"", ("train.csv: is empty", "download")),
    Case("only blank lines", "train.csv", b"\n \r\n\n", ("train.csv: is empty",)),
    Case("only a mark", "train.csv", b"\xef\xbb\xbf", ("train.csv: is empty",)),
    Case("only an empty cell", "train.csv", b'""\n', ("train.csv: is empty",)),
    Case("header only", "train.csv", b"image_id,label,patient,day\n", ("train.csv: has a header but no rows",)),
    Case("a folder", "train.csv", "folder", ("train.csv: is a folder or a device", "put")),
    Case("a web page", "train.csv", b"<!DOCTYPE html>\n<p>Sign in</p>\n", ("train.csv: is a web page", "signed in")),
    Case("a zip", "train.csv", b"PK\x03\x04\x14\x00\x00\x00\x08\x00", ("train.csv: is a zip archive", "unpack.py")),
    Case("packed", "test.csv", b"\x1f\x8b\x08\x00\x00\x00\x00\x00", ("test.csv: is packed by gzip", "unpack it")),
    Case("a pointer", "sample_submission.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
         ("sample_submission.csv: is a pointer of Git LFS", "git lfs pull")),
    Case("UTF-16", "train.csv", train().encode("utf-16"), ("train.csv: is UTF-16", "save it as UTF-8")),
    Case("UTF-16 without a mark", "train.csv", train().encode("utf-16-le"), ("train.csv: row 1: holds a NUL",)),
    Case("UTF-32", "train.csv", train().encode("utf-32"), ("train.csv: is UTF-16", "save it as UTF-8")),
    Case("Latin-1", "train.csv", train().replace("cat", "caf\xe9").encode("latin-1"),
         ("train.csv: row 2: byte 0xe9 is not UTF-8", "save it as UTF-8")),
    Case("NUL byte", "train.csv", [("a03,dog", "a03,d\0g")], ("train.csv: row 5: holds a NUL",)),
    Case("NUL byte, old line ends", "train.csv", train().replace("a03,dog", "a03,d\0g").replace("\n", "\r").encode(),
         ("train.csv: row 5: holds a NUL",)),
    # Delimiters, quotes and rows
    Case("semicolons", "train.csv", [(",", ";")], ("train.csv: its cells are separated by semicolons", "save")),
    Case("tabs", "train.csv", [(",", "\t")], ("train.csv: its cells are separated by tabs",)),
    Case("bars", "train.csv", [(",", "|")], ("train.csv: its cells are separated by bars",)),
    Case("spaces", "train.csv", [(",", " ")], ("train.csv: no column 'image_id'",)),
    Case("a cell too many", "train.csv", [("a02,cat", "a02,x,cat")], ("train.csv: row 4: 5 cells", "header has 4")),
    Case("a cell too few", "train.csv", [("a02,cat,", "a02,")], ("train.csv: row 4: 3 cells",)),
    Case("all rows longer than the header", "train.csv", [("\na", "\n0,a")], ("train.csv: row 2: 5 cells",)),
    Case("cut off", "train.csv", train()[:-8].encode(), ("train.csv: row 13: ", "cells")),
    Case("quote never closed", "train.csv", [("a02,cat", 'a02,"cat')], ("train.csv: row 4: a quote", "close it")),
    Case("quote closed rows later", "train.csv", [("a02,cat", 'a02,"cat'), ("a04,cat", 'a04,cat"')],
         ("train.csv: row 4: label holds a line end", "quote")),
    Case("text after a quote", "train.csv", [("a02,cat", 'a02,"c"at')], ("train.csv: row 4: a quote",)),
    Case("endless cell", "train.csv", [("a02,cat", f"a02,{BIG}")], ("train.csv: row 4: ", "longer than 131072")),
    Case("mixed line ends and a short row", "train.csv", [("a00,cat,p0,0\n", "a00,cat,p0,0\r\n"), ("a01,dog,p0,1\n",
         "a01,dog,p0,1\r"), ("a03,dog,", "a03,")], ("train.csv: row 5: 3 cells",)),
    # Header
    Case("no header", "train.csv", train().partition("\n")[2].encode(), ("train.csv: no column 'image_id'",)),
    Case("target in capitals", "train.csv", [("label", "Label")], ("train.csv: no column 'label'", "mean 'Label'?")),
    Case("target with a space", "train.csv", [("label", " label")], ("train.csv: no column 'label'", "' label'")),
    Case("id column of another name", "train.csv", [("image_id", "file")], ("train.csv: no column 'image_id'",)),
    Case("group column absent", "train.csv", [("patient", "scene")], ("no column 'patient'",), facts=GROUP),
    Case("column twice", "train.csv", [("patient", "label")], ("train.csv: column 'label' occurs twice", "rename")),
    Case("id column twice", "train.csv", [("patient", "image_id")], ("train.csv: column 'image_id' occurs twice",)),
    Case("two columns without a name", "train.csv", [("patient,day", ",")], ("train.csv: column '' occurs twice",)),
    # Ids
    Case("id blank", "train.csv", [("a03", "")], ("train.csv: row 5: no image_id", "fill it in")),
    Case("id of spaces", "train.csv", [("a03", "  ")], ("train.csv: row 5: no image_id",)),
    Case("id with a space before", "train.csv", [("a03", " a03")], ("train.csv: row 5: image_id ' a03' has spaces",)),
    Case("id with a space after", "train.csv", [("a03", "a03 ")], ("train.csv: row 5: image_id 'a03 ' has spaces",)),
    Case("id with a hard space", "train.csv", [("a03", "a03\xa0")], (r"row 5: image_id 'a03\xa0' has spaces",)),
    Case("id with a line end", "train.csv", [("a03", '"a0\n3"')], ("train.csv: row 5: image_id holds a line end",)),
    Case("id twice, same label", "train.csv", [("a02,cat,p1,2", "a00,cat,p0,0")], ("'a00' is on rows 2, 4, equal",)),
    Case("id twice, other label", "train.csv", [("a03,dog", "a00,dog")], ("'a00' is on rows 2, 5", "contradict")),
    Case("id of another folder", "train.csv", [("a03", "../x")], ("id '../x' leads out of", "mend the id")),
    Case("id that is absolute", "train.csv", [("a03", "/etc/passwd")], ("id '/etc/passwd' leads out of",)),
    Case("id without an image", "train.csv", [("a03", "a99")], ("a99.png: no such file", "replace it")),
    Case("id longer than a name can be", "train.csv", [("a03", "a" * 300)], (".png: cannot be read", "too long")),
    # Labels
    Case("label blank", "train.csv", [("a03,dog", "a03,")], ("train.csv: label: id 'a03' has no label", "fill it in")),
    Case("label of spaces", "train.csv", [("a03,dog", "a03,  ")], ("train.csv: label: id 'a03' has no label",)),
    Case("label in capitals", "train.csv", [("a03,dog", "a03,DOG")],
         ("train.csv: label: labels 'dog' (id 'a01', 5 rows) and 'DOG' (id 'a03', 1 row)", "write them alike")),
    Case("label with a space", "train.csv", [("a03,dog", "a03,dog ")], ("'dog' (id 'a01', 5 rows) and 'dog ' (id",)),
    Case("label in full width", "train.csv", [("a02,cat", f"a02,{REPLACED}")],
         (f"'cat' (id 'a00', 5 rows) and '{REPLACED}' (id 'a02', 1 row)",)),
    Case("label with a hidden mark", "train.csv", [("a02,cat", "a02,ca\u200bt")], (r"and 'ca\u200bt' (id 'a02', 1 r",)),
    Case("accent in two characters", "train.csv", [("cat", "caf\xe9"), ("a02,caf\xe9", "a02,cafe\u0301")],
         ("(id 'a00', 5 rows) and 'cafe\u0301' (id 'a02', 1 row)",)),
    Case("class numbers with fractions", "train.csv", [("cat", "0"), ("dog", "1"), ("a03,1", "a03,1.0")],
         ("labels '1' (id 'a01', 5 rows) and '1.0' (id 'a03', 1 row)",)),
    Case("a class rarer than the folds", "train.csv", [("a02,cat", "a02,owl"), ("a04,cat", "a04,owl")],
         ("train.csv: class 'owl' has 2 rows, fewer than num_folds = 3", "lower num_folds")),
    Case("only one class", "train.csv", [("dog", "cat")], ("train.csv: label: all rows are of class 'cat'",)),
    Case("ids for labels", "train.csv", None, ("train.csv: class 'a00' has 1 rows",), facts="target_columns: [copy]"),
    Case("fewer rows than folds", "train.csv", [("".join(train().splitlines(keepends=True)[3:]), "")],
         ("train.csv: has 2 rows", "lower num_folds")),
    Case("three classes of two", "train.csv", [("a03,yes", "a03,maybe")],
         ("train.csv: label: task binary needs two classes, there are 3 ('maybe', 'no', 'yes')",), "binary"),
    Case("one class of two", "train.csv", [("yes", "no")], ("needs two classes, there are 1",), "binary"),
    Case("rare positive", "train.csv", [("yes", "no"), ("a03,no", "a03,yes")], ("class 'yes' has 1 rows",), "binary"),
    Case("yes in capitals", "train.csv", [("a03,yes", "a03,Yes")], ("'Yes' (id 'a03', 1 row)",), "binary"),
    # Label lists and flags
    Case("lists with commas", "train.csv", [("red blue", '"red,blue"')],
         ("train.csv: label: id 'a00': 'red,blue': separate labels by | or spaces",), "multilabel"),
    Case("lists with semicolons", "train.csv", [("red blue", "red; blue")], ("'red; blue': separate",), "multilabel"),
    Case("lists with brackets", "train.csv", [("red blue", "\"['red', 'blue']\"")], ("separate",), "multilabel"),
    Case("no labels at all", "train.csv", [("red blue", ""), ("blue", "")], ("no row has a label",), "multilabel"),
    Case("labels in capitals", "train.csv", [("a03,blue", "a03,Blue")], ("'Blue' (id 'a03', 1 row)",), "multilabel"),
    Case("flag 2", "train.csv", [("a02,1", "a02,2")], ("train.csv: red: id 'a02': '2' is neither 0 nor 1",), "flags"),
    Case("flag blank", "train.csv", [("a02,1", "a02,")], ("red: id 'a02': '' is neither 0 nor 1",), "flags"),
    Case("flag True", "train.csv", [("a02,1", "a02,True")], ("red: id 'a02': 'True' is neither",), "flags"),
    Case("flag nan", "train.csv", [("a03,0", "a03,nan")], ("red: id 'a03': 'nan' is neither",), "flags"),
    Case("flag of another script", "train.csv", [("a02,1", "a02,\u0661")], ("'\u0661' is neither",), "flags"),
    Case("flag with a space", "train.csv", [("a02,1", "a02, 1")], ("red: id 'a02': ' 1' is neither",), "flags"),
    Case("flag column absent", "train.csv", [("red", "rot")], ("train.csv: no column 'red'",), "flags"),
    # Numbers
    *(Case(f"target {cell!a}", "train.csv", [("a02,0.5", f'a02,"{cell}"')],
           (f"train.csv: label: id 'a02': '{cell}' is not a finite number: mend",), "regression")
      for cell in ["", "nan", "NaN", "inf", "-Infinity", "high", "1_000", "1 000", "\uff10", "\u0661", "1e400", "1e39",
                   "0x10", "True", "None", "5%", "1.2.3", "--1", "1,000,000"]),
    Case("target with a decimal comma", "train.csv", [("a02,0.5", 'a02,"1,5"')],
         ("id 'a02': '1,5' is not a finite number: write 1.5, with a point for the comma",), "regression"),
    # Time
    Case("time blank", "train.csv", [("p1,3", "p1,")], ("train.csv: day: id 'a03': time '' is blank",), facts=TIME),
    Case("time n/a", "train.csv", [("p1,3", "p1,n/a")], ("day: id 'a03': time 'n/a' is unlike",), facts=TIME),
    Case("time inf", "train.csv", [("p1,3", "p1,inf")], ("day: id 'a03': time 'inf' is unlike",), facts=TIME),
    Case("day first", "train.csv", re.sub(r"(\d+)\n", r"\1.1.2026\n", train()).encode(),
         ("day: id 'a00': time '0.1.2026' does not sort by time", "write dates as 2026-01-31"), facts=TIME),
    # The test set and the sample submission
    Case("test.csv empty", "test.csv", b"", ("test.csv: is empty",)),
    Case("test.csv without rows", "test.csv", b"image_id\n", ("test.csv: has a header but no rows",)),
    Case("test.csv in UTF-16", "test.csv", TEST.encode("utf-16"), ("test.csv: is UTF-16",)),
    Case("test.csv of another id column", "test.csv", [("image_id", "id")], ("test.csv: no column 'image_id'",)),
    Case("test id blank", "test.csv", TEST.replace("\n", ",9\n").replace("b03", "").encode(),
         ("test.csv: row 5: no image_id",)),
    Case("test id twice", "test.csv", [("b03", "b02")], ("test.csv: image_id 'b02' is on rows 4, 5, equal rows",)),
    Case("test id not in the sample", "test.csv", TEST.encode() + b"b99\n",
         ("sample_submission.csv: id 'b99' of test.csv is missing", "download")),
    Case("sample id not in the test set", "sample_submission.csv", SAMPLE.encode() + b"b99,cat\n",
         ("test.csv: id 'b99' of sample_submission.csv is missing",)),
    Case("stub with a foreign id", "sample_submission.csv", b"image_id,label\nb00,cat\nzz,cat\n",
         ("test.csv: id 'zz' of sample_submission.csv is missing",)),
    Case("sample empty", "sample_submission.csv", b" ", ("sample_submission.csv: is empty",)),
    Case("sample with semicolons", "sample_submission.csv", [(",", ";")], ("sample_submission.csv: its cells are",)),
    Case("sample ragged", "sample_submission.csv", [("b03,cat", "b03")], ("sample_submission.csv: row 5: 1 cells",)),
    Case("sample id doubled", "sample_submission.csv", [("b03", "b02")], ("'b02' is on rows 4, 5",)),
    # folds.csv, made from the sound data and then changed
    Case("folds empty", "folds.csv", b"", ("folds.csv: is empty",)),
    Case("folds in Latin-1", "folds.csv", b"id,fold\xe9\n1,2\n", ("folds.csv: row 1: byte 0xe9",)),
    Case("folds without a column", "folds.csv", [("duplicate_group", "copies")], ("no column 'duplicate_group'",)),
    Case("folds of another task", "folds.csv", [("label", "grade")], ("folds.csv: no column 'label'",)),
    Case("folds with a row twice", "folds.csv", [("a03,", "a02,")], ("folds.csv: id 'a02' is on rows",)),
    Case("folds with a foreign id", "folds.csv", [("a03,", "a99,")], ("id 'a99' is not in train.csv", "make_folds.py")),
    Case("folds with a blank id", "folds.csv", [("a03,", ",")], ("folds.csv: row 5: no id",)),
    Case("folds cut off", "folds.csv", [("a11", "")], ("folds.csv: row 13: no id",)),
    Case("folds with another label", "folds.csv", [("dog", "cow")], ("label was 'cow' when the folds were made",)),
    *(Case(f"fold {cell!a}", "folds.csv", re.compile("(?m)^a03,."), (f"id 'a03': fold '{cell}' is none of 0 to 2",),
           facts=f"# {cell}")
      for cell in ["3", "-1", "1.0", "", "x", "\u0661", "00", " 1"]),
]
FINE = [  # unusual, but read
    Case("byte order mark", "train.csv", b"\xef\xbb\xbf" + train().encode(), ()),
    Case("two byte order marks", "train.csv", b"\xef\xbb\xbf\xef\xbb\xbf" + train().encode(), ()),
    Case("line ends of Windows", "train.csv", train().replace("\n", "\r\n").encode(), ()),
    Case("line ends of old Macs", "train.csv", train().replace("\n", "\r").encode(), ()),
    Case("mixed line ends", "train.csv", [("0\n", "0\r\n"), ("1\n", "1\r")], ()),
    Case("no end of the last line", "train.csv", train().rstrip().encode(), ()),
    Case("blank lines", "train.csv", [("a03", "\n\na03")], ()),
    Case("every cell in quotes", "train.csv", re.sub("[^,\n]+", r'"\g<0>"', train()).encode(), ()),
    Case("a column without a name", "train.csv", [("patient", "")], ()),
    *(Case(f"class {name}", "train.csv", [("cat", name)], ())
      for name in ("NA", "None", "null", "nan", "inf", "-", "0")),
    Case("class with a comma", "train.csv", [("cat", '"cat, big"')], ()),
    Case("class of a formula", "train.csv", [("cat", "=1+1")], ()),
    Case("class number of 5000 digits", "train.csv", [("cat", "1" * 5000), ("dog", "2" * 5000)], ()),
    Case("number 1e3", "train.csv", [("0.5", "1e3")], (), "regression"),
    Case("number with a plus and no zero", "train.csv", [("0.5", "+.5")], (), "regression"),
    Case("no test.csv", "test.csv", None, ()),
]
WARNINGS = [  # read, and said
    Case("ids that differ by case", "train.csv", [("a03", "A02")],
         ("train.csv: ids 'a02' and 'A02' differ only by case", "unpack")),
    Case("id that ends with a dot", "train.csv", [("a03", "a03.")], ("train.csv: id 'a03.' ends with a dot",)),
    Case("id with a hidden mark", "train.csv", [("a03", "a03\u200b")], (r"id 'a03\u200b' holds a character that",)),
    Case("id of 220 characters", "train.csv", [("a03", "a" * 220)], ("has 220 characters", "quote")),
    Case("test ids that differ by case", "test.csv", [("b03", "B02")], ("test.csv: ids 'b02' and 'B02' differ",),
         facts="sample_submission_csv: test.csv"),
    Case("id in train and test", "train.csv", [("a03", "b03")], ("1 ids are in train and test, the first is 'b03'",)),
    Case("three rows for a sample", "sample_submission.csv", b"image_id,label\nb00,cat\nb01,cat\nb02,cat\n",
         ("sample_submission.csv: has only 3 of test.csv's 12 ids, a placeholder",)),
    Case("no sample", "sample_submission.csv", None, ("sample_submission.csv: no such file", "submit.py needs it")),
    Case("test id without an image", "test.csv", [("b03", "b99")], ("b99.png: no such file", "prior prediction"),
         facts="sample_submission_csv: test.csv"),
    Case("group blank", "train.csv", [("a03,dog,p1", "a03,dog,")], ("1 rows have no patient",), facts=GROUP),
    Case("rare label", "train.csv", [("a03,blue", "a03,blue green")], ("label 'green' has 1 rows",), "multilabel"),
    Case("sample of other columns", "sample_submission.csv", [(",label", ",red,green"), (",cat", ",0,0")],
         ("sample submission: its columns do not fit the targets (only in the sample: 'green'",), "flags"),
    Case("sample with one column", "sample_submission.csv", [(",label", ""), (",cat", "")],
         ("sample submission: has no column beside image_id",)),
]
# fmt: on


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images that all sound cases share; none is a copy of another."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    odd = ["A02", "B02", "a03.", "a03\u200b", "a" * 220]
    for name in [*(f"{letter}{row:02d}" for letter in "ab" for row in range(ROWS)), *odd]:
        pixels = cv2.resize(generator.integers(0, 255, (5, 5, 3), np.uint8), (16, 16), interpolation=cv2.INTER_CUBIC)
        (folder / f"{name}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return folder


def build(root, case, images):
    """Write the case's competition; folds.csv is made first where that is the file to be changed."""
    data = root / "data"
    data.mkdir()
    table = train(case.task)
    if "copy" in case.facts:
        table = re.sub(r"(?m)^([^,]+),(.*)", r"\1,\2,\1", table).replace("day,image_id", "day,copy")
    for name, text in (("train.csv", table), ("test.csv", TEST), ("sample_submission.csv", SAMPLE)):
        (data / name).write_text(text)
    for folder in ("train_images", "test_images"):
        (data / folder).symlink_to(images)
    facts = {"project_name": "x", "task": "multilabel" if case.task == "flags" else case.task, "num_folds": "3"}
    facts["target_columns"] = "[red, blue]" if case.task == "flags" else "[label]"
    facts |= dict(line.split(": ") for line in case.facts.splitlines() if not line.startswith("#"))
    (root / "competition.yaml").write_text("".join(f"{key}: {value}\n" for key, value in facts.items()))
    path = root / "folds.csv" if case.file == "folds.csv" else data / case.file
    if case.file == "folds.csv":
        make_folds.main(root)
    damage(path, case)


def damage(path, case):
    if case.edit is None:
        if "copy" not in case.facts:
            path.unlink()
    elif case.edit == "folder":
        path.unlink()
        path.mkdir()
    elif isinstance(case.edit, bytes):
        path.write_bytes(case.edit)
    elif isinstance(case.edit, re.Pattern):
        path.write_text(case.edit.sub("a03," + case.facts[2:], path.read_text()))
    else:
        text = path.read_text()
        for old, new in case.edit:
            assert old in text, f"the case changes nothing: {old!r}"
            text = text.replace(old, new)
        path.write_bytes(text.encode())


def run(root):
    """What the check says: its errors, each a line."""
    try:
        make_folds.main(root, check_only=True)
    except UserError as error:
        return error.problems
    return []


def id_of(case):
    return case.name.replace(" ", "-")


@pytest.mark.parametrize("case", ERRORS, ids=id_of)
def test_each_fault_of_a_table_is_an_error_that_names_the_file_the_place_and_a_remedy(case, tmp_path, images, capsys):
    build(tmp_path, case, images)
    problems = run(tmp_path)
    assert any(all(part in line for part in case.expected) for line in problems), problems
    assert len(problems) <= ROWS
    for line in problems:
        assert line.isprintable()
        assert len(line) < 2100
        assert re.search(r"(\.csv|\.png|\.yaml|_images): |leads out of", line), line
        assert line.count(": ") >= 2 or "leads out of" in line, line
    if case.file != "folds.csv":
        with pytest.raises(UserError):
            make_folds.main(tmp_path)
        assert not (tmp_path / "folds.csv").exists()


@pytest.mark.parametrize("case", FINE, ids=id_of)
def test_what_only_looks_wrong_is_read_without_a_word(case, tmp_path, images, capsys):
    build(tmp_path, case, images)
    assert run(tmp_path) == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("case", WARNINGS, ids=id_of)
def test_what_may_be_a_slip_is_a_warning_and_does_not_stop(case, tmp_path, images, capsys):
    build(tmp_path, case, images)
    assert run(tmp_path) == []
    lines = capsys.readouterr().err.splitlines()
    assert any(all(part in line for part in case.expected) for line in lines), lines
    assert all(line.startswith("warning: ") and line.isprintable() for line in lines)


def test_the_cases_are_many_and_cover_every_file_and_task(figures):
    assert len(ERRORS) >= 60
    assert {case.file for case in ERRORS} == {"train.csv", "test.csv", "sample_submission.csv", "folds.csv"}
    assert {case.task for case in ERRORS} == set(LABELS)
    names = [case.name for case in (*ERRORS, *FINE, *WARNINGS)]
    assert len(set(names)) == len(names)
    figures(f"{len(ERRORS)} bad tables named, {len(WARNINGS)} odd ones warned of, {len(FINE)} unusual ones read")
