"""kfold/data/tables.py: text stays text, and every fault of a file is one line with its row and remedy."""

import os
import re

import pytest

from kfold.config import load_config
from kfold.data.tables import read_table, read_test_ids
from kfold.errors import UserError


def write(tmp_path, content, name="train.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def problems_of(path, required=("image_id", "label")):
    with pytest.raises(UserError) as caught:
        read_table(path, required)
    assert all(str(path.name) in line for line in caught.value.problems if not line.startswith("..."))
    assert all("\n" not in line for line in caught.value.problems)
    return caught.value.problems


def test_ids_and_classes_stay_text(tmp_path):
    table = read_table(write(tmp_path, "image_id,label\n000123,NA\n1e5,None\nnan,\n"), ["image_id", "label"])
    assert table["image_id"].tolist() == ["000123", "1e5", "nan"]
    assert table["label"].tolist() == ["NA", "None", ""]


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfimage_id,label\r\n1,a\r\n\r\n2,b", b"image_id,label\r1,a\r2,b\r"])
def test_byte_order_mark_line_ends_and_blank_lines_do_not_matter(tmp_path, content):
    table = read_table(write(tmp_path, content), ["image_id", "label"])
    assert table.to_dict("list") == {"image_id": ["1", "2"], "label": ["a", "b"]}


def test_quoted_cells_may_hold_commas_quotes_and_line_ends(tmp_path):
    content = 'image_id,label\n1,"a, ""b""\nc"\n2,x,y\n'
    assert problems_of(write(tmp_path, content))[0].startswith(f"{tmp_path}/train.csv: row 4: 3 cells")
    table = read_table(write(tmp_path, content.replace("x,y", "x")), ["image_id"])
    assert table["label"].tolist() == ['a, "b"\nc', "x"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: download it again"),
        (" \n\n", "is empty"),
        ("image_id,label\n", "has a header but no rows"),
        ("image_id;label\n1;a\n", "separated by semicolons: save it separated by commas"),
        ("image_id\tlabel\n1\ta\n", "separated by tabs"),
        ("image_id,label\n1,a\n".encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
        ("image_id,label\n1,a\n2,caf\xe9\n".encode("latin-1"), "row 3: byte 0xe9 is not UTF-8"),
        (b"image_id,label\n1,a\n2,b\0\n", "row 3: holds a NUL byte"),
        ("image_id,label\n1,a,9\n2,b\n", "row 2: 3 cells, the header has 2"),
        ("image_id,label\n1,a\n2\n", "row 3: 1 cells, the header has 2"),
        ('image_id,label\n1,a\n2,"b\n3,c\n', "row 3: a quote"),
        ("image_id,label,label\n1,a,b\n", "column 'label' occurs twice"),
        ("image_id,Label \n1,a\n", "no column 'label': did you mean 'Label '?"),
        ("image_id,diagnosis\n1,a\n", "no column 'label': the columns are image_id, diagnosis"),
        ("image_id,label\n1,a\n ,b\n", "row 3: no image_id: fill it in"),
        ("image_id,label\n1,a\n 2,b\n", "row 3: image_id ' 2' has spaces around it"),
        ("image_id,label\n1,a\n2,b\n1,a\n", "image_id '1' is on rows 2, 4, equal rows: keep one"),
        ("image_id,label\n1,a\n2,b\n1,c\n", "image_id '1' is on rows 2, 4, rows that contradict each other"),
    ],
)
def test_each_fault_is_named_with_its_row_and_remedy(tmp_path, content, message):
    problems = problems_of(write(tmp_path, content))
    assert len(problems) == 1
    assert message in problems[0]


def test_all_faults_of_the_rows_are_listed_at_once_and_long_lists_are_cut(tmp_path):
    rows = "".join(f" {number},a\n" for number in range(50)) + ",b\n7,a\n7,a\n"
    problems = problems_of(write(tmp_path, "image_id,label\n" + rows))
    assert len(problems) == 1 + 21 + 1
    assert "... and 30 more of this kind" in problems


def test_a_missing_file_names_the_files_that_are_there(tmp_path):
    write(tmp_path, "a,b\n1,2\n", "Train.csv")
    assert "no such file: the folder holds Train.csv" in problems_of(tmp_path / "train.csv")[0]


def test_test_ids_come_from_the_sample_where_there_is_no_test_csv(tmp_path):
    sample = write(tmp_path, "image_id,label\n02,a\n01,a\n", "sample.csv")
    assert read_test_ids(tmp_path / "test.csv", sample, "image_id") == ["02", "01"]
    test = write(tmp_path, "image_id\n03\n", "test.csv")
    assert read_test_ids(test, sample, "image_id") == ["03"]
    with pytest.raises(UserError, match=re.escape("put one of the two there")):
        read_test_ids(tmp_path / "a.csv", tmp_path / "b.csv", "image_id")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_in_a_files_place_is_named_and_not_waited_for(tmp_path):
    for name, read in (("train.csv", lambda path: read_table(path, [])), ("config.yaml", load_config)):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match=f"{name}: is a folder or a device"):
            read(tmp_path / name)
