"""Early stopping: a fold ends when its score has stood still (Prechelt, doi.org/10.1007/3-540-49430-8_3).

Where training ends is then chosen on the very rows that the score is of, so the score is a little optimistic, whatever
weights it is predicted with; the manifest says so (length_from_validation).
"""

from collections.abc import Callable, Sequence


def is_stalled(scores: Sequence[float], patience: int, better: Callable[[float, float], bool]) -> bool:
    """Whether the last `patience` epochs (0: never) brought no score better than the best one before them.

    scores: of each epoch that has ended, as the log has them, so a resumed training ends where it would have.
    better(a, b): whether a score beats another one; any beats NaN.
    """
    best, best_epoch = float("nan"), 0
    for epoch, score in enumerate(scores, start=1):
        if better(score, best):
            best, best_epoch = score, epoch
    return 0 < patience <= len(scores) - best_epoch
