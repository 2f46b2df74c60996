"""The stages of the inference notebook but predictions, which are kaggle/predict_hidden.py's.

Command  python kaggle/infer.py prepare   then, in /kaggle/temp/repository: predict_hidden.py, infer.py submit, check
Reads    the bundle that this file lies in, the competition's data below /kaggle/input (KAGGLE_ROOT names another root)
Writes   /kaggle/temp/repository/: the bundle, where it can be written; /kaggle/working/submission.csv: a valid one from
         `prepare` on, the real one after `submit`
"""
# ruff: noqa: E402

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import competition
import stack
import submit as submit_stage
from kfold import artifacts
from kfold.artifacts import Workspace
from kfold.config import load_competition
from kfold.data.folds import read_folds
from kfold.errors import run_stage
from kfold.kaggle.contents import read_stack_settings
from kfold.kaggle.inputs import KaggleTree
from kfold.kaggle.repository import read_marker, unfold
from kfold.runs import read_oof_values

BLEND = "bundle-mean"  # stands for several runs that were named without a stack of them


def prepare(bundle: Path, tree: KaggleTree) -> None:
    """Make the bundle a repository, and write a valid submission before anything can fail."""
    workspace = unfold(bundle, tree)
    facts = load_competition(workspace.competition_path)
    print(f"data: {facts.data_dir}")
    submit_stage.main(output=tree.submission_path, root=workspace.root, only="prior")


def submit(tree: KaggleTree) -> None:
    """The real submission: stacks are fitted again on stored out-of-fold rows, by the method that was chosen."""
    workspace, marker = Workspace(tree.repository), read_marker(tree.repository)
    predicted = json.loads(tree.plan_path.read_text(encoding="utf-8"))["predicted"]
    if not predicted:
        print(f"{tree.submission_path}: stays the prior submission, as no run was predicted")
        return
    stands_for = {run: run for run in predicted}  # what can be asked for -> the run that gives it
    for run in marker["runs"]:
        if artifacts.stack_of(workspace, run):
            settings = read_stack_settings(workspace, run)
            found = combine(workspace, run, settings.stack_of, stands_for, settings.method, settings.features)
            stands_for |= {run: found} if found else {}
    final = marker["final"]
    run = stands_for.get(final[0]) if len(final) == 1 else combine(workspace, BLEND, final, stands_for, "mean")
    submit_stage.main(run, output=tree.submission_path, root=workspace.root, all_data=marker["all_data"])


def combine(
    workspace: Workspace,
    name: str,
    parts: Sequence[str],
    stands_for: Mapping[str, str],
    method: str,
    features: Sequence[str] = ("oof",),
) -> str:
    """The stack `name` of those parts that there are; the run that gives its predictions, "" for none."""
    left = list(dict.fromkeys(stands_for[part] for part in parts if part in stands_for))
    if not left or len(left) < 2 <= len(parts):
        return "".join(left)
    before = stack_oof(workspace, name)
    stack.main(left, name, method, features, overwrite=True, root=workspace.root, alone=True)
    if before is not None and len(left) == len(parts):
        difference = np.abs(stack_oof(workspace, name) - before).max()
        print(f"stack {name}: its out-of-fold predictions are within {difference:.1e} of those that it was chosen by")
    return name


def stack_oof(workspace: Workspace, run: str) -> np.ndarray | None:
    """Out-of-fold predictions (N, C) of a stack; None where it is not there."""
    if not workspace.trained_folds(run):
        return None
    facts = load_competition(workspace.competition_path)
    folds = read_folds(workspace.folds_path, workspace.data_path(facts, facts.train_csv), facts)
    return read_oof_values(workspace, run, folds, competition.decode_targets(folds.table, facts), facts.task)


def check(tree: KaggleTree) -> None:
    submit_stage.main(output=tree.submission_path, root=tree.repository, only="check")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["prepare", "submit", "check"])
    arguments = parser.parse_args()
    kaggle_tree = KaggleTree.of_this_machine()
    stages = {
        "prepare": lambda: prepare(ROOT, kaggle_tree),
        "submit": lambda: submit(kaggle_tree),
        "check": lambda: check(kaggle_tree),
    }
    run_stage(stages[arguments.stage])
