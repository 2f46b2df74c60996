"""Everything that runs/ knows, on one page that stands alone: report.html.

Command  python report.py                     or --run <name> ...: the runs that are shown in detail
         python report.py --compare a b       two runs only, and the paired difference between them
         python report.py --log-lb RUN 0.873  record a leaderboard score in runs/ledger.csv
         python report.py --augment-preview   draw what the model sees of some images (see train.py for key=value)
Reads    runs/, folds.csv, the CSVs of data/, the images of the worst and most doubtful rows
Writes   report.html: no script, nothing from elsewhere; send it to whom you like

Unfinished runs show what they have; a damaged one is named, on the page and here, and the others still show. In detail
the page shows the run that submit.py would take.
"""

import argparse
import math
import shlex
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import competition
from kfold.artifacts import Workspace
from kfold.config import Competition, Config, Task, load_competition
from kfold.data.folds import Folds, read_folds
from kfold.data.images import image_paths
from kfold.data.targets import Targets
from kfold.errors import UserError, one_line, run_stage
from kfold.files import atomic_write
from kfold.ledger import COLUMNS, SCORE_REMEDY, leaderboard_score, odd_scores, read_ledger, record_run, seal_of
from kfold.metrics import Metric
from kfold.numbers import number_remedy
from kfold.report.choices import choices_section, rounds_section
from kfold.report.comparison import comparison_section, difference_line
from kfold.report.curves import curves_section
from kfold.report.details import detail_sections
from kfold.report.leaderboard import Entry, leaderboard_section, make_entries, remembering
from kfold.report.origins import check_section, environment_section, settings_section
from kfold.report.page import page
from kfold.report.public_scores import public_section
from kfold.report.reading import RunFound, read_json, read_run
from kfold.report.scores import show, show_interval
from kfold.report.second_level import blending_section
from kfold.report.tables import aligned
from kfold.runs import choose_run, read_candidates

ROOT = Path(__file__).resolve().parent
BASELINE = "baseline"


def main(runs: Sequence[str] = (), compare: Sequence[str] = (), root: Path = ROOT) -> None:
    """Write report.html of all runs, with `runs` in detail, or of the two of `compare` alone."""
    started = time.perf_counter()
    workspace = Workspace(root)
    facts = load_competition(workspace.competition_path)
    folds = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    targets = competition.decode_targets(folds.table, facts)
    metric, groups = remembering(competition.metric(facts)), folds.group_or_none
    names = workspace.begun_runs()
    for wished in (runs, compare):
        refuse_unknown(wished, names, workspace.runs_dir)

    found = {name: read_run(workspace, name, folds, targets, facts.task) for name in names}
    shown = [found[name] for name in compare or names]
    baseline = compare[-1] if compare else choose_baseline(shown)
    ledger, damage = read_scores(workspace)
    entries = make_entries(shown, baseline, targets.values, folds.fold, groups, metric, ledger)
    detailed, reasons = choose_detailed(workspace, runs or compare, found, entries, folds, targets, facts, metric)
    paths, _ = image_paths(workspace.data_path(facts, facts.train_images), folds.ids.tolist(), facts.image_suffix)

    sections = [leaderboard_section(entries, baseline, metric, len(folds.ids), [*reasons, *damage])]
    if compare:
        sections.append(comparison_section(*shown, targets.values, folds.fold, groups, facts.task, metric))
    sections += [
        public_section(entries, baseline, metric),
        curves_section(with_parts(detailed, found), metric.name),
        *(
            section
            for run in detailed
            for section in detail_sections(run, folds, targets, facts.task, metric, paths, facts.group_column)
        ),
        choices_section([run for run in shown if not run.stack_of]),
        rounds_section(shown),
        blending_section(shown, targets.values),
        check_section(*read_check(workspace)),
        settings_section(shown, Config().model_dump(mode="json")),
        environment_section(shown),
    ]
    lead = (
        f"{facts.task}, {metric.name}, {len(folds.ids)} rows in {folds.num_folds} folds (stamp {folds.stamp[:12]}); "
        f"in detail: {', '.join(run.name for run in detailed) or 'no run yet'}"
    )
    atomic_write(workspace.report_path, page(facts.project_name, lead, sections))

    for line in [*damage, *(f"warning: {problem}" for run in shown for problem in run.problems)]:
        print(one_line(line), file=sys.stderr)
    seconds = time.perf_counter() - started
    counted = "1 run" if len(shown) == 1 else f"{len(shown)} runs"
    print(f"{workspace.report_path}: {len(sections)} sections, {counted}, in {seconds:.1f} s")
    if compare:
        print(difference_line(*shown, targets.values, groups, metric))
    if entries:
        print(terminal_table(entries, baseline, metric))
    print("next:", next_step(workspace, [run.name for run in detailed], ledger, folds, targets, facts.task))


# What to show


def refuse_unknown(wished: Sequence[str], names: Sequence[str], folder: Path) -> None:
    for name in wished:
        if name not in names:
            raise UserError(f"run '{name}': no such run in {folder}: there are {', '.join(names) or 'none yet'}")
    if len(set(wished)) < len(wished):
        raise UserError("the same run is named twice: name each run once")


def choose_baseline(runs: Sequence[RunFound]) -> str:
    """What the others are compared with: the run of that name, else the first that was trained; "" without one."""
    trained = [run.name for run in runs if run.has_oof.any() and not run.stack_of]
    return BASELINE if BASELINE in trained else next(iter(trained), "")


def choose_detailed(
    workspace: Workspace,
    wished: Sequence[str],
    found: Mapping[str, RunFound],
    entries: Sequence[Entry],
    folds: Folds,
    targets: Targets,
    facts: Competition,
    metric: Metric,
) -> tuple[list[RunFound], list[str]]:
    """The runs to show in detail, and why: those wished for, else the one that submit.py takes, else the best entry."""
    if wished:
        return [found[name] for name in wished], []
    try:
        chosen, lines = choose_run(workspace, folds, targets, facts.task, metric)
        return [found[chosen]], [workspace.without_root(line) for line in lines]
    except UserError as error:
        predicting = [entry.run for entry in entries if entry.scores]
        return predicting[:1], [workspace.without_root(line) for line in error.problems]


def with_parts(runs: Sequence[RunFound], found: Mapping[str, RunFound]) -> list[RunFound]:
    """The runs, and those that stacks among them stand on."""
    names = [run.name for run in runs]
    for name in names:  # it grows while it is read
        names += [part for part in found[name].stack_of if part in found and part not in names]
    return [found[name] for name in names]


def read_scores(workspace: Workspace) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The ledger's rows by run, and a warning of what in it cannot be read."""
    try:
        rows = read_ledger(workspace.ledger_path)
        problems = odd_scores(workspace.ledger_path, rows)
    except UserError as error:
        rows, problems = [], error.problems
    return {row["run"]: row for row in rows}, [f"warning: {workspace.without_root(line)}" for line in problems]


def read_check(workspace: Workspace) -> tuple[dict | None, str]:
    """What the last data check found, and what is wrong with that file."""
    try:
        found = read_json(workspace.data_check_path)
        if found is not None and not all(isinstance(found.get(kind), list) for kind in ("errors", "warnings", "notes")):
            raise UserError(f"{workspace.data_check_path}: damaged: run python make_folds.py --check again")
        return found, ""
    except UserError as error:
        return None, workspace.without_root(str(error))


def terminal_table(entries: Sequence[Entry], baseline: str, metric: Metric) -> str:
    """The leaderboard, its main columns."""
    rows = [("run", metric.name, "95% interval", f"minus {baseline or 'baseline'}", "95% interval", "LB", "notes")]
    for entry in entries:
        scores, difference = entry.scores, entry.difference
        value, low, high = difference or (float("nan"),) * 3
        rows.append(
            (
                entry.run.name,
                show(scores.pooled) if scores else "-",
                show_interval(scores.low, scores.high) if scores else "-",
                show(value, "+"),
                show_interval(low, high, "+"),
                entry.public_cell,
                one_line("; ".join(entry.run.notes)),
            )
        )
    return aligned(rows)


def next_step(
    workspace: Workspace, detailed: Sequence[str], ledger: Collection[str], folds: Folds, targets: Targets, task: Task
) -> str:
    """After reading: keep the score of a run that submit.py takes, or see to it that there is one."""
    candidates, left_out = read_candidates(workspace, folds, targets, task)
    scored = [run for run in detailed if run in candidates and run in ledger]
    if scored:
        return f"open report.html; after an upload: python report.py --log-lb {scored[0]} SCORE"
    if candidates:
        return "open report.html, then python submit.py"
    if left_out:
        return f"open report.html; no run can be submitted yet: {workspace.without_root(left_out[0])}"
    return "python train.py --fold all"


# Other commands


def log_score(run: str, score: str, root: Path = ROOT) -> None:
    """Record a leaderboard score in the run's row of the ledger, digit by digit as it is given."""
    path = Workspace(root).ledger_path
    rows = {row["run"]: row for row in read_ledger(path)}
    if run not in rows:
        raise UserError(f"{path}: no row of run '{run}': there are {', '.join(rows) or 'none yet'}")
    if math.isnan(leaderboard_score({"leaderboard": score})):
        raise UserError(f"--log-lb {run} {score}: not a number: {number_remedy(score, SCORE_REMEDY)}")
    row = {key: rows[run].get(key, "") for key in COLUMNS}
    if row["seal"] != seal_of(row):  # writing it would seal what somebody changed
        raise UserError(f"{path}: the row of run '{run}' is damaged or was edited: see python make_folds.py --verify")
    record_run(path, {**row, "leaderboard": score.strip()})
    print(f"{path}: run {run}, leaderboard {score.strip()} (out of fold {row['oof']})\nnext: python report.py")


def preview(config_path: Path | None, fold: str, overrides: Sequence[str]) -> None:
    import train  # here: it loads torch, which a report can spare

    train.main(fold, config_path, overrides, rehearsal="augment_preview")
    config = ["--config", str(config_path)] if config_path else []
    print("next: look at it, then", shlex.join(["python", "train.py", *config, "--fold", fold, *overrides]))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", default=[], help="runs to show in detail (default: as submit.py chooses)")
    others = parser.add_mutually_exclusive_group()
    others.add_argument("--compare", nargs=2, metavar=("A", "B"), default=[], help="two runs, and A minus B")
    others.add_argument("--log-lb", nargs=2, metavar=("RUN", "SCORE"), help="record a leaderboard score")
    others.add_argument("--augment-preview", action="store_true", help="draw what the model sees of some images")
    parser.add_argument("--config", type=Path, help="with --augment-preview: the experiment (default: baseline)")
    parser.add_argument("--fold", default="", help="with --augment-preview (default: 0)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="with --augment-preview: as for train.py")
    arguments = parser.parse_intermixed_args()
    if (arguments.config or arguments.fold or arguments.overrides) and not arguments.augment_preview:
        parser.error("--config, --fold and key=value are for --augment-preview; runs are named behind --run")
    if arguments.run and (arguments.log_lb or arguments.augment_preview):
        parser.error("--run is for the page: leave it out, or leave out --log-lb and --augment-preview")
    return arguments


if __name__ == "__main__":
    arguments = parse_arguments()
    if arguments.log_lb:
        run_stage(lambda: log_score(*arguments.log_lb), keeps_parts=False)
    elif arguments.augment_preview:
        run_stage(lambda: preview(arguments.config, arguments.fold or "0", arguments.overrides), keeps_parts=False)
    else:
        run_stage(lambda: main(arguments.run, arguments.compare), keeps_parts=False)
