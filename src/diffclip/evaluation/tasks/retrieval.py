"""Image-text retrieval: recall@k both ways, any number of captions an image, as the LAION benchmark.

A query counts 1 if any of its positives is among the k best. Where scores are exactly equal at the edge of
the k best, their order is taken to be random: it counts the probability that a positive comes in. So the
result does not depend on the order of the data. A model whose features are all the same scores chance exactly.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffclip.evaluation.datasets.dataset import DataSet, first_examples
from diffclip.evaluation.features.context import EvalContext
from diffclip.evaluation.features.encode import check_finite
from diffclip.evaluation.results import PerExampleScores
from diffclip.evaluation.task import Metric, Task

KS = (1, 5, 10)

# Scores that are held at a time: 2**24 float32 numbers are 64 MiB, and a handful of temporaries have the same
# size.
BLOCK = 2**24


def recall(
    image_features: Tensor, text_features: Tensor, image_of_text: Tensor, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """`image_retrieval_recall@k` (a text looks for its image) and `text_retrieval_recall@k`, as fractions.

    image_features (N, embed_dim), text_features (T, embed_dim), both normalised; image_of_text (T,) int64,
    the image that each text describes. Image retrieval averages over texts, text retrieval over images; an
    image without a text has no positive and is only a distractor. k larger than what there is to choose from
    gives 1. Equal captions of different images are each other's negatives, so data that repeat captions
    cannot reach 1.
    """
    hits = scores(image_features, text_features, image_of_text, ks)
    return {name: values[~values.isnan()].mean().item() for name, values in hits.items()}


def scores(
    image_features: Tensor, text_features: Tensor, image_of_text: Tensor, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, Tensor]:
    """Each query's part: `image_retrieval_recall@k` → (T,), `text_retrieval_recall@k` → (N,), in [0, 1].

    NaN for an image without a text, which is no query.
    """
    images, texts = len(image_features), len(text_features)
    if len(image_of_text) != texts or texts == 0:
        raise ValueError(f"{texts} texts, but image_of_text names the image of {len(image_of_text)}")
    if not 0 <= int(image_of_text.min()) <= int(image_of_text.max()) < images:
        raise ValueError(f"image_of_text runs from {image_of_text.min()} to {image_of_text.max()} for {images} images")
    check_finite("image features", image_features)
    check_finite("text features", text_features)
    image_of_text = image_of_text.to(text_features.device)
    by_image = image_of_text.argsort(stable=True)
    all_texts = torch.arange(texts, device=text_features.device)
    places = {
        "image": _places(text_features, image_features, all_texts, image_of_text),
        "text": _places(image_features, text_features, image_of_text[by_image], by_image),
    }
    return {f"{wanted}_retrieval_recall@{k}": _hits(*place, k).cpu() for wanted, place in places.items() for k in ks}


def _places(queries: Tensor, candidates: Tensor, query: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where each query's best positive stands; `query` (ascending) and `candidate` (T,) list all pairs.

    Returns three (queries,) int64: candidates that score higher than it, candidates that score the same
    (itself included), and the positives among those; the last is 0 for a query without positives.
    """
    blocks = []
    rows = max(1, BLOCK // len(candidates))
    for start in range(0, len(queries), rows):
        score = queries[start : start + rows] @ candidates.T  # (rows, candidates)
        first, last = torch.searchsorted(query, torch.tensor([start, start + len(score)], device=query.device)).tolist()
        row, column = query[first:last] - start, candidate[first:last]
        positive = score[row, column]  # (pairs of the block,)
        best = score.new_full((len(score),), -math.inf).scatter_reduce(0, row, positive, "amax")
        tied_positive = torch.zeros(len(score), dtype=torch.int64, device=row.device).index_add(
            0, row, (positive == best[row]).long()
        )
        blocks.append(((score > best[:, None]).sum(1), (score == best[:, None]).sum(1), tied_positive))
    higher, tied, tied_positive = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return higher, tied, tied_positive


def _hits(higher: Tensor, tied: Tensor, tied_positive: Tensor, k: int) -> Tensor:
    """Chance that a random order of the tied puts a positive among the k best: 1 − C(t − p, r) / C(t, r).

    r is how many of the k best places the tied ones fill.
    """
    places = (k - higher).clamp(min=0).minimum(tied)
    miss = _log_choose(tied - tied_positive, places) - _log_choose(tied, places)
    hits = torch.where(places > tied - tied_positive, 1.0, 1 - miss.exp())
    return torch.where(tied_positive == 0, math.nan, hits)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    n, k = n.double(), k.double().minimum(n.double())
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def chance(images: int, image_of_text: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """What a random order of the candidates scores in each metric of `recall`."""
    texts = len(image_of_text)
    positives = torch.bincount(image_of_text, minlength=images)
    positives = positives[positives > 0]
    result = {f"image_retrieval_recall@{k}": min(1.0, k / images) for k in ks}
    for k in ks:
        nothing_higher = torch.zeros_like(positives)
        everything = torch.full_like(positives, texts)
        result[f"text_retrieval_recall@{k}"] = _hits(nothing_higher, everything, positives, k).mean().item()
    return result


def evaluate(image_features: Tensor, text_features: Tensor, image_of_text: Tensor, indices: Tensor) -> PerExampleScores:
    """What each image adds to each metric of `recall` with `KS`; arguments as there.

    An image is what was sampled: its captions are not independent of each other. indices (N,): the place of each image
    in the data set.
    """
    count = torch.bincount(image_of_text, minlength=len(image_features)).double()  # (N,) captions of each image
    values = {}
    for metric, hits in scores(image_features, text_features, image_of_text, KS).items():
        if metric.startswith("text_"):
            values[metric] = hits
        else:
            # An image with n of T captions counts n N / T: the mean over images is that over captions.
            share = torch.zeros_like(count).index_add(0, image_of_text, hits) * (count > 0).sum() / count.sum()
            values[metric] = torch.where(count > 0, share, torch.nan)
    return PerExampleScores(indices, values, chance(len(image_features), image_of_text, KS))


def _measure(context: EvalContext) -> PerExampleScores:
    images, (features, owner) = context.features(), context.captions()
    return evaluate(images.features, features, owner, images.indices)


def _captions(data: DataSet) -> int:
    """As many as there are if all images have as many as the first ones."""
    first = first_examples(data.test)
    return len(data.test) * sum(len(example.captions) for example in first) // max(1, len(first))


TASK = Task(
    name="retrieval",
    title="retrieval",
    result="zeroshot_retrieval",
    needs="captions",
    requires=("captions",),
    splits=("test",),
    texts=_captions,
    metrics=tuple(
        Metric(f"{wanted}_retrieval_recall@{k}", f"{wanted} recall@{k}") for wanted in ("image", "text") for k in KS
    ),
    measure=_measure,
)
