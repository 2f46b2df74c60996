"""Losses that no library gives a row or a cell at a time, and what works on labels, weights, logits and features.

A loss (table in kfold/training/losses.py): (logits (B, C) float32, targets (B, C) float32) -> (B, 1) or (B, C).
"""
