"""One training on several processes: all start from the same state, and each step ends with the same weights on all."""

import copy
import io
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from kfold.distributed import is_first, num_processes, of_first, rank
from kfold.seeds import seed_of
from kfold.training.rewind import generators_kept
from kfold.training.state import Training, load_state, to_state


def share_training(training: Training) -> None:
    """Give every process what the first one has: its first weights, or a saved state."""
    if num_processes() == 1:
        return
    file = io.BytesIO()
    if is_first():
        torch.save(to_state(training, {}), file)
    content = of_first(file.getvalue())
    if not is_first():
        load_state(training, torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))


def shared_forward(model: nn.Module, image_size: int, has_idle_epochs: bool) -> Callable:
    """A forward pass whose gradients become the mean over processes in the backward pass.

    To be made when all that will ever learn is set to learn. has_idle_epochs: whether some of it is frozen at times.
    """
    is_searched = has_idle_epochs or has_idle_weights(model, image_size)  # each step, for what gets no gradient
    shared = DistributedDataParallel(model, init_sync=False, find_unused_parameters=is_searched)
    shared.broadcast_buffers = False  # they are alike: share_training, average_statistics
    return shared


def has_idle_weights(model: nn.Module, image_size: int) -> bool:
    """Whether weights that should learn have no part in the logits, as those of a branch that is not used.

    Their gradients would be waited for. Tried on a copy, which has BatchNorm's statistics to itself; generators are
    left as they were, or a resumed training would go on with other numbers.
    """
    twin, device = copy.deepcopy(model), next(model.parameters()).device
    with generators_kept():  # dropout draws
        logits = twin(torch.zeros(2, 3, image_size, image_size, device=device))
    learning = [weight for weight in twin.parameters() if weight.requires_grad]
    return any(gradient is None for gradient in torch.autograd.grad(logits.sum(), learning, allow_unused=True))


def gradients_kept_here(forward: Callable, is_last_part: bool) -> AbstractContextManager:
    """Around a part of a batch, forward and backward: only the last one hands over the sum of its gradients."""
    is_shared = isinstance(forward, DistributedDataParallel)
    return forward.no_sync() if is_shared and not is_last_part else nullcontext()


@torch.no_grad()
def average_statistics(model: nn.Module) -> None:
    """BatchNorm's running statistics become the mean over processes, each of which has seen its own images.

    The mean is that of the whole batch; the variance is the mean of the shares', as with a batch in parts.
    """
    if num_processes() == 1:
        return
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm) and part.training]
    tensors = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var) if tensor is not None]
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= num_processes()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def seed_apart(seed: int) -> None:
    """From here on a step draws other numbers in each process: two images should not share a mask of dropout."""
    if rank():
        torch.manual_seed(seed_of(seed, rank()))
