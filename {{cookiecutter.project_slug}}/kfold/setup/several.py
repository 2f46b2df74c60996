"""One fold on several processes: what it comes to, said at the start, and what does not go."""

import torch
from torch import nn

from kfold.config import Config
from kfold.data.loader import rows_of_share
from kfold.distributed import num_processes
from kfold.errors import UserError
from kfold.training.memory import split_rows


def share_of_batch(config: Config) -> Config:
    """The same experiment with the images that one process has of a batch."""
    return config.model_copy(update={"batch_size": max(2, config.batch_size // num_processes())})


def describe_processes(config: Config, num_rows: int, device: torch.device) -> str:
    """One line for the person. num_rows: to train on, without pseudo-labels.

    Raises UserError for what several processes cannot do.
    """
    size, batch = num_processes(), min(config.batch_size, num_rows)
    shares = [rows_of_share(batch, process, size) for process in range(size)]
    numbers = sorted({share.stop - share.start for share in shares})
    parts = {len(split_rows(number, config.accumulate)) for number in numbers}
    if numbers[0] < 2:
        raise UserError(
            f"batches of {batch} over {size} processes leave fewer than 2 images to each: take a larger batch_size, or "
            f"fewer processes"
        )
    if config.center_weight:
        raise UserError(
            "center_weight: each process would move the centers by its own images: leave it out, or use one"
        )
    if config.sync_batch_norm and device.type != "cuda":
        raise UserError("sync_batch_norm works on GPUs alone (PyTorch has no SyncBatchNorm for a CPU): leave it out")
    if config.sync_batch_norm and len(parts) > 1:
        raise UserError(
            f"sync_batch_norm with accumulate={config.accumulate}: the processes would have {min(parts)} to "
            f"{max(parts)} parts of a batch: take a batch_size that {size} divides"
        )
    per_process = " or ".join(map(str, numbers))
    in_parts = f", in {max(parts)} parts each" if max(parts) > 1 else ""
    seen = f"all {batch}" if config.sync_batch_norm else f"the {per_process} of its process (sync_batch_norm: all)"
    if in_parts:
        of_parts = {rows.stop - rows.start for number in numbers for rows in split_rows(number, config.accumulate)}
        per_part = " or ".join(map(str, sorted(of_parts)))
        seen = f"the {per_part} of a part" + (", of each process" if config.sync_batch_norm else "")
    return (
        f"{size} processes x {per_process} images = batches of {batch}{in_parts}; lr {config.peak_lr:g} as for {batch} "
        f"images on one device; BatchNorm sees {seen}"
    )


def synchronized(model: nn.Module, config: Config) -> nn.Module:
    """The model, with BatchNorm over the images of all processes where that is asked for; weights and names stay."""
    if num_processes() == 1 or not config.sync_batch_norm:
        return model
    from timm.layers import convert_sync_batchnorm  # torch's own would lose the activations in timm's BatchNormAct2d

    return convert_sync_batchnorm(model)
