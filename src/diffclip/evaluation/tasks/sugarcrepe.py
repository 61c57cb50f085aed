"""SugarCrepe: does an image score higher with its caption than with a hard negative of it (Hsieh et al. 2023)?

A hard negative differs in little and reads as fluently: an object, an attribute or a relation is replaced, two objects
or attributes are swapped, or one is added. Guessing is right one time in two. Read the kinds, not only their mean: what
is added makes the negative the longer text, and what is swapped leaves its words the same.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from diffclip.evaluation.datasets.dataset import DataSet
from diffclip.evaluation.features.context import EvalContext
from diffclip.evaluation.results import PerExampleScores
from diffclip.evaluation.task import Metric, Task

CHANCE = 0.5
SCORE = "accuracy"


@runtime_checkable
class Negatives(Protocol):
    """A source whose examples have two captions, the true one and a hard negative, and a kind each."""

    kinds: Sequence[str]
    """Such as swap_att: the word before the underscore is the group."""


def right(image_features: Tensor, captions: Tensor, negatives: Tensor) -> Tensor:
    """Which images score higher with their caption than with the negative: (N,) bool, from (N, embed_dim) each.

    Equal scores are wrong, as in the authors' script: a model that reads no difference scores 0.
    """
    return (image_features * captions).sum(1) > (image_features * negatives).sum(1)


def evaluate(hits: Tensor, kinds: Sequence[str], indices: Tensor) -> PerExampleScores:
    """What each example adds to `accuracy`, the mean over kinds, and to `accuracy/<group>` and `accuracy/<kind>`.

    hits (N,) bool; kinds: of each of the N; indices (N,) int64: its place in the data set. A group's accuracy is the
    mean over its kinds. In a mean over K kinds an example of a kind with n of the N examples counts N / (n K).
    """
    groups = {kind: kind.partition("_")[0] for kind in dict.fromkeys(kinds)}
    members = {SCORE: list(groups)}
    for kind, group in groups.items():
        members.setdefault(f"{SCORE}/{group}", []).append(kind)
    members |= {f"{SCORE}/{kind}": [kind] for kind in groups}
    values = {}
    for name, own in members.items():
        counts = {kind: kinds.count(kind) for kind in own}
        total = sum(counts.values())
        weights = [total / (counts[kind] * len(own)) if kind in counts else torch.nan for kind in kinds]
        values[name] = hits.double() * torch.tensor(weights, dtype=torch.float64)
    return PerExampleScores(indices, values, dict.fromkeys(values, CHANCE))


def _measure(context: EvalContext) -> PerExampleScores:
    source = context.data.split("negatives")
    assert isinstance(source, Negatives)
    images, (captions, _) = context.features("negatives"), context.captions("negatives")
    hits = right(images.features, captions[::2], captions[1::2])
    return evaluate(hits, [source.kinds[index] for index in images.indices.tolist()], images.indices)


def _captions(data: DataSet) -> int:
    return 2 * len(data.split("negatives"))


TASK = Task(
    name="sugarcrepe",
    title="hard negatives",
    result="sugarcrepe",
    needs="captions with hard negatives: SugarCrepe's files, or scenes",
    requires=("negatives",),
    splits=("negatives",),
    texts=_captions,
    headline=SCORE,
    metrics=(
        Metric(SCORE, "accuracy, mean of kinds", chance=CHANCE, column="Mean"),
        Metric(f"{SCORE}/*", "{}", chance=CHANCE),
    ),
    measure=_measure,
)
