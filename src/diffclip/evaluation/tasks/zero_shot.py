"""Zero-shot classification: the class whose prompts are nearest to the image (Radford et al. 2021)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from diffclip.data.sources import check_template
from diffclip.errors import UserError
from diffclip.evaluation.features.encode import Tokenize, check_finite, text_features
from diffclip.models.clip import CLIP

# Classes × images that are scored at a time; 4 bytes each.
BLOCK = 2**24


def class_embeddings(
    model: CLIP,
    tokenizer: Tokenize,
    classnames: Sequence[str],
    templates: Sequence[str],
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """One embedding a class, (classes, embed_dim): the normalised mean of normalised prompt embeddings.

    templates: `str.format` patterns in which `{c}` is the class name. on_progress: see `text_features`. Raises
    UserError for no class, no template, and a template that cannot be filled in.
    """
    if not classnames or not templates:
        raise UserError(
            f"zero-shot classification needs class names and templates, found {len(classnames)} and {len(templates)}"
        )
    prompts = [fill(template, name) for name in classnames for template in templates]
    features = text_features(model, tokenizer, prompts, on_progress=on_progress)  # (classes × templates, embed_dim)
    means = features.view(len(classnames), len(templates), -1).mean(dim=1)
    return nn.functional.normalize(means, dim=-1)


def fill(template: str, classname: str) -> str:
    """The prompt of a class. Raises UserError where the template has other fields than `{c}`, or none."""
    check_template(template)
    return template.replace("{c}", classname)


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
