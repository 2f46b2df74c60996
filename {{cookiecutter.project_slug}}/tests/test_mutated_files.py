"""Sound CSV and YAML files with random damage: each is read, or refused by name, within five seconds."""

import random
import signal
from contextlib import contextmanager

import numpy as np
import pytest
from reliability import count

from kfold.artifacts import Workspace
from kfold.config import Competition, load_competition, load_config
from kfold.data.assign import make_folds
from kfold.data.check import Check, check_test_ids
from kfold.data.folds import read_folds
from kfold.data.tables import read_table
from kfold.data.targets import decode
from kfold.errors import UserError

LIMIT = 5  # seconds a file
ROWS = 24
LABELS = {
    "multiclass": ["cat", '"a ""big"" dog, old"', "NA"],
    "binary": ["0", "1"],
    "multilabel": ["red|blue", "blue", ""],
    "regression": ["0.5", "-3e2", "7"],
}
ODD = [  # what is put into a file: line ends, quotes, marks, signs, digits of other scripts, and what is no UTF-8
    *[b"\n", b"\r", b"\r\n", b",", b'"', b'""', b";", b"\t", b"|", b" ", b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"\xe9"],
    *[
        b"\x80",
        b"\x1b[31m",
        b"'",
        b"=",
        b"-",
        b"+",
        b".",
        b"..",
        b"/",
        b"\\",
        b":",
        b": ",
        b"#",
        b"&a ",
        b"*a",
        b"!!int ",
    ],
    *[b"!!timestamp ", b"{", b"}", b"[", b"]", b"%", b"@", b"`", b"? ", b"- ", b"--- ", b"~", b"<<: ", b">", b"1e999"],
    *[b"nan", b"inf", b"1_0", b"9" * 400, b"x" * 5000, b"[" * 3000, b"null", b"true"],
    *[text.encode() for text in ("\u0661", "\uff10", "\u200b", "\u2028", "\x85", "\ufeff", "e\u0301", "\U0001f408")],
]


def facts_of(task):
    return Competition(
        project_name="x",
        task=task,
        target_columns=["label"],
        num_folds=2,
        group_column="patient" if task == "binary" else "",
        time_column="day",
        fold_scheme="time" if task == "regression" else "auto",
    )


def train(task):
    rows = [f"a{row:02d},{LABELS[task][row % len(LABELS[task])]},p{row // 2},{row}\n" for row in range(ROWS)]
    return "image_id,label,patient,day\n" + "".join(rows)


def read_train(task):
    def read(root):
        facts = facts_of(task)
        table = read_table(root / "train.csv", ["image_id", "label", "patient", "day"])
        make_folds(table, decode(table, facts), np.full(len(table), "", object), facts)

    return read


def read_tests(root):
    check = Check()
    check_test_ids(check, Workspace(root), facts_of("multiclass").model_copy(update={"data_dir": "."}))
    if check.errors:
        raise UserError(check.errors)


def read_frozen(root):
    read_folds(root / "folds.csv", root / "train.csv", facts_of("multiclass"))


COMPETITION = """\
project_name: 'Cats: the ''first'' round'  # shown in tables
task: multilabel
metric: auto
target_columns:
  - red
  - "blue\\u0021"
group_column: patient
image_suffix: '.png'
num_folds: 5
fold_seed: 42
"""
CONFIG = """\
# An experiment
backbone: efficientnet_b0
lr: 1e-3
epochs: 3
hflip: false
pseudo_from: [baseline, other-run]
select: last
"""
TABLE_IDS = [f"b{row:02d}" for row in range(ROWS)]
FILES = {  # name of the case -> (file, its sound text, how it is read)
    **{f"train {task}": ("train.csv", train(task), read_train(task)) for task in LABELS},
    "test": ("test.csv", "image_id,site\n" + "".join(f"{name},9\n" for name in TABLE_IDS), read_tests),
    "sample": ("sample_submission.csv", "image_id,label\n" + "".join(f"{name},0\n" for name in TABLE_IDS), read_tests),
    "folds": ("folds.csv", "", read_frozen),
    "competition": ("competition.yaml", COMPETITION, lambda root: load_competition(root / "competition.yaml")),
    "config": ("config.yaml", CONFIG, lambda root: load_config(root / "config.yaml")),
}


def mutate(data, generator):
    """The bytes with one to four random changes."""
    for _ in range(generator.choice([1, 1, 2, 4])):
        data = generator.choice([flip, delete, double, insert, insert, replace, shuffle_lines, double_line, cut])(
            data, generator
        )
    return data


def span(data, generator, longest=12):
    start = generator.randrange(len(data) + 1)
    return start, min(len(data), start + generator.randint(1, longest))


def flip(data, generator):
    start, end = span(data, generator, 1)
    return data[:start] + bytes(byte ^ 1 << generator.randrange(8) for byte in data[start:end]) + data[end:]


def delete(data, generator):
    start, end = span(data, generator)
    return data[:start] + data[end:]


def double(data, generator):
    start, end = span(data, generator, 40)
    return data[:end] + data[start:]


def insert(data, generator):
    start, _ = span(data, generator)
    return data[:start] + generator.choice(ODD) + data[start:]


def replace(data, generator):
    start, end = span(data, generator)
    return data[:start] + generator.choice(ODD) + data[end:]


def shuffle_lines(data, generator):
    lines = data.splitlines(keepends=True)
    generator.shuffle(lines)
    return b"".join(lines)


def double_line(data, generator):
    lines = data.splitlines(keepends=True) or [data]
    return b"".join([*lines, generator.choice(lines)])


def cut(data, generator):
    return data[: span(data, generator)[0]]


@contextmanager
def limited(seconds):
    """Raise TimeoutError inside when it takes longer."""

    def stop(*_):
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def root(tmp_path):
    """All sound files in one folder; folds.csv belongs to the multiclass train.csv."""
    for name, text, _ in FILES.values():
        (tmp_path / name).write_text(text)
    (tmp_path / "train.csv").write_text(train("multiclass"))
    table = read_table(tmp_path / "train.csv", ["image_id", "label"])
    facts = facts_of("multiclass")
    copies = np.array(["a00" if row < 2 else "" for row in range(ROWS)], object)
    (tmp_path / "folds.csv").write_bytes(make_folds(table, decode(table, facts), copies, facts))
    return tmp_path


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no alarm on this system")
@pytest.mark.parametrize("case", FILES)
def test_a_damaged_file_is_read_or_refused_by_name_and_never_hangs(case, root, figures):
    name, text, read = FILES[case]
    sound = text.encode() or (root / name).read_bytes()
    (root / name).write_bytes(sound)
    read(root)  # the undamaged file is fine
    tries, refused = count(36, 1120), 0
    for number in range(tries):
        damaged = mutate(sound, random.Random(f"{case} {number}"))
        (root / name).write_bytes(damaged)
        try:
            with limited(LIMIT):
                read(root)
        except UserError as error:
            refused += 1
            for line in error.problems:
                assert name in line or line.startswith("... and "), (number, line, damaged)
                assert line.isprintable(), (number, line, damaged)
        except Exception as error:
            pytest.fail(f"{case} {number}: {type(error).__name__}: {error}: {damaged!r}")
    figures(f"{tries} damaged files ({case}): {refused} refused by name, {tries - refused} read, no other end")
    assert refused > 0.2 * tries  # the damage is more than nothing
