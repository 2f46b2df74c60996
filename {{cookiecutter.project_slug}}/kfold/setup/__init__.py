"""One fold put together from its settings, for train.py and kfold/rehearsal.

rows, cleaning: what is trained on; pixels, batches: how it is read; network; objective and terms: what is minimised;
training: optimizer, averages, recipe, saved state.
"""
