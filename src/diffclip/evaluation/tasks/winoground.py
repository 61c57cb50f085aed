"""Winoground: of two images and two captions of the same words, which belong together (Thrush et al. 2022)?

With s(c, i) the score of caption c with image i, an example counts in

- the text score if each image scores higher with its own caption: s(0, 0) > s(1, 0) and s(1, 1) > s(0, 1);
- the image score if each caption scores higher with its own image: s(0, 0) > s(0, 1) and s(1, 1) > s(1, 0);
- the group score if both hold.

All are strict, so that a model which sees no difference scores 0. Random scores give 1/4, 1/4 and 1/6. With 400
examples a difference of one point is four examples: look at the interval.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffclip.evaluation.datasets.dataset import DataSet
from diffclip.evaluation.datasets.pairs import PairImages, pattern_name
from diffclip.evaluation.features.context import EvalContext
from diffclip.evaluation.results import PerExampleScores
from diffclip.evaluation.task import Metric, Task

CHANCE = {"text_score": 1 / 4, "image_score": 1 / 4, "group_score": 1 / 6}


def scores(image_features: Tensor, text_features: Tensor) -> dict[str, Tensor]:
    """The metrics of `CHANCE`, (P,) bool each, from features (P, 2, embed_dim) of images and captions."""
    s = torch.einsum("pcd,pid->pci", text_features, image_features)  # (P, captions, images)
    own, others_caption, others_image = (
        s.diagonal(dim1=1, dim2=2), s.flip(1).diagonal(dim1=1, dim2=2), s.flip(2).diagonal(dim1=1, dim2=2)
    )  # fmt: skip
    text, image = (own > others_caption).all(1), (own > others_image).all(1)
    return {"text_score": text, "image_score": image, "group_score": text & image}


def evaluate(hits: dict[str, Tensor], tags: Sequence[str], indices: Tensor) -> PerExampleScores:
    """What each example adds to each metric of `CHANCE`, and to the same by tag, as `text_score/<tag>`.

    hits: of `scores`; tags: of each of the P examples; indices (P,) int64: its place in the data set.
    """
    values = {name: of_all.double() for name, of_all in hits.items()}
    for tag in dict.fromkeys(tags):
        member = torch.tensor([other == tag for other in tags])
        values |= {f"{name}/{tag}": torch.where(member, hits[name].double(), torch.nan) for name in hits}
    return PerExampleScores(indices, values, {name: CHANCE[name.partition("/")[0]] for name in values})


def _measure(context: EvalContext) -> PerExampleScores:
    source = context.data.split("swaps")
    assert isinstance(source, PairImages)
    images, (captions, _) = context.features("swaps"), context.captions("swaps")
    rows, whole = images.rows_of_pairs(len(source.pairs))
    tags = [pattern_name(source.patterns[pair]) for pair in whole.tolist()]
    return evaluate(scores(images.features[rows], captions[rows]), tags, whole)


def _captions(data: DataSet) -> int:
    return len(data.split("swaps"))


TASK = Task(
    name="winoground",
    title="same words swapped",
    result="winoground",
    needs="two images and two captions of the same words: Winoground's parquet, or scenes",
    requires=("swaps",),
    splits=("swaps",),
    texts=_captions,
    headline="group_score",
    metrics=tuple(
        metric
        for name, chance in CHANCE.items()
        for metric in (
            Metric(name, name.replace("_", " "), chance=chance, column=name.replace("_", " ").capitalize()),
            Metric(f"{name}/*", f"{name.replace('_', ' ')}, {{}}", chance=chance),
        )
    ),
    measure=_measure,
)
