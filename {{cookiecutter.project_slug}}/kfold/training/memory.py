"""Full memory: a batch is split into parts that are trained, or predicted, one after the other."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from kfold.distributed import num_processes, rank
from kfold.errors import UserError
from kfold.training.state import Training


def split_rows(num_rows: int, num_parts: int) -> list[slice]:
    """Parts of a batch, alike in size, of two rows or more: BatchNorm cannot train on one."""
    bounds = np.linspace(0, num_rows, min(num_parts, max(1, num_rows // 2)) + 1).round().astype(int).tolist()
    return [slice(first, last) for first, last in zip(bounds[:-1], bounds[1:], strict=True)]


def split_further(training: Training, num_rows: int, device: torch.device) -> None:
    """Twice as many parts a batch. Raises UserError when they are down to two images.

    Or where several processes share the batch: the others wait for gradients of the parts as they were.
    """
    parts = len(split_rows(num_rows, training.accumulate))
    if parts == len(split_rows(num_rows, 2 * parts)):
        raise UserError(
            f"the memory of the {device.type} is full with 2 images: lower image_size, or take a smaller backbone"
        )
    if num_processes() > 1:
        raise UserError(
            f"process {rank()}: the memory of the {device.type} is full with {-(-num_rows // parts)} images: start "
            f"anew with accumulate={2 * parts} (--overwrite), or a smaller batch_size"
        )
    training.accumulate = 2 * parts
    if device.type == "cuda":
        torch.cuda.empty_cache()
    print(
        f"  the memory is full: batches of {num_rows} are split into {training.accumulate} parts from here on "
        f"(accumulate={training.accumulate} does so from the start)"
    )


def is_full_memory(error: RuntimeError) -> bool:
    """cuBLAS, cuDNN and Apple's GPUs have no class of error for it."""
    return isinstance(error, torch.OutOfMemoryError) or bool(re.search("out of memory|ALLOC_FAILED", str(error)))


@contextmanager
def full_memory_named(what: str) -> Iterator[None]:
    """Raises UserError where the memory is full. A batch that is too large is split; here even the model was."""
    try:
        yield
    except RuntimeError as error:
        if not is_full_memory(error):
            raise
        raise UserError(f"{what}: the GPU's memory is full: free it, or take a smaller backbone") from None
