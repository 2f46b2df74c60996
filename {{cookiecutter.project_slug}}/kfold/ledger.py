"""runs/ledger.csv: one row a finished run, for people and spreadsheets."""

import csv
import io
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from kfold.errors import UserError
from kfold.files import atomic_write
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
    "leaderboard",  # entered by hand, or left empty
)


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
            earlier.update({**kept, **given})
            break
    else:
        rows.append(entry)
    atomic_write(path, ledger_text(rows))


def read_ledger(path: Path) -> list[dict[str, str]]:
    """The rows as text, without the guard against formulas; none where there is no file."""
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text: save it as UTF-8, or delete it") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
    if "run" not in (reader.fieldnames or ()):
        raise UserError(f"{path}: has no column 'run': save it separated by commas, or delete it")
    rows = list(reader)
    for number, row in enumerate(rows, start=2):
        if None in row:
            raise UserError(f"{path}: row {number} has more cells than the header: mend it, or delete the file")
    return [{key: unguard(cell) for key, cell in row.items()} for row in rows]


def ledger_text(rows: list[dict[str, str]]) -> str:
    own = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in COLUMNS]
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, [*COLUMNS, *own], restval="", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({key: guard(cell) for key, cell in row.items()} for row in rows)
    return file.getvalue()


def to_text(value: object) -> str:
    if value is None or value != value:  # NaN: an interval that is undefined
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
