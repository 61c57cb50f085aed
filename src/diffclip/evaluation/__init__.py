"""What a model can do: zero-shot, linear-probe and few-shot classification, retrieval, fine-grained pairs."""

from diffclip.evaluation import results
from diffclip.evaluation.run import suite
from diffclip.evaluation.tasks import few_shot, fine_grained, linear_probe, retrieval, zero_shot

__all__ = ["few_shot", "fine_grained", "linear_probe", "results", "retrieval", "suite", "zero_shot"]
