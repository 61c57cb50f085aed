"""Tasks and metrics in words, and which metrics are compared."""

import re

ZERO_SHOT = "zeroshot_classification"
TASKS = {
    ZERO_SHOT: "zero-shot classification",
    "zeroshot_retrieval": "retrieval",
    "fine_grained": "fine-grained pairs",
    "grounding": "where the model looks",
}
METRICS = {
    "acc1": "top-1 accuracy",
    "relative_acc1": "share of the clean accuracy",
    "acc5": "top-5 accuracy",
    "mean_per_class_recall": "mean per-class recall",
    "pair_accuracy": "pairs right, mean of patterns",
    "pointing_game": "most relevant patch in the mask",
    "energy_in_mask": "relevance in the mask",
    "average_precision": "average precision of the mask",
    "average_precision_of_other_query": "the same, by another query's map",
    "pointing_game_by_occlusion": "most missed cell in the mask",
    "energy_in_mask_by_occlusion": "what is missed in the mask",
    "average_precision_by_occlusion": "average precision by what is missed",
}
# As columns of a table of grounding alone.
GROUNDING_COLUMNS = {
    "pointing_game": "Pointing game",
    "energy_in_mask": "Energy in the mask",
    "average_precision": "Average precision",
    "average_precision_of_other_query": "The same, another query's map",
    "pointing_game_by_occlusion": "Pointing game, by occlusion",
    "energy_in_mask_by_occlusion": "Energy in the mask, by occlusion",
    "average_precision_by_occlusion": "Average precision, by occlusion",
}
# Fractions that speak of a model's quality. Not: values by ε or severity, and what is no fraction (C, entropies).
QUALITY = re.compile(
    r"acc1|acc5|mean_per_class_recall|(image|text)_retrieval_recall@\d+|pair_accuracy(/\w+)?|relative_acc1|"
    + "|".join(GROUNDING_COLUMNS)
)


def task_title(task: str) -> str:
    """A task in words."""
    return TASKS.get(task, task.replace("_", " "))


def metric_title(metric: str) -> str:
    """A metric in words: `image_retrieval_recall@5` is "image recall@5"."""
    if metric.startswith("pair_accuracy/"):
        return metric.removeprefix("pair_accuracy/").replace("_", " ")
    return METRICS.get(metric, metric.replace("_retrieval_", " ").replace("_", " "))
