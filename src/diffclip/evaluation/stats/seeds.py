"""Runs repeated with several seeds: means and deviations by model, paired differences and how sure they are.

Two things make a difference between two models vary: the seed of training, and which test examples there are. The
bootstrap here resamples both, but with three to five seeds a percentile interval is too narrow. Student's t is right
about few seeds, but knows nothing of the examples, which all seeds share. So a verdict rests on the smallest
interval that holds both. docs/statistics.md has the coverage of each, simulated.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffclip.evaluation import results
from diffclip.evaluation.results import PerExampleScores, Result
from diffclip.evaluation.stats import bootstrap
from diffclip.evaluation.stats.bootstrap import Interval

Metric = tuple[str, str, str]
"""(data set, task, metric), as in results.jsonl."""
Scores = Mapping[int, Mapping[Metric, float]]
"""seed → metric → value, of one model."""

NOTE = (
    "Differences are paired by seed, in percentage points. Their 95 % interval is the smallest that holds both a "
    "bootstrap over seeds and test examples and Student's t over the seeds; “not significant” where it contains 0. "
    "Of twenty intervals one is expected to miss 0 by chance alone."
)

_SEED = re.compile(r"seed[_=-]?(\d+)(?!\d)")


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a number over seeds."""

    mean: float
    sd: float | None
    """With n − 1 in the denominator; None for one seed."""
    count: int


@dataclass(frozen=True)
class Difference:
    """candidate − baseline over the seeds that both have."""

    mean: float
    sd: float | None
    """Of the differences, with n − 1 in the denominator; None for one seed."""
    seeds: tuple[int, ...]
    bootstrap: Interval
    """Percentile bootstrap that resamples seeds and, where `over_examples`, test examples."""
    t: Interval | None
    """mean ± t·sd/√n with n − 1 degrees of freedom; None for one seed."""
    over_examples: bool
    """Whether the values of each test example were known, and the same examples for all seeds and both models."""

    @property
    def interval(self) -> Interval:
        """The smallest interval that holds both; the verdict rests on it."""
        if self.t is None:
            return self.bootstrap
        return Interval(self.mean, min(self.bootstrap.low, self.t.low), max(self.bootstrap.high, self.t.high))

    @property
    def verdict(self) -> str:
        """`higher` or `lower` (the candidate), `not significant`, or `one seed`, of which nothing can be said."""
        if self.t is None:
            return "one seed"
        if not self.interval.significant:
            return "not significant"
        return "higher" if self.mean > 0 else "lower"


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of at least one value. Raises ValueError for none or NaN."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"a mean over seeds needs one finite number a seed, found shape {array.shape}")
    return Spread(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None, len(array))


def spreads(scores: Scores) -> dict[Metric, Spread]:
    """The spread of each metric over the seeds that have it, in the order in which metrics first appear."""
    metrics = dict.fromkeys(metric for of_seed in scores.values() for metric in of_seed)
    return {m: spread([of_seed[m] for of_seed in scores.values() if m in of_seed]) for m in metrics}


def paired(
    baseline: Mapping[int, float],
    candidate: Mapping[int, float],
    *,
    examples: Sequence[NDArray[np.float64]] = (),
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """The paired difference of two models' scores, seed → value, over their common seeds.

    examples: what each test example contributes to candidate − baseline, one (seeds, N) array, in the order of the
    common seeds sorted, for each data set over which the score is a mean; empty where that is not known. Examples
    are resampled within their data set, and the same ones for all seeds. Deterministic by `seed`. Raises ValueError
    where no seed is common.
    """
    common = tuple(sorted(baseline.keys() & candidate.keys()))
    if not common:
        raise ValueError(f"no common seed: {sorted(baseline)} and {sorted(candidate)}")
    differences = np.array([candidate[one] - baseline[one] for one in common])
    found = spread(differences.tolist())
    matrices = examples or [differences[:, None]]
    low, high = np.quantile(_resampled(matrices, resamples, np.random.default_rng(seed)), [0.025, 0.975])
    t = None
    if found.sd is not None:
        half = t_quantile(0.975, len(common) - 1) * found.sd / math.sqrt(len(common))
        t = Interval(found.mean, found.mean - half, found.mean + half)
    interval = Interval(found.mean, float(low), float(high))
    return Difference(found.mean, found.sd, common, interval, t, bool(examples))


def _resampled(
    matrices: Sequence[NDArray[np.float64]], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """(resamples,) means over resampled seeds (rows) and examples (columns), averaged over the matrices."""
    seeds = len(matrices[0])
    rows = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds  # (R, S)
    total = np.zeros(resamples)
    for matrix in matrices:
        # As in mean_interval: how often each distinct column is drawn, which for right and wrong answers are few.
        distinct, counts = np.unique(matrix, axis=1, return_counts=True)  # (S, U), (U,)
        number, share = matrix.shape[1], counts / matrix.shape[1]
        block = max(1, bootstrap.BLOCK // len(share))
        for start in range(0, resamples, block):
            part = slice(start, min(start + block, resamples))
            columns = generator.multinomial(number, share, size=part.stop - start) / number  # (R, U)
            total[part] += np.einsum("rs,rs->r", rows[part], columns @ distinct.T)
    return total / len(matrices)


def t_quantile(probability: float, df: int) -> float:
    """Student's t with df ≥ 1 degrees of freedom: the value that it stays below with `probability` in [0.5, 1).

    By bisection of the distribution function, a finite sum for whole df (Abramowitz & Stegun 26.7.3 and 26.7.4).
    """
    if df < 1 or not 0.5 <= probability < 1:
        raise ValueError(f"t_quantile({probability}, {df}): expected a probability in [0.5, 1) and df of at least 1")
    low, high = 0.0, math.pi / 2  # of θ = atan(t/√df)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, df) < 2 * probability - 1 else (low, middle)
    return math.tan(low) * math.sqrt(df)


def _inside(theta: float, df: int) -> float:
    """The probability of |t| < √df·tan θ."""
    odd = df % 2
    term, total = (math.cos(theta) if odd else 1.0), 0.0
    for k in range(df // 2):
        total += term
        term *= math.cos(theta) ** 2 * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    return (2 / math.pi) * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total


def split_seed(pretrained: str) -> tuple[str, int | None]:
    """What results call a run's weights, and its seed: `runs/clip/seed_3` is (`runs/clip/seed_*`, 3).

    The last `seed_N`, `seed-N`, `seed=N` or `seedN` counts; None where there is none.
    """
    match = next(reversed(list(_SEED.finditer(pretrained))), None)
    if match is None:
        return pretrained, None
    return f"{pretrained[: match.start(1)]}*{pretrained[match.end(1) :]}", int(match.group(1))


def by_seed(found: Iterable[Result]) -> dict[tuple[str, str], dict[int, dict[Metric, Result]]]:
    """(model, weights without the seed) → seed → metric → its result. Results without a seed are left out."""
    grouped: dict[tuple[str, str], dict[int, dict[Metric, Result]]] = {}
    for result in found:
        name, seed = split_seed(result.pretrained)
        if seed is not None:
            metrics = grouped.setdefault((result.model, name), {}).setdefault(seed, {})
            metrics |= {(result.dataset, result.task, metric): result for metric in result.metrics}
    return grouped


def values(of_model: Mapping[int, Mapping[Metric, Result]]) -> dict[int, dict[Metric, float]]:
    """One model of `by_seed` as scores."""
    return {
        seed: {metric: result.metrics[metric[2]] for metric, result in metrics.items()}
        for seed, metrics in of_model.items()
    }


def compare(
    path: Path,
    baseline: Mapping[int, Mapping[Metric, Result]],
    candidate: Mapping[int, Mapping[Metric, Result]],
    groups: Mapping[str, Sequence[Metric]] | None = None,
    *,
    resamples: int = 10_000,
) -> dict[str, Difference]:
    """Paired differences of two models of `by_seed`, whose results lie in `path` with their examples beside it.

    groups: name → metrics whose mean is compared; by default each metric for itself, named "data set, task, metric".
    A seed counts where both models have all metrics of a group; a group without such a seed is left out.
    """
    if groups is None:
        known = dict.fromkeys(metric for of_seed in baseline.values() for metric in of_seed)
        groups = {", ".join(metric): [metric] for metric in known}
    load = _loader(path)
    found = {}
    for name, metrics in groups.items():
        common = [
            seed
            for seed in sorted(baseline.keys() & candidate.keys())
            if metrics and all(m in baseline[seed] and m in candidate[seed] for m in metrics)
        ]
        if not common:
            continue
        means = [
            {seed: float(np.mean([model[seed][m].metrics[m[2]] for m in metrics])) for seed in common}
            for model in (baseline, candidate)
        ]
        matrices = []
        for metric in metrics:
            pairs = [(load(baseline[seed][metric]), load(candidate[seed][metric])) for seed in common]
            matrix = example_differences(pairs, metric[2])
            if matrix is None:
                break
            matrices.append(matrix)
        complete = matrices if len(matrices) == len(metrics) else []
        found[name] = paired(*means, examples=complete, resamples=resamples)
    return found


def _loader(path: Path) -> Callable[[Result], PerExampleScores | None]:
    """Reads each file of examples once: a file holds all metrics of its result."""
    kept: dict[results.Key, PerExampleScores | None] = {}

    def load(result: Result) -> PerExampleScores | None:
        if result.key not in kept:
            kept[result.key] = results.load_examples(path, result.key)
        return kept[result.key]

    return load


def example_differences(
    pairs: Sequence[tuple[PerExampleScores | None, PerExampleScores | None]], metric: str
) -> NDArray[np.float64] | None:
    """(seeds, N) candidate − baseline of each test example, from (baseline, candidate) of each seed.

    Examples without a part in the metric are left out. None where examples are missing, or not the same ones in all.
    """
    every = [examples for pair in pairs for examples in pair]
    known = [one for one in every if one is not None and metric in one.values]
    if not known or len(known) < len(every) or any(not one.indices.equal(known[0].indices) for one in known):
        return None
    table = np.stack([one.values[metric].double().numpy() for one in known])  # (2 · seeds, N)
    table = table[:, ~np.isnan(table).any(axis=0)]
    return table[1::2] - table[::2] if table.shape[1] else None
