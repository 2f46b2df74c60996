"""One fold put together from its settings, for train.py and kfold/rehearsal.

rows, cleaning: what is trained on; pixels, batches: how it is read; network; objective and terms: what is minimised;
unlabelled: images for the mean teacher; training: optimizer, averages, recipe, saved state; start: what a fold has
before its first step.
"""
