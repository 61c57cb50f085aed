"""Zero-shot classification: the class whose prompts are nearest to the image (Radford et al. 2021)."""

import torch
from torch import Tensor

from diffclip.data.sources import TEMPLATES
from diffclip.evaluation.datasets.dataset import DataSet
from diffclip.evaluation.features.context import EvalContext
from diffclip.evaluation.features.encode import check_finite, class_embeddings, fill
from diffclip.evaluation.results import PerExampleScores
from diffclip.evaluation.task import Metric, Task

__all__ = ["TASK", "chance", "class_embeddings", "fill", "metrics", "scores"]

# Classes × images that are scored at a time; 4 bytes each.
BLOCK = 2**24


def metrics(image_features: Tensor, labels: Tensor, class_embeddings: Tensor) -> dict[str, float]:
    """`acc1`, `acc5` (only with five classes or more) and `mean_per_class_recall`, as fractions.

    image_features (N, embed_dim) and class_embeddings (classes, embed_dim), both normalised; labels (N,)
    int64. mean_per_class_recall averages over the classes that occur in `labels`, as scikit-learn's balanced
    accuracy does. Equal scores are taken in the order of `torch.topk`: a model that tells no class from
    another gets the share of one class, which is far above 1 / classes where one class dominates;
    mean_per_class_recall then is not.
    """
    return {name: values.mean().item() for name, values in scores(image_features, labels, class_embeddings).items()}


def scores(image_features: Tensor, labels: Tensor, class_embeddings: Tensor) -> dict[str, Tensor]:
    """What each image adds to each metric: name → (N,) float64, whose mean is the metric.

    An image of a class with n of the N images counts N / (n × classes that occur) in mean_per_class_recall.
    """
    classes = len(class_embeddings)
    if len(labels) == 0:
        raise ValueError("no image to classify")
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}, but there are {classes} classes")
    check_finite("image features", image_features)
    check_finite("class embeddings", class_embeddings)
    ranked = torch.cat(
        [
            (block @ class_embeddings.T).topk(min(5, classes), dim=1).indices
            for block in torch.split(image_features, max(1, BLOCK // classes))
        ]
    )  # (N, ≤ 5)
    labels = labels.to(ranked.device)
    hits = (ranked == labels[:, None]).double()
    counts = torch.bincount(labels, minlength=classes).double()
    weights = len(labels) / (counts[labels] * counts.count_nonzero())
    result = {"acc1": hits[:, 0], "acc5": hits.sum(dim=1), "mean_per_class_recall": hits[:, 0] * weights}
    if classes < 5:
        del result["acc5"]
    return result


def chance(classes: int) -> dict[str, float]:
    """What guessing a class at random scores in each metric."""
    result = {"acc1": 1 / classes, "mean_per_class_recall": 1 / classes}
    if classes >= 5:
        result["acc5"] = 5 / classes
    return result


def _measure(context: EvalContext) -> PerExampleScores:
    images, has_label = context.with_labels()
    values = scores(images.features[has_label], images.labels[has_label], context.class_embeddings)
    return PerExampleScores(images.indices[has_label], values, chance(len(context.class_embeddings)))


def _prompts(data: DataSet) -> int:
    source = data.test
    return len(source.classnames or ()) * len(source.templates or TEMPLATES)


TASK = Task(
    name="zero_shot",
    title="zero-shot classification",
    result="zeroshot_classification",
    needs="labels and class names",
    requires=("labels",),
    splits=("test",),
    texts=_prompts,
    headline="acc1",
    metrics=(
        Metric("acc1", "top-1 accuracy"),
        Metric("acc5", "top-5 accuracy"),
        Metric("mean_per_class_recall", "mean per-class recall"),
    ),
    measure=_measure,
)
