"""Figures of results, training curves and attention."""
