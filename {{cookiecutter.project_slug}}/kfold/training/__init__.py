"""Training, in the order of use.

precision, losses, optimizers, schedules; averaging: EMA and SWA; objectives: distillation and the mean teacher; loop:
the training loop of a fold, and the prediction loop.
"""
