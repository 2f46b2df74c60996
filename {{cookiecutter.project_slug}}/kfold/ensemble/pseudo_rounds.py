"""One round of pseudo-labelling: the labels of each fold's student, their files, the verdict on the trained student."""

import json
from dataclasses import dataclass

import numpy as np

from kfold.artifacts import ALL_DATA, Workspace, read_manifest, read_trusted, register_run, verify_files
from kfold.config import NOT_TRAINED, Competition, Config, load_config, settings_hash
from kfold.data.folds import Folds
from kfold.data.targets import Targets
from kfold.ensemble.pseudo import PseudoRows, label_rows, rows_per_class
from kfold.ensemble.pseudo_files import TeacherFacts, fits, read_teachers, teacher_facts, write_pseudo
from kfold.errors import UserError
from kfold.files import locked
from kfold.intervals import is_gain, paired_difference
from kfold.metrics import Metric
from kfold.runs import by_name, read_oof_values
from kfold.seals import refuse_broken_seal, remove_sealed, write_sealed
from kfold.settings import difference

MOST_CLASSES = 20  # lines of the table


@dataclass(frozen=True)
class Data:
    """What every round reads."""

    facts: Competition
    folds: Folds
    targets: Targets
    metric: Metric
    test_ids: np.ndarray
    train_ids: np.ndarray  # all of folds.csv, also where a trial run takes fewer


@dataclass(frozen=True)
class Round:
    """One student. words: its settings, as they differ from the first run's."""

    number: int
    student: str
    teachers: tuple[str, ...]
    words: tuple[str, ...]
    config: Config


Labels = dict[int, tuple[PseudoRows, list[TeacherFacts]]]  # by fold, ALL_DATA last


# Labels


def label_folds(workspace: Workspace, this: Round, data: Data) -> Labels:
    return {fold: label_fold(workspace, this, data, fold) for fold in [*range(data.folds.num_folds), ALL_DATA]}


def label_fold(workspace: Workspace, this: Round, data: Data, fold: int) -> tuple[PseudoRows, list[TeacherFacts]]:
    """The labelled rows for one student, and who labelled them. ALL_DATA: by the mean of a run's folds."""
    manifests = read_teachers(workspace, this.teachers, fold, data.folds.num_folds, data.folds.stamp)
    predictions, never = [], set(data.train_ids)
    for run, models in manifests.items():
        parts = [
            read_trusted(workspace, run, model["trained_without_fold"], "test", data.folds.stamp, data.test_ids)
            for model in models
        ]
        values = [by_name(part, run, data.targets, data.facts.task, data.test_ids) for part in parts]
        predictions.append(np.mean(values, axis=0, dtype=np.float64))
        never |= {name for model in models for name in model.get("unreadable_test_ids", ())}  # these hold the prior
    usable = np.array([name not in never for name in data.test_ids])
    if not usable.any():
        raise UserError("no test row can be labelled: each is unreadable, or has the id of a training row")
    rows = label_rows(
        data.test_ids[usable],
        np.array(predictions)[:, usable],
        data.facts.task,
        data.targets.values[data.folds.fold != fold].std(axis=0),
        this.config.pseudo_threshold,
        this.config.pseudo_top_share,
        this.config.pseudo_per_class,
        this.config.pseudo_targets,
    )
    return rows, [teacher_facts(model) for models in manifests.values() for model in models]


def selection_table(this: Round, data: Data, labels: Labels) -> str:
    """Rows per class, and per fold their number, share of the test set and mean confidence."""
    config = this.config
    rule = f"threshold {config.pseudo_threshold}"
    if config.pseudo_top_share:
        rule = f"the surest {config.pseudo_top_share:.0%} of each class"
    limit = f", at most {config.pseudo_per_class} a class" if config.pseudo_per_class else ""
    counts = class_counts(data, labels)
    width = max(map(len, [*counts, "class"]))
    lines = [
        f"round {this.number}, student {this.student}: teachers {', '.join(this.teachers)}; {rule}{limit}; "
        f"{config.pseudo_targets} targets",
        f"  {'class':>{width}}  rows taken, over the folds",
    ]
    for name, of_folds in list(counts.items())[:MOST_CLASSES]:
        least, most = min(of_folds), max(of_folds)
        lines.append(f"  {name:>{width}}  {least}" + (f" to {most}" if most > least else ""))
    if len(counts) > MOST_CLASSES:
        lines.append(f"  {'...':>{width}}  and {len(counts) - MOST_CLASSES} classes more")
    lines.append(f"  {'fold':>{width}}  {'rows':>6}  of test  mean confidence")
    for fold, (rows, _) in labels.items():
        mean = f"{rows.confidence.mean():.3f}" if len(rows.ids) else "-"
        if fold != ALL_DATA:
            share = len(rows.ids) / len(data.test_ids)
            lines.append(f"  {fold:>{width}}  {len(rows.ids):>6}  {share:>7.1%}  {mean:>15}")
    return "\n".join(lines)


def class_counts(data: Data, labels: Labels) -> dict[str, list[int]]:
    """Taken rows of each class, fold by fold."""
    counts = [
        rows_per_class(rows, data.facts.task, data.targets.names)
        for fold, (rows, _) in labels.items()
        if fold != ALL_DATA
    ]
    return {name: [of_fold[name] for of_fold in counts] for name in counts[0]}


def write_labels(workspace: Workspace, this: Round, data: Data, labels: Labels, overwrite: bool) -> None:
    """Write pseudo.parquet of all folds before any is trained; files that fit are left as they are."""
    remove_sealed(workspace.round_path(this.student))
    register_run(workspace, this.student, data.facts, this.config, list(labels), overwrite)
    for fold, (rows, teachers) in labels.items():
        folder, path = workspace.fold_dir(this.student, fold), workspace.pseudo_path(this.student, fold)
        with locked(folder):
            if fits_teachers(workspace, this, data, fold) and not overwrite:
                continue
            if read_manifest(folder) is not None:
                raise UserError(
                    f"{path}: damaged, or its teachers changed since fold {fold} was trained on it: "
                    f"--overwrite makes the round again"
                )
            names, hashed = data.targets.names, settings_hash(this.config)
            write_pseudo(path, rows, teachers, data.folds.stamp, data.facts.task, names, hashed)


def fits_teachers(workspace: Workspace, this: Round, data: Data, fold: int) -> bool:
    """Whether pseudo.parquet is there, with these settings, by the teachers as they are now."""
    manifests = read_teachers(workspace, this.teachers, fold, data.folds.num_folds, data.folds.stamp)
    teachers = [teacher_facts(model) for models in manifests.values() for model in models]
    return fits(
        workspace.pseudo_path(this.student, fold),
        settings_hash(this.config),
        fold,
        data.folds.stamp,
        data.facts.task,
        data.targets.names,
        teachers,
        data.test_ids,
        data.train_ids,
    )


# The verdict


def judge(workspace: Workspace, this: Round, data: Data, rows_per_class: dict[str, list[int]]) -> dict:
    """What goes into round.json: pooled OOF scores before and after on the same rows, kept only if beyond noise."""
    before, after = (
        read_oof_values(workspace, run, data.folds, data.targets, data.facts.task)
        for run in (this.teachers[0], this.student)
    )
    truth, groups = data.targets.values, data.folds.group_or_none
    change = paired_difference(data.metric, truth, after, before, groups)
    return {
        "round": this.number,
        "teachers": list(this.teachers),
        "threshold": this.config.pseudo_threshold,
        "kept": bool(is_gain(data.metric, change)),
        "before": data.metric.function(truth, before),
        "after": data.metric.function(truth, after),
        **dict(zip(("difference", "low", "high"), change, strict=True)),
        "rows_per_class": rows_per_class,
        "compared": compared_files(workspace, this),
    }


def compared_files(workspace: Workspace, this: Round) -> dict[str, list[str]]:
    """sha256 of the out-of-fold files that a verdict rests on, fold by fold."""
    return {
        run: [
            read_manifest(workspace.fold_dir(run, fold))["files"]
            .get(workspace.predictions_path(run, fold, "oof").name, {})
            .get("sha256", "")
            for fold in workspace.trained_folds(run)
        ]
        for run in (this.teachers[0], this.student)
    }


def read_verdict(workspace: Workspace, this: Round, data: Data) -> dict | None:
    """What an earlier start came to, None where the round is not finished.

    Raises UserError when it was made with other settings, or its labels are damaged.
    """
    path, numbers = workspace.round_path(this.student), range(data.folds.num_folds)
    if not path.exists() or workspace.trained_folds(this.student) != list(numbers):
        return None
    remedy = "--overwrite makes the round again"
    saved = load_config(workspace.run_config_path(this.student))
    if changes := difference(this.config, saved, but=NOT_TRAINED):
        raise UserError(f"{path.parent}: this round was made with other settings; now {changes}: {remedy}")
    for fold in numbers:
        folder = workspace.fold_dir(this.student, fold)
        verify_files(folder, read_manifest(folder) or {"files": {}}, [workspace.pseudo_path(this.student, fold).name])
    if not all(fits_teachers(workspace, this, data, fold) for fold in numbers):
        print(f"round {this.number}: its teachers have other weights now than when they labelled it ({remedy})")
    try:
        verdict = json.loads(path.read_text(encoding="utf-8"))
        describe(verdict, this, data.metric.name)
        if not isinstance(verdict["kept"], bool):
            raise TypeError("kept")
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged: delete it, and the round is judged again") from None
    refuse_broken_seal(path)
    if verdict.get("compared") != compared_files(workspace, this):
        print(f"round {this.number}: done before; judged again, because it was predicted or trained again since")
        verdict = judge(workspace, this, data, verdict["rows_per_class"])
        write_sealed(path, json.dumps(verdict, indent=1) + "\n")
    else:
        print(f"round {this.number}: done before (--overwrite makes it again)")
    return verdict


def describe(verdict: dict, this: Round, metric: str) -> str:
    noise = "beyond noise" if verdict["low"] > 0 or verdict["high"] < 0 else "within noise"
    decision = "kept" if verdict["kept"] else f"rejected, {this.teachers[0]} stays the current run"
    return (
        f"round {this.number}: out of fold, {metric} {verdict['before']:.5f} -> {verdict['after']:.5f}, "
        f"difference {verdict['difference']:+.5f}, 95% interval {verdict['low']:+.5f} to {verdict['high']:+.5f}: "
        f"{noise}: {decision}"
    )
