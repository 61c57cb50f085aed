"""Runs repeated with several seeds: paired differences, how sure they are, and what cannot be said.

Two things make a difference between two models vary: the seed of training, and which test examples there are. The
bootstrap here resamples both, but with three to five seeds a percentile interval is too narrow. A test over the seeds
is right about few seeds, but knows nothing of the examples, which all seeds share. So an interval is the smallest that
holds both, and p the larger of the two. docs/statistics.md has the coverage of each, simulated.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from diffclip.evaluation.results import PerExampleScores
from diffclip.evaluation.stats import bootstrap, significance
from diffclip.evaluation.stats.bootstrap import Interval
from diffclip.evaluation.stats.significance import LEVEL, Test

TINY = 1e-12
"""A spread below which numbers are the same but for rounding."""

_SEED = re.compile(r"seed[_=-]?(\d+)(?!\d)")


@dataclass(frozen=True)
class Difference:
    """candidate − baseline over the seeds that both have."""

    mean: float
    seeds: tuple[int, ...]
    by_seed: NDArray[np.float64] = field(compare=False)
    """(seeds,) differences, in their order."""
    resampled: NDArray[np.float64] = field(compare=False, repr=False)
    """Means over resampled seeds and, where `over_examples`, test examples."""
    over_examples: bool
    """Whether the values of each test example were known, and the same examples for all seeds and both models."""
    correlation: float | None = None
    """Of the two models' scores by seed: whether pairing gains anything. None for fewer than three seeds."""
    test: Test = "t"

    @property
    def count(self) -> int:
        """How many seeds both models have; 0 where they have none in common."""
        return len(self.by_seed)

    @property
    def sd(self) -> float | None:
        """Of the differences, with n − 1 in the denominator; None for one seed."""
        return float(self.by_seed.std(ddof=1)) if self.count > 1 else None

    @property
    def estimable(self) -> bool:
        """Whether what is there says anything about how sure the difference is: equal numbers do not."""
        if self.count > 1:
            return float(np.ptp(self.by_seed)) > TINY
        return self.over_examples and float(np.ptp(self.resampled)) > TINY

    def interval_at(self, level: float) -> Interval | None:
        """The interval that misses the truth with probability `level`; None where nothing can be said.

        Of one pair of runs it is over its test examples alone, and says nothing about other seeds.
        """
        if not self.estimable:
            return None
        parts = [self.by_bootstrap(level), *([self.by_test(level)] if self.count > 1 else [])]
        known = [part for part in parts if part]
        if len(known) < len(parts):
            return None
        return Interval(self.mean, min(part.low for part in known), max(part.high for part in known))

    def by_bootstrap(self, level: float = LEVEL) -> Interval | None:
        """Percentiles over resampled seeds and, where `over_examples`, test examples; None without a common seed."""
        if not self.count:
            return None
        low, high = np.quantile(self.resampled, [level / 2, 1 - level / 2])
        return Interval(self.mean, float(low), float(high))

    def by_test(self, level: float = LEVEL) -> Interval | None:
        """What the test over the seeds does not reject; None for one seed, seeds that do not differ, too few flips."""
        if self.count < 2 or not self.estimable:
            return None
        low, high = significance.interval(self.by_seed, level, self.test)
        return Interval(self.mean, low, high) if np.isfinite(low) else None

    @cached_property
    def interval(self) -> Interval | None:
        """The 95 % interval."""
        return self.interval_at(LEVEL)

    @property
    def half_width(self) -> float | None:
        """How far the interval reaches from the difference, on its longer side."""
        return max(self.mean - self.interval.low, self.interval.high - self.mean) if self.interval else None

    @cached_property
    def p(self) -> float | None:
        """Of the hypothesis that the models do not differ, two-sided: below 0.05 where the 95 % interval leaves out 0.

        None for one pair of runs, which knows no other seed, and where nothing is estimable.
        """
        if self.count < 2 or not self.estimable:
            return None
        beyond = int(min((self.resampled <= 0).sum(), (self.resampled >= 0).sum()))
        resampled = min(1.0, 2 * (1 + beyond) / (1 + len(self.resampled)))
        return max(significance.p_value(self.by_seed, self.test), resampled)

    def p_equivalence(self, margin: float) -> float | None:
        """Of the hypothesis that the models differ by `margin` or more (TOST: two one-sided tests)."""
        if self.count < 2 or not self.estimable:
            return None
        beyond = max((self.resampled >= margin).sum(), (self.resampled <= -margin).sum())
        sided = (1 + beyond) / (1 + len(self.resampled))
        return float(max(sided, significance.p_equivalence(self.by_seed, margin, self.test)))


def paired(
    baseline: Mapping[int, float],
    candidate: Mapping[int, float],
    *,
    examples: Sequence[NDArray[np.float64]] = (),
    test: Test = "t",
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """The paired difference of two models' scores, seed → value, over their common seeds.

    examples: what each test example contributes to candidate − baseline, for each data set over which the score is a
    mean. Each is (seeds, N), in the order of the common seeds sorted; empty where that is not known. Examples are
    resampled within their data set, and the same ones for all seeds. Deterministic by `seed`. Raises ValueError where
    no seed is common.
    """
    common = tuple(sorted(baseline.keys() & candidate.keys()))
    if not common:
        raise ValueError(f"no common seed: {sorted(baseline)} and {sorted(candidate)}")
    first, second = (np.array([scores[s] for s in common]) for scores in (baseline, candidate))
    differences = second - first
    matrices = examples or [differences[:, None]]
    resampled = _resampled(matrices, resamples, np.random.default_rng(seed))
    varied = len(common) > 2 and min(np.ptp(first), np.ptp(second)) > TINY
    correlation = float(np.corrcoef(first, second)[0, 1]) if varied else None
    return Difference(float(differences.mean()), common, differences, resampled, bool(examples), correlation, test)


def unpaired(mean: float) -> Difference:
    """A difference of means over seeds of which none is common: nothing is said about how sure it is."""
    return Difference(mean, (), np.empty(0), np.empty(0), False)


def _resampled(
    matrices: Sequence[NDArray[np.float64]], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """(resamples,) means over resampled seeds (rows) and examples (columns), averaged over the matrices."""
    seeds = len(matrices[0])
    rows = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds  # (R, S)
    total = np.zeros(resamples)
    for matrix in matrices:
        distinct, counts = bootstrap.distinct_columns(matrix)  # (S, U), (U,)
        number, share = counts.sum(), counts / counts.sum()
        block = max(1, bootstrap.BLOCK // len(share))
        for start in range(0, resamples, block):
            part = slice(start, min(start + block, resamples))
            columns = generator.multinomial(number, share, size=part.stop - start) / number  # (R, U)
            total[part] += np.einsum("rs,rs->r", rows[part], columns @ distinct.T)
    return total / len(matrices)


def split_seed(pretrained: str) -> tuple[str, int | None]:
    """What results call a run's weights, and its seed: `runs/clip/seed_3` is (`runs/clip/seed_*`, 3).

    The last `seed_N`, `seed-N`, `seed=N` or `seedN` counts; None where there is none.
    """
    match = next(reversed(list(_SEED.finditer(pretrained))), None)
    if match is None:
        return pretrained, None
    return f"{pretrained[: match.start(1)]}*{pretrained[match.end(1) :]}", int(match.group(1))


def example_differences(
    pairs: Sequence[tuple[PerExampleScores | None, PerExampleScores | None]], metric: str
) -> NDArray[np.float64] | None:
    """(seeds, N) candidate − baseline of each test example, from (baseline, candidate) of each seed.

    Examples without a part in the metric are left out. None where examples are missing, or not the same ones in all.
    """
    every = [examples for pair in pairs for examples in pair]
    known = [scores for scores in every if scores is not None and metric in scores.values]
    if not known or len(known) < len(every) or any(not scores.indices.equal(known[0].indices) for scores in known):
        return None
    table = np.stack([scores.values[metric].double().numpy() for scores in known])  # (2 · seeds, N)
    table = table[:, ~np.isnan(table).any(axis=0)]
    return table[1::2] - table[::2] if table.shape[1] else None
