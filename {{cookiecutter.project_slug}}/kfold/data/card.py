"""The fold card: what one looks at before trusting the folds."""

import numpy as np

from kfold.data.folds import Folds, cut_groups
from kfold.data.targets import Targets

MAX_COLUMNS = 12  # targets shown; of more, those that differ most between folds


def fold_card(folds: Folds, targets: Targets, scheme: str) -> str:
    """Per fold: rows, groups, groups of copies, and the mean of every target (of classes: their shares), as text."""
    numbers = range(int(folds.fold.max()) + 1)
    means = np.array([targets.values[folds.fold == fold].mean(axis=0) for fold in numbers])  # (K, C)
    whole = targets.values.mean(axis=0)
    spread = np.abs(means - whole).max(axis=0)
    shown = np.sort(np.argsort(-spread, kind="stable")[:MAX_COLUMNS])
    names = column_names(targets)
    is_share = bool(np.isin(targets.values, (0, 1)).all())
    table = [["fold", "rows", "groups", "copies", *(names[column] for column in shown)]]
    for fold in numbers:
        inside = folds.fold == fold
        counts = [inside.sum(), *(len(set(group[inside]) - {""}) for group in (folds.group, folds.duplicate_group))]
        table.append([str(fold), *map(str, counts), *(show(means[fold, column], is_share) for column in shown)])
    table.append(["all", str(len(folds.ids)), "", "", *(show(whole[column], is_share) for column in shown)])
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    worst = int(spread.argmax())
    gap = f"{100 * spread[worst]:.2f} percentage points" if is_share else f"{spread[worst]:.4g}"
    overlaps = [len(cut_groups(group, folds.fold)) for group in (folds.group, folds.duplicate_group)]
    return "\n".join(
        [
            f"{len(folds.ids)} rows in {len(numbers)} folds, scheme {scheme}, fold stamp {folds.stamp[:12]}",
            *lines,
            f"largest difference of a fold from the whole: {gap} (of '{names[worst]}'; {len(names)} columns compared)",
            f"overlaps between folds: groups {overlaps[0]}, copies {overlaps[1]}",
        ]
    )


def column_names(targets: Targets) -> tuple[str, ...]:
    if len(targets.names) == 1 and targets.labels:
        return (targets.labels[-1],)  # the share of the positive class
    return targets.names


def show(mean: float, is_share: bool) -> str:
    return f"{100 * mean:.1f}%" if is_share else f"{mean:.4g}"
