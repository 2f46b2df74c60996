"""runs/ledger.csv: one row a finished run, for people and spreadsheets.

Its seal is a column: a digest of the row's cells but `leaderboard` and columns of one's own, which may be edited.
"""

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from kfold.errors import UserError
from kfold.files import atomic_write
from kfold.numbers import finite_number, is_number, number_remedy
from kfold.report.spreadsheet import guard, unguard

COLUMNS = (
    "run",
    "finished_at",
    "config_difference",
    "metric",
    "oof",
    "oof_low",
    "oof_high",
    "fold_scores",  # separated by spaces
    "minutes",
    "images_per_second",
    "seal",  # of the cells before it
    "leaderboard",  # entered by hand, or left empty
)
SCORE_REMEDY = "write the leaderboard's score, such as 0.873"


def record_run(path: Path, row: Mapping[str, object]) -> None:
    """Add the row of a run, or replace it, atomically. finished_at is now unless given.

    A leaderboard score, and columns of one's own, that were entered before stay. Raises UserError when the file is not
    a ledger any more.
    """
    unknown = set(row) - set(COLUMNS)
    if unknown or not row.get("run"):
        raise ValueError(f"not a row of the ledger: {sorted(unknown) or 'no run'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.parent / ".ledger.lock", timeout=60):  # folds may finish at once in several processes
            replace_row(path, row)
    except Timeout:
        raise UserError(f"{path}: another process has kept it for a minute: stop that, run this again") from None


def replace_row(path: Path, row: Mapping[str, object]) -> None:
    rows = read_ledger(path)
    now = datetime.now().isoformat(sep=" ", timespec="seconds")
    entry = {"finished_at": now, **{key: to_text(value) for key, value in row.items()}}
    for earlier in rows:
        if earlier["run"] == entry["run"]:
            kept = {key: cell for key, cell in earlier.items() if key == "leaderboard" or key not in COLUMNS}
            given = {key: cell for key, cell in entry.items() if cell or key not in kept}
            earlier.clear()
            entry = {**kept, **given}
            earlier.update(entry)
            break
    else:
        earlier = entry
        rows.append(entry)
    earlier["seal"] = seal_of(earlier)
    atomic_write(path, ledger_text(rows))


def seal_of(row: Mapping[str, str]) -> str:
    """16 hex digits of the sha256 of the row's own cells; 0.950 and 0.95, which spreadsheets take for one, are one."""
    cells = [row.get(key, "") for key in COLUMNS[: COLUMNS.index("seal")]]
    cells = [repr(float(cell)) if is_number(cell) else cell for cell in cells]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]


def check_ledger(path: Path) -> list[str]:
    """A line for whatever in the ledger was changed by other than a stage, but leaderboard scores and own columns."""
    remedy = "restore it, or delete it and run train.py, stack.py again with --overwrite"
    try:
        rows = read_ledger(path)
    except UserError as error:
        return error.problems
    text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n") if path.exists() else ""
    header = next(csv.reader(io.StringIO(text, newline="")), [])
    missing = [key for key in COLUMNS if key not in header]
    if rows and (missing or len(set(header)) < len(header)):
        return [f"{path}: damaged, its header lacks {', '.join(missing) or 'a name of its own for a column'}: {remedy}"]
    if rows and text != ledger_text(rows, header).replace("\r\n", "\n"):
        return [f"{path}: damaged, it has lines or cells that no stage or spreadsheet writes: {remedy}"]
    problems = []
    for number, row in enumerate(rows, start=2):
        if row["seal"] != seal_of(row):
            problems.append(
                f"{path}: row {number} (run '{row['run']}') is damaged or was edited (only leaderboard and own columns "
                f"may be): {remedy}"
            )
    return problems + odd_scores(path, rows)


def leaderboard_score(row: Mapping[str, str]) -> float:
    """On the competition's leaderboard; NaN where it is not known, or entered as what is no number."""
    return finite_number(row.get("leaderboard", ""))


def odd_scores(path: Path, rows: Sequence[Mapping[str, str]]) -> list[str]:
    """A line for each leaderboard cell that holds something, but no number."""
    return [
        f"{path}: row {number} (run '{row['run']}'): leaderboard is not a number ('{row['leaderboard']}'): "
        + number_remedy(row["leaderboard"], SCORE_REMEDY)
        for number, row in enumerate(rows, start=2)
        if row.get("leaderboard") and math.isnan(leaderboard_score(row))
    ]


def read_ledger(path: Path) -> list[dict[str, str]]:
    """The rows as text, without the guard against formulas; none where there is no file."""
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): put the file back, or delete it") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text: save it as UTF-8, or delete it") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
    if "run" not in (reader.fieldnames or ()):
        raise UserError(f"{path}: has no column 'run': save it separated by commas, or delete it")
    rows = list(reader)
    for number, row in enumerate(rows, start=2):
        if None in row:
            raise UserError(f"{path}: row {number} has more cells than the header: mend it (a number has a point)")
    return [{key: unguard(cell) for key, cell in row.items()} for row in rows]


def ledger_text(rows: list[dict[str, str]], header: Sequence[str] = ()) -> str:
    """The file's text; header: its columns where their order is another one."""
    own = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in COLUMNS]
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, header or [*COLUMNS, *own], restval="", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({key: guard(cell) for key, cell in row.items()} for row in rows)
    return file.getvalue()


def to_text(value: object) -> str:
    if value is None or value != value:  # NaN: an interval that is undefined
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
