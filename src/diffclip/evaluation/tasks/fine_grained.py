"""Fine-grained pairs: two images that differ in one thing, and a statement for each (Tong et al. 2024).

A pair is right only if each statement picks its own of the pair's two images, which guessing does one time in
four. The score is the mean over patterns of the share of right pairs.
"""

import torch
from torch import Tensor

from diffclip.evaluation.datasets.dataset import DataSet
from diffclip.evaluation.datasets.pairs import PairImages, PairSource, pattern_name
from diffclip.evaluation.features.context import EvalContext
from diffclip.evaluation.features.encode import ImageFeatures
from diffclip.evaluation.results import PerExampleScores
from diffclip.evaluation.task import Metric, Task

CHANCE = 0.25
SCORE = "pair_accuracy"


def right(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Which pairs are right: (P,) bool, from features (P, 2, embed_dim) of images and statements.

    Statement i must score higher with image i than with the other one; equal scores are wrong, so a model
    that sees no difference scores 0.
    """
    scores = torch.einsum("pid,ptd->pit", image_features, text_features)  # (P, images, statements)
    own, other = scores.diagonal(dim1=1, dim2=2), scores.flip(1).diagonal(dim1=1, dim2=2)
    return (own > other).all(dim=1)


def evaluate(pairs: PairSource, images: ImageFeatures, text_features: Tensor) -> PerExampleScores:
    """Each pair's part in `pair_accuracy`, the mean over patterns, and in `pair_accuracy/<pattern>`.

    images: of `PairImages(pairs)`; text_features (images, embed_dim): of its statements. A pair of which
    an image could not be read is left out. A pair of a pattern with n of the P pairs counts P / (n ×
    patterns).
    """
    rows, whole = images.rows_of_pairs(len(pairs))
    hits = right(images.features[rows], text_features[rows]).float()
    patterns = [pattern_name(pairs[p].pattern) for p in whole.tolist()]
    counts = {pattern: patterns.count(pattern) for pattern in dict.fromkeys(patterns)}
    weights = torch.tensor([len(whole) / (counts[pattern] * len(counts)) for pattern in patterns])
    values = {SCORE: hits * weights}
    for pattern in counts:
        member = torch.tensor([other == pattern for other in patterns])
        values[f"{SCORE}/{pattern}"] = torch.where(member, hits, torch.nan)
    return PerExampleScores(whole, values, dict.fromkeys(values, CHANCE))


def _measure(context: EvalContext) -> PerExampleScores:
    source = context.data.split("pairs")
    assert isinstance(source, PairImages)
    return evaluate(source.pairs, context.features("pairs"), context.captions("pairs")[0])


def _statements(data: DataSet) -> int:
    return len(data.split("pairs"))


TASK = Task(
    name="fine_grained",
    title="fine-grained pairs",
    result="fine_grained",
    needs="pairs of images",
    requires=("pairs",),
    splits=("pairs",),
    texts=_statements,
    headline=SCORE,
    metrics=(
        Metric(SCORE, "pairs right, mean of patterns", chance=CHANCE),
        Metric(f"{SCORE}/*", "{}", chance=CHANCE),
    ),
    measure=_measure,
)
