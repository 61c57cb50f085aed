"""Differential attention: the layer, the operation and its backends."""
