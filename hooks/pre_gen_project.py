"""Refuse bad answers, one clear sentence for each, before any file is written.

Cookiecutter renders this file; the answers arrive as JSON data and are never part of the code. Unrendered it is
ordinary Python, so template_answers.py and the tests import it.
"""

import json
import re
import sys
import unicodedata

ANSWERS = r"""
{{ cookiecutter | tojson }}
"""

METRICS = {  # the same as in kfold/metrics.py, which a test compares
    "multiclass": "accuracy balanced_accuracy log_loss macro_f1 roc_auc average_precision quadratic_kappa mcc map_at_5",
    "binary": "accuracy balanced_accuracy log_loss macro_f1 roc_auc average_precision quadratic_kappa mcc",
    "multilabel": "accuracy log_loss macro_f1 roc_auc average_precision f1_samples f_beta_micro",
    "regression": "quadratic_kappa rmse mae r2 spearman",
}
FOLDS_COLUMNS = ["id", "fold", "group", "duplicate_group"]  # as in kfold/config.py
WINDOWS_DEVICES = {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)}
LONGEST = 2000  # characters of an answer


def find_problems(answers: dict) -> list[str]:
    """One line for each bad answer; empty when all are good."""
    answers = {key: value for key, value in answers.items() if not key.startswith("_")}
    unreadable = [problem for key, value in answers.items() if (problem := find_unreadable(key, value))]
    if unreadable:
        return unreadable  # the checks below need text
    return [
        *check_slug(answers["project_slug"]),
        *check_kaggle_competition(answers["kaggle_competition"]),
        *check_metric(answers["task"], answers["metric"]),
        *check_columns(answers),
        *check_image_suffix(answers["image_suffix"]),
        *check_num_folds(answers["num_folds"]),
    ]


def find_unreadable(key: str, value: object) -> str | None:
    if not isinstance(value, str):
        return f"{key}: {value!r} is not text: give one line of text"
    if len(value) > LONGEST:
        return f"{key}: '{value[:20]}...' has {len(value)} characters: give at most {LONGEST}"
    for character in value:  # these would not come back from YAML as they are
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in "\ufeff\ufffe\uffff":
            return f"{key}: {shown(value)!a} holds the control character {character!a}: give one line of plain text"
    if not value.strip() and key in ("project_name", "project_slug", "id_column"):
        return f"{key}: '{value}' is empty: give a name"
    return None


def shown(answer: str) -> str:
    return answer if len(answer) <= 60 else f"{answer[:60]}..."


def check_slug(slug: str) -> list[str]:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?", slug) or len(slug) > 100:
        return [
            f"project_slug: '{shown(slug)}' cannot name a folder: use a-z, 0-9, - and _, at most 100, as in my-project"
        ]
    if slug in WINDOWS_DEVICES:
        return [f"project_slug: '{slug}' is the name of a device on Windows: choose another, such as {slug}-project"]
    return []


def check_kaggle_competition(competition: str) -> list[str]:
    if competition and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", competition):
        return [
            f"kaggle_competition: '{shown(competition)}' is not a competition's short name: give the last part of its "
            f"address, such as cassava-leaf-disease-classification, or nothing"
        ]
    return []


def check_metric(task: str, metric: str) -> list[str]:
    if task not in METRICS:
        return [f"task: '{task}' is unknown: choose {', '.join(METRICS)}"]
    fitting = ["auto", *METRICS[task].split()]
    if metric not in fitting:
        return [f"metric: '{metric}' does not fit task {task}: choose {', '.join(fitting)}"]
    return []


def check_columns(answers: dict[str, str]) -> list[str]:
    text, task = answers["target_columns"], answers["task"]
    targets = [name.strip() for name in text.split(",")]
    if "" in targets:
        return [f"target_columns: '{shown(text)}' has an empty name: write the columns with single commas between them"]
    problems = [
        f"target_columns: '{name}' is the name of a column of folds.csv: rename it in the competition's files"
        for name in FOLDS_COLUMNS
        if name in targets
    ]
    named = [answers["id_column"], *targets, *filter(None, [answers["group_column"]])]
    problems += [
        f"id_column, target_columns, group_column: '{shown(name)}' is named twice: they must differ"
        for name in sorted({name for name in named if named.count(name) > 1})
    ]
    if task in ("multiclass", "binary") and len(set(targets)) > 1:
        problems.append(f"target_columns: '{shown(text)}' names several columns, but task {task} has one target column")
    return problems


def check_image_suffix(suffix: str) -> list[str]:
    if not re.fullmatch(r"([._-][A-Za-z0-9._-]*)?", suffix) or ".." in suffix:
        return [
            f"image_suffix: '{shown(suffix)}' cannot end a file name: write it like .jpg or _rgb.png, or leave it empty"
        ]
    return []


def check_num_folds(num_folds: str) -> list[str]:
    if not re.fullmatch(r"[2-9]|1[0-9]|20", num_folds):
        return [f"num_folds: '{shown(num_folds)}' is not a whole number from 2 to 20"]
    return []


if __name__ == "__main__":
    found = find_problems(json.loads(ANSWERS))
    sys.stderr.reconfigure(errors="backslashreplace")  # a terminal that cannot show every letter
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(1 if found else 0)
