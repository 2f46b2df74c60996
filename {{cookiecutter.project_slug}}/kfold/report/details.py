"""The sections about one run's predictions, by task."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kfold.config import Task
from kfold.data.folds import Folds
from kfold.data.targets import Targets
from kfold.metrics import CLASSIFICATION, Metric, decide
from kfold.report.breakdown import class_section, group_section, target_section
from kfold.report.calibration import calibration_section
from kfold.report.confusion import confusion_section
from kfold.report.gallery import Rows, gallery_section
from kfold.report.parts import Section, Text
from kfold.report.per_label import per_label_section
from kfold.report.reading import RunFound
from kfold.report.residuals import residuals_section


def detail_sections(
    run: RunFound, folds: Folds, targets: Targets, task: Task, metric: Metric, paths: Sequence[Path], group_column: str
) -> list[Section]:
    """Every section on the out-of-fold predictions of a run, named in each title. paths: of the N images."""
    rows = run.has_oof
    if not rows.any():
        return [Section(f"Predictions: {run.name}", [Text("No out-of-fold predictions yet: run python train.py.")])]
    truth, predicted, names = targets.values[rows], run.oof[rows], targets.names
    groups = None if folds.group_or_none is None else folds.group[rows]
    sections = []
    if task == "multiclass":
        sections.append(confusion_section(decide(task, truth), decide(task, predicted), names))
    if task in ("binary", "multilabel"):
        sections.append(per_label_section(truth, predicted, names))
    if task in CLASSIFICATION:
        sections.append(calibration_section(task, truth, predicted, names))
        sections.append(class_section(task, truth, predicted, names, groups))
    else:
        sections.append(residuals_section(truth, predicted, names))
        if len(names) > 1:
            sections.append(target_section(metric, truth, predicted, names, groups))
    if groups is not None:
        sections.append(group_section(metric, truth, predicted, groups, f"Scores by {group_column}"))
    kept = [path for path, is_kept in zip(paths, rows, strict=True) if is_kept]
    columns = (folds.ids[rows], folds.fold[rows], folds.duplicate_group[rows])
    sections.append(gallery_section(Rows(task, truth, predicted, names, targets.labels, *columns, kept)))
    return [replace(section, title=f"{section.title}: {run.name}") for section in sections]
