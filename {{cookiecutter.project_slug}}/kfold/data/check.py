"""The data check: every problem of the tables and images at once, each one line with where and what to do."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from kfold.artifacts import Workspace
from kfold.config import Competition
from kfold.data.check_images import conflicting_copies, count_notes, describe_bad, describe_sizes
from kfold.data.duplicates import find_pairs, name_groups
from kfold.data.ids import odd_ids
from kfold.data.images import image_paths
from kfold.data.scan import Scan, scan_images
from kfold.data.tables import read_table, read_test_ids, shorten
from kfold.data.targets import Targets
from kfold.errors import UserError, list_problems

STUB_ROWS = 10  # a sample submission this short is a placeholder


@dataclass
class Check:
    """What the check found. `errors` stop, `warnings` do not, `notes` are worth knowing.

    table: the usable rows of train.csv as text; targets and duplicate_group (N,) belong to them. None, like the
    targets, where errors left nothing to work with.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    table: pd.DataFrame | None = None
    targets: Targets | None = None
    duplicate_group: np.ndarray | None = None

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Note a UserError and go on."""
        try:
            yield
        except UserError as error:
            self.errors += error.problems


def check_data(
    workspace: Workspace, facts: Competition, decode: Callable[[pd.DataFrame, Competition], Targets]
) -> Check:
    """Read all tables and images of the competition; `decode` is competition.py's decode_targets."""
    check = Check()
    train = None
    with check.collect():
        named = [facts.id_column, *facts.target_columns, facts.group_column, facts.time_column]
        train = read_table(workspace.data_path(facts, facts.train_csv), [name for name in named if name])
    test_ids = check_test_ids(check, workspace, facts)
    train_ids = [] if train is None else train[facts.id_column].tolist()
    check.warnings += odd_ids(workspace.data_path(facts, facts.train_csv), train_ids)
    both = sorted(set(train_ids) & set(test_ids))
    if both and facts.train_images != facts.test_images:
        check.warnings.append(
            f"{len(both)} ids are in train and test, the first is '{both[0]}': are they the same image?"
        )
    train_folder, test_folder = (workspace.data_path(facts, name) for name in (facts.train_images, facts.test_images))
    train_scans = check_images(check, train_folder, train_ids, facts, is_test=False)
    test_scans = check_images(check, test_folder, test_ids, facts, is_test=True)
    if train is not None:
        check_copies(check, train, train_scans, test_ids, test_scans, facts)
        check_targets(check, facts, decode)
    return check


def check_test_ids(check: Check, workspace: Workspace, facts: Competition) -> list[str]:
    """The ids to predict; problems of test.csv and of the sample submission are noted."""
    test_path = workspace.data_path(facts, facts.test_csv)
    sample_path = workspace.data_path(facts, facts.sample_submission_csv)
    if not sample_path.exists():
        check.warnings.append(f"{sample_path}: no such file: submit.py needs it")
        if not test_path.exists():
            check.warnings.append(f"{test_path}: no such file either: there is nothing to predict")
            return []
    test_ids: list[str] = []
    with check.collect():
        test_ids = read_test_ids(test_path, sample_path, facts.id_column)
    if test_path.exists() and sample_path.exists():
        with check.collect():
            sample_ids = read_table(sample_path, [facts.id_column])[facts.id_column].tolist()
            compare_test_ids(check, test_path, test_ids, sample_path, sample_ids)
    check.warnings += odd_ids(test_path if test_path.exists() else sample_path, test_ids)
    return test_ids


def compare_test_ids(
    check: Check, test_path: Path, test_ids: Sequence[str], sample_path: Path, sample_ids: Sequence[str]
) -> None:
    if not test_ids:
        return  # it could not be read, which is said already
    missing = sorted(set(test_ids) - set(sample_ids))
    foreign = sorted(set(sample_ids) - set(test_ids))
    if missing and len(sample_ids) <= STUB_ROWS and not foreign:
        check.warnings.append(
            f"{sample_path}: has only {len(sample_ids)} of {test_path.name}'s {len(test_ids)} ids, "
            f"a placeholder it seems: the ids of {test_path.name} are used"
        )
        return
    for path, odd, other in ((sample_path, missing, test_path), (test_path, foreign, sample_path)):
        check.errors += list_problems(
            odd,
            lambda name, path=path, other=other: (
                f"{path}: id '{name}' of {other.name} is missing: download both files again"
            ),
        )


def check_images(check: Check, folder: Path, ids: Sequence[str], facts: Competition, is_test: bool) -> list[Scan]:
    """A Scan per id. Bad training images are errors, or dropped by policy; bad test images are warnings."""
    if not ids:
        return []
    if is_test:
        problems, remedy = check.warnings, "it will get the prior prediction"
    elif facts.bad_train_images == "drop":
        problems, remedy = check.warnings, "its row is left out of folds.csv"
    else:
        problems, remedy = check.errors, "replace it, or set bad_train_images: drop in competition.yaml"
    paths, refused = image_paths(folder, ids, facts.image_suffix)
    # An id that leads out is an error in train.csv even where bad images are dropped: it is the id that is wrong.
    told = [f"{problem}: {remedy}" for problem in refused.values()] if is_test else list(refused.values())
    (check.warnings if is_test else check.errors).extend(shorten(told))
    kept = [row for row in range(len(ids)) if row not in refused]
    found = list(scan_images([paths[row] for row in kept], folder.name))
    problems += describe_bad(folder, [paths[row] for row in kept], found, facts.image_suffix, remedy)
    scans = [Scan("has an id that cannot be used")] * len(ids)
    for row, scan in zip(kept, found, strict=True):
        scans[row] = scan
    check.warnings += count_notes(folder, ids, scans)
    check.notes += describe_sizes(folder, scans)
    return scans


def check_copies(
    check: Check,
    train: pd.DataFrame,
    train_scans: Sequence[Scan],
    test_ids: Sequence[str],
    test_scans: Sequence[Scan],
    facts: Competition,
) -> None:
    """Find copies among the training images, and between them and the test images; drop bad rows by policy."""
    if facts.bad_train_images == "drop":
        train = train[[not scan.problem for scan in train_scans]]
    train = train.sort_values(facts.id_column)  # so that the order in train.csv changes nothing
    ids = train[facts.id_column].to_numpy(object)
    scans = [train_scans[row] for row in train.index]
    pairs = find_pairs([*scans, *test_scans])
    inside = (pairs < len(ids)).all(axis=1)
    check.table = train.reset_index(drop=True)
    check.duplicate_group = name_groups(ids, pairs[inside])
    copies = check.duplicate_group[check.duplicate_group != ""]
    if len(copies):
        check.notes.append(f"{len(copies)} training images are copies of each other, in {len(set(copies))} groups")
        check.warnings += conflicting_copies(check.table, scans, facts)
    among_test = np.unique(pairs[(pairs >= len(ids)).all(axis=1)])
    if len(among_test):
        check.notes.append(f"{len(among_test)} test images are copies of each other")
    across = pairs[(pairs[:, 0] < len(ids)) & (pairs[:, 1] >= len(ids))]
    if len(across):
        listed = ", ".join(f"'{test_ids[right - len(ids)]}' of '{ids[left]}'" for left, right in across[:5])
        check.warnings.append(
            f"{len(np.unique(across[:, 1]))} test images are copies of training images ({listed}"
            f"{' ...' if len(across) > 5 else ''}): the leaderboard may reward learning by heart"
        )


def check_targets(check: Check, facts: Competition, decode: Callable[[pd.DataFrame, Competition], Targets]) -> None:
    if not len(check.table):
        check.errors.append(f"{facts.train_csv}: no row has a usable image: see above")
        return
    with check.collect():
        targets = decode(check.table, facts)
        if targets.values.shape != (len(check.table), len(targets.names)) or not np.isfinite(targets.values).all():
            raise UserError(
                f"competition.py: decode_targets must return finite values of {len(check.table)} rows and "
                f"{len(targets.names)} columns (one per name), not {targets.values.shape}"
            )
        check.targets = targets
        if facts.task == "multilabel":
            check.warnings += shorten(
                [
                    f"{facts.train_csv}: label '{name}' has {count} rows, fewer than num_folds = {facts.num_folds}: "
                    f"some folds have none to score"
                    for name, count in zip(targets.names, targets.values.sum(axis=0).astype(int), strict=True)
                    if count < facts.num_folds
                ]
            )
    if facts.group_column and (num_blank := int((check.table[facts.group_column].str.strip() == "").sum())):
        check.warnings.append(
            f"{facts.train_csv}: {num_blank} rows have no {facts.group_column}: each is its own group"
        )
