"""A fold before its first step: its network, and all that trains it."""

import torch

from kfold.config import Config
from kfold.model.weights import ModelCard
from kfold.setup.network import make_card, make_model, with_input
from kfold.setup.rows import TrainingRows
from kfold.setup.training import make_averages, make_optimizer_of
from kfold.training.overfit import refuse_frozen
from kfold.training.precision import Precision
from kfold.training.state import Training


def make_training(
    rows: TrainingRows,
    names: tuple[str, ...],
    task: str,
    config: Config,
    number: int,
    device: torch.device,
    precision: Precision,
) -> tuple[Training, ModelCard]:
    """The fold's training as it stands before any step, and the card of its model, by the real training rows.

    names: of the targets' columns. Raises UserError where nothing of the model is trained.
    """
    paths, values = rows.train_paths[: rows.num_real], rows.train_targets[: rows.num_real]
    model = make_model(config, task, number, values).to(device)
    refuse_frozen(model)  # PyTorch makes no optimizer of nothing
    card = with_input(make_card(model, config, task, names, values), config, paths)
    optimizer = make_optimizer_of(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=precision.needs_scaler)
    return Training(model, optimizer, scaler, make_averages(model, config), config.accumulate), card
