"""Training, in the order of use.

precision, losses; parameter_groups, optimizers, schedules, early_stopping; averaging: EMA and SWA; terms: what joins
the loss; objective: all of it; step: one batch; memory: when it is full; loop: a fold; predicting: the prediction
loop. For kfold/rehearsal: trial: a step that tells its loss; rewind; lr_finder, overfit, profiling.
"""
