"""What can be learned of a fold's training before it is worth hours, for train.py and report.py.

assembled: all that a fold trains with, made anew; find_lr, overfit_batch, profile, augment_preview; rehearse: calls
one of these. Nothing of a run is changed, whether it is done, under way or not begun, and its settings are not
registered: training with the rate that was found is no contradiction.
"""
