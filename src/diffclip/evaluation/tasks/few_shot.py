"""Few-shot classification by nearest prototype (El Banani et al. 2023, after Wang et al. 2019, "SimpleShot").

An episode draws some classes, a few training examples of each as support and a few test examples of each as
queries. Features of both are centred by the mean of the episode's support and L2-normalised; a class's
prototype is the mean of its support; a query belongs to the nearest prototype by Euclidean distance. All
episodes are drawn and classified in batched operations. They use the same images again and again: what was sampled
is the images, so these are the examples of a result, not the episodes.
"""

import statistics
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffclip.errors import UserError
from diffclip.evaluation.features.context import EvalContext
from diffclip.evaluation.features.encode import check_finite
from diffclip.evaluation.results import PerExampleScores
from diffclip.evaluation.task import Metric, Task

# Feature values of support and queries that are gathered at a time: what a processor's cache holds.
BLOCK = 2**19


@dataclass(frozen=True)
class Episodes:
    """Which examples each of E episodes uses; W ways, S shots, Q queries."""

    support: Tensor
    """(E, W, S) int64, places in train."""
    query: Tensor
    """(E, W, Q) int64, places in test; -1 where a class has fewer than Q test examples, all of which come first."""


def few_shot(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    num_episodes: int = 5000,
    num_ways: int = 5,
    num_shots: int = 5,
    num_queries: int = 6,
    seed: int = 0,
) -> dict[str, float]:
    """Mean accuracy over episodes, `acc1`, and its standard deviation between episodes, `std`, as fractions.

    train_x (N, D), test_x (M, D) float, features as the model gives them; train_y (N,), test_y (M,) int64.
    Classes with fewer than num_shots training examples or no test example take no part; of a class with fewer
    than num_queries test examples all are queries. std says how much episodes differ; std / √num_episodes is how
    far the mean is from that of all episodes of these images, and says nothing about other images. Deterministic by
    seed. Raises UserError for features that are not finite or do not match, labels that do not match, and too few
    classes.
    """
    accuracies = _accuracies(
        episode_hits(
            train_x,
            train_y,
            test_x,
            test_y,
            num_episodes=num_episodes,
            num_ways=num_ways,
            num_shots=num_shots,
            num_queries=num_queries,
            seed=seed,
        )[1]
    )
    return {"acc1": accuracies.mean().item(), "std": accuracies.std().item() if num_episodes > 1 else 0.0}


def evaluate(
    episodes: Episodes, hits: Tensor, train_y: Tensor, test_y: Tensor, indices: Tensor | None = None
) -> PerExampleScores:
    """What each image adds to the mean accuracy over episodes, `acc1`: test images, then training images.

    hits (E, W, Q) as `classify` gives them; train_y (N,), test_y (M,); indices (M,): the place of each test image in
    its data set. A training image has −1 − its place among the N. Images that no episode has drawn are left out. Two
    models pair if seed, labels and numbers of ways, shots and queries are the same.

    Classes are held fixed, and images vary within them. A test image counts by how often it is right, against its
    class. A training image counts by the accuracy of the episodes that it supports, against those that have its
    class: the first term of a U-statistic's variance, for draws without replacement (Wager & Athey 2018). An episode's
    accuracy has many other causes, so a part of the training images' spread is noise. Its size is known (a sum of
    squares without the products between episodes, as in Wager, Hastie & Efron 2014), and their values are shrunk by it.
    A class that has no more training images than shots always supports itself: of such classes only the test images'
    part is known.
    """
    accuracies, weights = _accuracies(hits), (~hits.isnan()).double()
    weights = (weights / weights.sum(dim=(1, 2), keepdim=True)).flatten()
    drawn = episodes.query.clamp(min=0).flatten()
    (y, x) = (_total(values, drawn, len(test_y)) for values in (weights * hits.nan_to_num().flatten(), weights))
    test = (y - _of_class(y, x, test_y) * x) / x[x > 0].mean()

    support = episodes.support.flatten(1)
    owner = train_y.cpu()[support]  # (E, W·S)
    classes = int(owner.max()) + 1
    of_class = _total(accuracies[:, None].expand_as(owner).flatten(), owner.flatten(), classes)
    residual = accuracies[:, None] - (of_class / torch.bincount(owner.flatten(), minlength=classes))[owner]
    size = torch.bincount(train_y.cpu().clamp(min=0))[owner].double()  # (E, W·S) images of the class
    residual *= (size * (size - 1)).sqrt() / (size - episodes.support.shape[2]).clamp(min=1)
    summed = _total(residual.flatten(), support.flatten(), len(train_y))
    noise = residual.square().sum() / summed.square().sum().clamp(min=1e-300)
    used = torch.bincount(support.flatten(), minlength=len(train_y)) > 0
    train = summed[used] * (used.sum() / len(accuracies)) * (1 - noise).clamp(min=0).sqrt()

    test = test[x > 0]
    count = len(test) + len(train)  # two samples as one: each part keeps the variance of its own mean
    values = accuracies.mean() + torch.cat([test * count / len(test), train * count / len(train)])
    places = torch.arange(len(test_y)) if indices is None else indices
    places = torch.cat([places[x > 0], -1 - used.nonzero()[:, 0]])
    facts = {"std": accuracies.std().item()} if len(accuracies) > 1 else {}
    return PerExampleScores(places, {"acc1": values}, {"acc1": 1 / hits.shape[1]}, facts)


def _total(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """(count,) float64 sums of values (K,) by owner (K,)."""
    return torch.zeros(count, dtype=torch.float64).index_add(0, owner, values.double())


def _of_class(y: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """(N,) Σ y / Σ x over the class of each; 0 where Σ x is."""
    _, owner = torch.unique(labels.cpu(), return_inverse=True)
    over, under = (_total(values, owner, int(owner.max()) + 1) for values in (y, x))
    return (over / under.clamp(min=1e-300))[owner]


def _accuracies(hits: Tensor) -> Tensor:
    return hits.flatten(1).nanmean(dim=1)


def episode_hits(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    num_episodes: int = 5000,
    num_ways: int = 5,
    num_shots: int = 5,
    num_queries: int = 6,
    seed: int = 0,
) -> tuple[Episodes, Tensor]:
    """The episodes, and which queries of each are classified rightly, as `classify` gives them; as `few_shot`."""
    for split, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
        if x.ndim != 2 or x.shape[1] != train_x.shape[-1] or y.shape != x.shape[:1]:
            raise UserError(
                f"{split} features must be (N, {train_x.shape[-1]}) and its labels (N,), "
                f"found {tuple(x.shape)} and {tuple(y.shape)}"
            )
        check_finite(f"{split} features", x)
    episodes = draw(
        train_y,
        test_y,
        num_episodes=num_episodes,
        num_ways=num_ways,
        num_shots=num_shots,
        num_queries=num_queries,
        seed=seed,
    )
    return episodes, classify(train_x, test_x, episodes)


def draw(
    train_y: Tensor,
    test_y: Tensor,
    *,
    num_episodes: int,
    num_ways: int,
    num_shots: int,
    num_queries: int,
    seed: int,
) -> Episodes:
    """Classes, support and queries of each episode, without replacement, by labels (N,) and (M,)."""
    for name, number in {
        "episodes": num_episodes,
        "ways": num_ways,
        "shots": num_shots,
        "queries": num_queries,
    }.items():
        if number < 1:
            raise UserError(f"few-shot classification needs at least one of num_{name}, found {number}")
    # One ordering of each split by class, in which class c has the places first[c] … first[c] + counts[c].
    train_y, test_y = train_y.cpu(), test_y.cpu()
    classes, numbers = torch.unique(torch.cat([train_y, test_y]), return_inverse=True)
    splits = []
    for labels in torch.split(numbers, [len(train_y), len(test_y)]):
        counts = torch.bincount(labels, minlength=len(classes))
        splits.append((labels.argsort(stable=True), counts, counts.cumsum(0) - counts))
    (train_order, train_counts, train_first), (test_order, test_counts, test_first) = splits
    usable = ((train_counts >= num_shots) & (test_counts > 0) & (classes >= 0)).nonzero()[:, 0]
    if len(usable) < num_ways:
        raise UserError(
            f"{num_ways}-way episodes need as many classes with {num_shots} training examples and a test example, "
            f"found {len(usable)} of {len(classes)}: leave few_shot out, or give num_ways and num_shots in Python"
        )
    generator = torch.Generator().manual_seed(seed)
    ways = usable[_distinct(torch.full((num_episodes,), len(usable)), num_ways, generator)]  # (E, W)
    shots = _distinct(train_counts[ways], num_shots, generator)  # (E, W, S), places among the class's examples
    queries = _distinct(test_counts[ways], num_queries, generator)  # (E, W, Q)
    support = train_order[train_first[ways][..., None] + shots]
    query = test_order[test_first[ways][..., None] + queries.clamp(min=0)]
    return Episodes(support, torch.where(queries < 0, -1, query))


def _distinct(sizes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """For each size n of (…) a random subset of 0 … n − 1: (…, count) int64, ending in -1 where n < count.

    Floyd's algorithm (Bentley & Floyd 1987), all sizes at once: uniform over subsets in `count` draws, however
    large n is.
    """
    drawn = torch.full((*sizes.shape, count), -1)
    first = (sizes - count).clamp(min=0)
    for place in range(count):
        last = first + place
        uniform = torch.rand(sizes.shape, generator=generator, dtype=torch.float64)
        number = (uniform * (last + 1)).long()
        taken = (drawn[..., :place] == number[..., None]).any(dim=-1)
        number = torch.where(taken, last, number)
        drawn[..., place] = torch.where(last < sizes, number, -1)
    return drawn


@torch.no_grad()
def classify(train_x: Tensor, test_x: Tensor, episodes: Episodes) -> Tensor:
    """Which queries are right, (E, W, Q) float64 on the CPU: 1, 0, or NaN where a class has no more test examples.

    It works where train_x is (a GPU, say).
    """
    ways, shots = episodes.support.shape[1:]
    queries = episodes.query.shape[2]
    device, dim = train_x.device, train_x.shape[1]
    test_x = test_x.to(device)
    truth = torch.arange(ways, device=device).repeat_interleave(queries)
    hits = []
    size = max(1, BLOCK // (ways * (shots + queries) * dim))
    for support, query in zip(torch.split(episodes.support, size), torch.split(episodes.query, size), strict=True):
        support, query = support.to(device).flatten(1), query.to(device).flatten(1)
        present = query >= 0  # (B, W·Q)
        s = train_x.index_select(0, support.flatten()).view(len(support), ways * shots, dim)
        q = test_x.index_select(0, query.clamp(min=0).flatten()).view(len(query), ways * queries, dim)
        mean = s.mean(dim=1, keepdim=True)
        s = torch.nn.functional.normalize(s - mean, dim=-1)
        prototypes = s.view(-1, ways, shots, dim).mean(dim=2)
        # |q̂ − p|² = 1 − 2 q̂·p + |p|², whose order over p does not change if it is multiplied by |q| > 0.
        q -= mean
        length = torch.linalg.vector_norm(q, dim=-1, keepdim=True)
        distance = prototypes.square().sum(dim=-1)[:, None] * length - 2 * q @ prototypes.transpose(1, 2)
        right = (distance.argmin(dim=-1) == truth).double().masked_fill(~present, torch.nan)  # (B, W·Q)
        hits.append(right.view(-1, ways, queries))
    return torch.cat(hits).cpu()


def _measure(context: EvalContext) -> PerExampleScores:
    train_x, train_y, _ = context.features_and_labels("train")
    test_x, test_y, indices = context.features_and_labels("test")
    first, count = context.settings.seed, context.settings.repeats
    repeats = [episode_hits(train_x, train_y, test_x, test_y, seed=seed) for seed in range(first, first + count)]
    drawn = Episodes(*(torch.cat([getattr(e, name) for e, _ in repeats]) for name in ("support", "query")))
    found = evaluate(drawn, torch.cat([hits for _, hits in repeats]), train_y, test_y, indices)
    if count > 1:
        sd = statistics.stdev(_accuracies(hits).mean().item() for _, hits in repeats)
        return replace(found, facts={**found.facts, "acc1_sd": sd})
    return found


TASK = Task(
    name="few_shot",
    title="few shot",
    result="few_shot",
    needs="labels and a train split",
    requires=("numbers", "train"),
    splits=("train", "test"),
    settings=("features", "seed", "repeats"),
    headline="acc1",
    metrics=(
        Metric("acc1", "top-1 accuracy"),
        Metric("std", "standard deviation between episodes", better=None),
        Metric("acc1_sd", "standard deviation between draws", better=None),
    ),
    measure=_measure,
    version=2,
)
