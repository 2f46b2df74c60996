"""Scores and their intervals as people read them; a dash where they are undefined."""

import numpy as np


def show(value: float, sign: str = "") -> str:
    """sign: "+" for a difference."""
    return "-" if np.isnan(value) else f"{value:{sign}.5f}"


def show_interval(low: float, high: float, sign: str = "") -> str:
    return "-" if np.isnan(low) else f"{low:{sign}.5f} to {high:{sign}.5f}"
