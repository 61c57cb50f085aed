"""What a model can do: zero-shot classification, retrieval and fine-grained pairs, on any source of data."""

from diffclip.evaluation import fine_grained, results, retrieval, suite, zero_shot

__all__ = ["fine_grained", "results", "retrieval", "suite", "zero_shot"]
