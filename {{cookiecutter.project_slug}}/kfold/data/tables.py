"""CSV files read strictly and as text: an id `000123` stays so, and a class `NA` is a class."""

import csv
import difflib
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kfold.data.ids import refuse_ids
from kfold.errors import LIMIT, UserError, list_problems

DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}

NO_TABLES = {  # first bytes of what is no table -> what to do
    b"PK\x03\x04": "is a zip archive: unpack it (python unpack.py)",
    b"\x1f\x8b": "is packed by gzip: unpack it",
    b"<!": "is a web page: download the file again, signed in",
    b"<html": "is a web page: download the file again, signed in",
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: run git lfs pull",
}


def read_table(path: Path, required: Sequence[str]) -> pd.DataFrame:
    """All rows and columns of a comma-separated UTF-8 file, as text; empty cells are "".

    `required` names columns that must be there and hold no line end, the id column first: ids must be filled in and
    differ. Raises UserError with one line per problem, naming the row by its line in the file.
    """
    text = read_text(path)
    cells, widths, lines = parse(path, text)
    if not widths:
        raise UserError(f"{path}: is empty: download it again")
    header = cells[: widths[0]]
    refuse_header(path, text, header, required)
    ragged = [row for row, width in enumerate(widths) if width != len(header)]
    if ragged:
        raise UserError(
            list_problems(
                ragged,
                lambda row: (
                    f"{path}: row {lines[row]}: {widths[row]} cells, the header has {len(header)}: "
                    f"quote a cell that holds a comma"
                ),
            )
        )
    if len(lines) == 1:
        raise UserError(f"{path}: has a header but no rows: download it again")
    columns = {name: cells[len(header) + i :: len(header)] for i, name in enumerate(header)}
    table = pd.DataFrame(columns, dtype=str)
    if required:
        problems = refuse_line_ends(path, table, required, lines[1:])
        problems += refuse_ids(path, table, required[0], lines[1:])
        if problems:
            raise UserError(problems)
    return table


def read_test_ids(test_csv_path: Path, sample_csv_path: Path, id_column: str) -> list[str]:
    """The ids to predict: those of test.csv, else, where it is absent, of the sample submission."""
    path = test_csv_path if test_csv_path.exists() else sample_csv_path
    if not path.exists():
        raise UserError(f"{test_csv_path}: no such file, nor {sample_csv_path.name}: put one of the two there")
    return read_table(path, [id_column])[id_column].tolist()


def read_text(path: Path) -> str:
    """The file's text with line ends made "\\n" and a byte order mark removed."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise UserError(f"{path}: is a folder or a device: put a readable file there")
        data = path.read_bytes()
    except FileNotFoundError:
        others = sorted(other.name for other in path.parent.glob("*.csv")) if path.parent.is_dir() else []
        found = f"the folder holds {', '.join(others[:5])}" if others else "unpack the competition's files there"
        raise UserError(f"{path}: no such file: {found}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): put a readable file there") from None
    if not data.strip():
        raise UserError(f"{path}: is empty: download it again")
    for start, what in NO_TABLES.items():
        if data.lstrip().startswith(start):
            raise UserError(f"{path}: {what}")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: is UTF-16 text: save it as UTF-8")
    if b"\0" in data:
        raise UserError(f"{path}: row {line_of(data, data.index(0))}: holds a NUL byte: save it as UTF-8 text again")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = line_of(data, error.start)
        raise UserError(
            f"{path}: row {row}: byte 0x{data[error.start]:02x} is not UTF-8 (Latin-1?): save it as UTF-8"
        ) from None
    return text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def line_of(data: bytes, position: int) -> int:
    return len((data[:position] + b".").splitlines())


def parse(path: Path, text: str) -> tuple[list[str], list[int], list[int]]:
    """All cells one after another, and of each row its number of cells and its line; blank lines are left out."""
    cells, widths, lines, before = [], [], [], 0
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if len(row) > 1 or (row and row[0].strip()):
                cells.extend(row)
                widths.append(len(row))
                lines.append(before + 1)
            before = reader.line_num
    except csv.Error as error:
        long = f", or a cell is longer than {csv.field_size_limit()}" if "field larger" in str(error) else ""
        raise UserError(f'{path}: row {before + 1}: a quote (") is not closed{long}: close it or double it') from None
    return cells, widths, lines


def refuse_header(path: Path, text: str, header: Sequence[str], required: Sequence[str]) -> None:
    doubled = sorted({name for name in header if header.count(name) > 1})
    problems = [f"{path}: column '{name}' occurs twice: rename or delete one" for name in doubled]
    missing = [name for name in required if name not in header]
    if missing and len(header) == 1:
        for delimiter, word in DELIMITERS.items():
            if delimiter in text.split("\n", 1)[0]:
                raise UserError(f"{path}: its cells are separated by {word}: save it separated by commas")
    problems += [f"{path}: no column '{name}': {nearest(name, header)}" for name in missing]
    if problems:
        raise UserError(problems)


def nearest(name: str, header: Sequence[str]) -> str:
    by_key = {column.strip().casefold(): column for column in header}
    near = difflib.get_close_matches(name.strip().casefold(), by_key, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{by_key[near[0]]}'? Set it in competition.yaml"
    return f"the columns are {', '.join(header[:10])}: set the right one in competition.yaml"


def refuse_line_ends(path: Path, table: pd.DataFrame, columns: Sequence[str], lines: Sequence[int]) -> list[str]:
    """Problems of cells that hold a line end: two stray quotes make one cell of all rows between them."""
    problems = []
    for name in columns:
        rows = table[name].str.contains("\n", regex=False).to_numpy(bool).nonzero()[0]
        problems += list_problems(
            rows,
            lambda row, name=name: (
                f'{path}: row {lines[row]}: {name} holds a line end: is a quote (") of this cell not closed?'
            ),
        )
    return problems


def shorten(problems: Sequence[str], limit: int = LIMIT) -> list[str]:
    """The first `limit` lines; a last one counts the others."""
    return list_problems(problems, str, limit)
