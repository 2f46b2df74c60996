"""From many predictions to one.

tta: views of an image; choice: which weights and views; second_level: what blends and stackers take and give; blend,
linear, features, gbdt: the ways to combine runs; nested: their honest scores; tuning, tuners: thresholds, cuts,
temperature; stack_inputs, stack_settings, stack_files: what stack.py reads and leaves; pseudo, pseudo_files,
pseudo_rounds: test rows as training rows.
"""
