"""Losses of our own that no library has in the form needed here, one idea a file."""
