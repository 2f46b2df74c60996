"""What was decided on out-of-fold rows: weights and views of each run, and rounds of pseudo-labels."""

from collections.abc import Mapping, Sequence

from kfold.report.parts import Part, Section, Table, Text
from kfold.report.reading import RunFound
from kfold.report.scores import show, show_interval
from kfold.report.spreadsheet import to_number

HEADS = {"weights": "weights (EMA, SWA, snapshots)", "tta": "views at test time"}


def choices_section(runs: Sequence[RunFound]) -> Section:
    """The weights and views that predict.py compared; for the others, what is in use."""
    parts: list[Part] = []
    for run in runs:
        table = run.tables.get("choices")
        if table is None:
            used = {f"weights={manifest['kind']}, tta={(manifest.get('predicted') or {}).get('tta', 'none')}"
                    for manifest in run.manifests.values() if "kind" in manifest}  # fmt: skip
            parts += [Text(f"{run.name}: {', '.join(sorted(used))}; nothing else was compared.")] if used else []
            continue
        for what, head in HEADS.items():
            rows = [choice_cells(row) for row in table.to_dict("records") if row["what"] == what]
            if rows:
                header = [head, "score", "95% interval", "minus the first", "95% interval", "ms/image", "verdict"]
                parts.append(
                    Table(header, rows, f"{run.name}: {head}, out of fold; the simplest within noise is taken")
                )
    none = Text("Nothing to choose from yet: python predict.py --weights auto --tta auto compares.")
    return Section("Weights and views", parts or [none])


def choice_cells(row: Mapping[str, str]) -> list[str]:
    """A line of choices.csv as people read it; where nothing was compared, it lacks the columns of differences."""
    keys = ("score", "low", "high", "difference", "difference_low", "difference_high", "milliseconds")
    score, low, high, gain, gain_low, gain_high, milliseconds = (to_number(row.get(key, "")) for key in keys)
    return [
        row["name"],
        show(score),
        show_interval(low, high),
        show(gain, "+"),
        show_interval(gain_low, gain_high, "+"),
        f"{milliseconds:.2f}",
        ", ".join(filter(None, [row.get("verdict"), "taken" if row["chosen"] == "True" else ""])),
    ]


def rounds_section(runs: Sequence[RunFound]) -> Section:
    """Rounds of pseudo-labels: score before and after on the same rows, and the rows that each class gave."""
    rounds = sorted([run for run in runs if run.verdict], key=lambda run: (run.verdict.get("round", 0), run.name))
    parts: list[Part] = []
    if rounds:
        header = [
            "round",
            "student",
            "teachers",
            "threshold",
            "before",
            "after",
            "difference",
            "95% interval",
            "verdict",
        ]
        parts.append(Table(header, [round_cells(run) for run in rounds], "Out of fold, on the same rows."))
    for run in rounds:
        counts = run.verdict.get("rows_per_class") or {}
        rows = [[name, *map(str, of_folds)] for name, of_folds in counts.items()]
        width = max((len(row) for row in rows), default=1)
        header = ["class", *(f"fold {number}" for number in range(width - 1))]
        parts.append(Table(header, rows, f"{run.name}: test rows that became pseudo-labels, by class and fold"))
    return Section("Pseudo-labels", parts or [Text("No round yet: python pseudo_label.py makes one.")])


def round_cells(run: RunFound) -> list[str]:
    verdict = run.verdict
    numbers = {key: float(verdict.get(key, "nan")) for key in ("before", "after", "difference", "low", "high")}
    return [
        str(verdict.get("round", "?")),
        run.name,
        ", ".join(verdict.get("teachers", ())),
        str(verdict.get("threshold", "?")),
        show(numbers["before"]),
        show(numbers["after"]),
        show(numbers["difference"], "+"),
        show_interval(numbers["low"], numbers["high"], "+"),
        "kept" if verdict.get("kept") else "rejected",
    ]
