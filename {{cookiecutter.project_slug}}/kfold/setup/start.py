"""A fold before its first step: its network, and all that trains it."""

import torch
from torch import nn

from kfold.config import Config
from kfold.data.cache import Pixels
from kfold.distributed import agreed, by_first, is_first
from kfold.model.weights import ModelCard
from kfold.setup.network import make_card, make_model, with_input
from kfold.setup.rows import TrainingRows
from kfold.setup.several import synchronized
from kfold.setup.training import make_averages, make_optimizer_of
from kfold.training.overfit import refuse_frozen
from kfold.training.speed import Speed, start_with
from kfold.training.state import Training


def make_network(
    rows: TrainingRows,
    names: tuple[str, ...],
    task: str,
    config: Config,
    number: int,
    device: torch.device,
    pixels: Pixels,
) -> tuple[nn.Module, ModelCard]:
    """The fold's model and its card, by the real training rows.

    names: of the targets' columns. Raises UserError where nothing of the model is trained.
    """
    paths, values = rows.train_paths[: rows.num_real], rows.train_targets[: rows.num_real]
    with agreed():
        # The others get their weights from the first process: one download is enough.
        own = config if is_first() else config.model_copy(update={"pretrained": False})
        model = make_model(own, task, number, values).to(device)
        refuse_frozen(model)  # PyTorch makes no optimizer of nothing
        card = make_card(model, config, task, names, values)
    return model, by_first(with_input, card, config, paths, pixels)


def make_training(model: nn.Module, config: Config, speed: Speed, device: torch.device) -> Training:
    """The training as it stands before any step; the model is arranged for `speed`."""
    model = synchronized(model, config)
    compiled = start_with(model, speed)
    optimizer = make_optimizer_of(model, config, speed.fused)
    scaler = torch.amp.GradScaler(device.type, enabled=speed.dtype == "float16")
    return Training(model, optimizer, scaler, make_averages(model, config), config.accumulate, compiled)
