"""Sizes of training images that change from batch to batch, or as training goes on; validation keeps to one size."""

from collections.abc import Callable, Sequence

from kfold.seeds import seed_of

SizeOf = Callable[[int, int], int]  # (epoch, batch), both from 0 -> pixels


def drawn_sizes(sizes: Sequence[int], seed: int, fold: int) -> SizeOf:
    """One of the sizes for each batch, all as likely: Redmon and Farhadi, arxiv.org/abs/1612.08242, section 2."""
    return lambda epoch, batch: sizes[seed_of(seed, fold, epoch, batch, "size") % len(sizes)]


def growing_sizes(sizes: Sequence[int], epochs: int) -> SizeOf:
    """The sizes in order, for equal stretches of the epochs: Tan and Le, arxiv.org/abs/2104.00298, section 4."""
    return lambda epoch, batch: sizes[min(epoch * len(sizes) // epochs, len(sizes) - 1)]
