"""Weights: load, save, read the files of other programs."""
