"""The data sets of the paper: what is published of each, where it lies, how to open it, how to get it."""

from diffclip.evaluation.datasets.opening import open_dataset
from diffclip.evaluation.datasets.registry import Entry, entry, registry

__all__ = ["Entry", "entry", "open_dataset", "registry"]
