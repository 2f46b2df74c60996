"""Which weights and views a run is predicted with: compared out of fold, said, and kept in choices.csv."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from kfold.ensemble.choice import OPTIMISTIC, choice_table, compare_candidates
from kfold.inference import out_of_fold
from kfold.intervals import score_folds
from kfold.ledger import COLUMNS, read_ledger, record_run
from kfold.prediction_job import Job
from kfold.report.spreadsheet import to_spreadsheet
from kfold.report.tables import cv_table
from kfold.runs import OPTIMISM
from kfold.seals import write_sealed


def choose(job: Job, kinds: Sequence[str], views: Sequence[str]) -> tuple[str, str]:
    """One kind of weights, then one set of views; prints and saves what was compared."""
    tables = []
    plain_view = views[0] if len(views) == 1 else "none"
    kind, table = choose_one(job, "weights", with_plain(kinds, "last"), lambda name: (name, plain_view), kinds)
    tables.append(table)
    view, table = choose_one(job, "tta", with_plain(views, "none"), lambda name: (kind, name), views)
    tables.append(table)
    write_sealed(job.workspace.choices_path(job.run), to_spreadsheet(pd.concat(tables, ignore_index=True)))
    taken = table[table["chosen"]].iloc[0]
    print(
        f"run {job.run}, out of fold, weights={kind}, tta={view}: {job.metric.name} {taken['score']:.5f}, 95% interval "
        f"{taken['low']:.5f} to {taken['high']:.5f}, {taken['milliseconds']:.2f} ms an image"
        + (f"; {OPTIMISM}" if kind in OPTIMISTIC or job.config.early_stopping else "")
    )
    if len(job.numbers) == job.folds.num_folds:
        summarize(job, out_of_fold(job, [(kind, view)])[0].predictions)
    return kind, view


def summarize(job: Job, predictions: np.ndarray) -> None:
    """Print the table of all folds; the run's row of the ledger gets the scores of the weights and views taken."""
    groups = job.folds.group_or_none
    scores = score_folds(job.metric, job.targets.values, predictions, job.folds.fold, groups)
    print(cv_table(job.metric.name, scores))
    rows = {row["run"]: row for row in read_ledger(job.workspace.ledger_path)}
    if job.run in rows:
        known = {key: cell for key, cell in rows[job.run].items() if key in COLUMNS}
        found = {"oof": scores.pooled, "oof_low": scores.low, "oof_high": scores.high}
        by_fold = " ".join(f"{score:.5f}" for score in scores.by_fold.values())
        record_run(job.workspace.ledger_path, {**known, **found, "fold_scores": by_fold})


def with_plain(wishes: Sequence[str], plain: str) -> list[str]:
    """A single wish is compared with the plain one."""
    return [plain, *wishes] if len(wishes) == 1 and wishes[0] != plain else list(wishes)


def choose_one(
    job: Job, what: str, names: Sequence[str], pair_of: Callable[[str], tuple[str, str]], wishes: Sequence[str]
) -> tuple[str, pd.DataFrame]:
    rows, groups = job.rows, job.folds.group_or_none
    candidates = dict(zip(names, out_of_fold(job, [pair_of(name) for name in names]), strict=True))
    wish = wishes[0] if len(wishes) == 1 else ""
    chosen, table = compare_candidates(
        candidates, job.targets.values[rows], job.metric, groups[rows] if groups is not None else None, wish
    )
    kind, view = pair_of(chosen)
    if len(names) > 1:
        other = f"tta={view}" if what == "weights" else f"weights={kind}"
        print(f"run {job.run}, out of fold, {other}:\n{choice_table(what, job.metric.name, table)}")
        if not wish:
            print(f"  {what}={chosen} is the simplest within noise of the best (a choice made on these rows)")
    return chosen, table.assign(what=what)
