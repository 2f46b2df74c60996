"""A training step that tells its loss, for tools that watch single steps."""

import torch

from kfold.data.loader import Batch
from kfold.model.weights import ModelCard
from kfold.training.objective import Objective
from kfold.training.precision import Precision
from kfold.training.state import Training
from kfold.training.step import MAX_SKIPPED_IN_ROW, Moment, take_step


def trial_step(
    training: Training,
    card: ModelCard,
    objective: Objective,
    batch: Batch,
    moment: Moment,
    device: torch.device,
    precision: Precision,
) -> float:
    """Train on a batch; its loss before the step, or NaN where that or a gradient is not finite.

    A mere overflow of float16 halves the loss scale and tries the same batch again.
    """
    for _ in range(MAX_SKIPPED_IN_ROW):
        training.total_loss, training.num_averaged, training.skipped_in_row = 0.0, 0, 0
        num_known = len(training.skipped_rows)
        take_step(training, card, objective, batch, moment, device, precision)
        if training.num_averaged:
            return float(training.total_loss) / training.num_averaged
        if len(training.skipped_rows) > num_known:
            break
    return float("nan")
