"""How many models are held on the device at once, and which of them."""

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch

from kfold.free_memory import free_memory

SHARE = 0.5  # of the free memory, for weights; the rest is for images and what a network computes

Model = TypeVar("Model")


class Held(Generic[Model]):
    """Models that were made, up to `budget` bytes of weights: then those go that were not asked for the longest."""

    def __init__(self, budget: float):
        self.budget = budget
        self.models: dict[Hashable, tuple[Model, int]] = {}  # in the order in which they were asked for

    def get(self, key: Hashable, num_bytes: int, make: Callable[[], Model]) -> Model:
        """The model of that key, made now unless it is held."""
        found = self.models.pop(key, None)
        if found is None:
            while self.models and sum(size for _, size in self.models.values()) + num_bytes > self.budget:
                del self.models[next(iter(self.models))]
            found = make(), num_bytes
        self.models[key] = found
        return found[0]


def groups_that_fit(sizes: Sequence[int], budget: float) -> list[list[int]]:
    """Places in `sizes` (bytes), in order, in groups of at most `budget` bytes; a larger one is a group of its own."""
    groups: list[list[int]] = []
    for place, size in enumerate(sizes):
        if groups and sum(sizes[other] for other in groups[-1]) + size <= budget:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def memory_for_models(device: torch.device) -> float:
    """Bytes of weights that may be held on the device."""
    if device.type == "cuda":
        return SHARE * torch.cuda.mem_get_info()[0]
    if device.type == "mps":
        return SHARE * (torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return SHARE * free_memory()
