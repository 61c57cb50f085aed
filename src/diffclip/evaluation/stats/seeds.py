"""Runs repeated with several seeds: means and deviations by model, paired differences and how sure they are.

Two things make a difference between two models vary: the seed of training, and which test examples there are. The
bootstrap here resamples both, but with three to five seeds a percentile interval is too narrow. Student's t is right
about few seeds, but knows nothing of the examples, which all seeds share. So a verdict rests on the smallest
interval that holds both. docs/statistics.md has the coverage of each, simulated.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from diffclip.evaluation.results import PerExampleScores
from diffclip.evaluation.stats import bootstrap
from diffclip.evaluation.stats.bootstrap import Interval

SEEDS, EXAMPLES = "seeds", "test examples"
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
    bootstrap: Interval | None
    """Percentile bootstrap that resamples seeds and, where `over_examples`, test examples; None without a seed."""
    t: Interval | None
    """mean ± t·sd/√n with n − 1 degrees of freedom; None for one seed."""
    over_examples: bool
    """Whether the values of each test example were known, and the same examples for all seeds and both models."""

    @property
    def over(self) -> str:
        """What the interval is over: SEEDS (and test examples, where those are known), EXAMPLES, or nothing."""
        return SEEDS if self.t else EXAMPLES if self.over_examples else ""

    @property
    def interval(self) -> Interval | None:
        """The smallest 95 % interval that holds both, on which the verdict rests.

        None where nothing can be said: single runs without the values of their test examples.
        """
        if self.bootstrap is None or self.t is None:
            return self.bootstrap if self.over_examples else None
        return Interval(self.mean, min(self.bootstrap.low, self.t.low), max(self.bootstrap.high, self.t.high))

    @property
    def significant(self) -> bool | None:
        """Whether the interval leaves out 0; None where there is no interval."""
        return self.interval.significant if self.interval else None

    def verdict(self, higher: str, lower: str) -> str:
        """What the interval says of the candidate: `higher`, `lower`, "not significant", or nothing without one."""
        if not self.significant:
            return "" if self.significant is None else "not significant"
        return higher if self.mean > 0 else lower


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of at least one value. Raises ValueError for none or NaN."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"a mean over seeds needs one finite number a seed, found shape {array.shape}")
    return Spread(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None, len(array))


def paired(
    baseline: Mapping[int, float],
    candidate: Mapping[int, float],
    *,
    examples: Sequence[NDArray[np.float64]] = (),
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
    differences = np.array([candidate[s] - baseline[s] for s in common])
    over_seeds = spread(differences.tolist())
    matrices = examples or [differences[:, None]]
    low, high = np.quantile(_resampled(matrices, resamples, np.random.default_rng(seed)), [0.025, 0.975])
    t = None
    if over_seeds.sd is not None:
        half = float(scipy.stats.t.ppf(0.975, len(common) - 1)) * over_seeds.sd / math.sqrt(len(common))
        t = Interval(over_seeds.mean, over_seeds.mean - half, over_seeds.mean + half)
    interval = Interval(over_seeds.mean, float(low), float(high))
    return Difference(over_seeds.mean, over_seeds.sd, common, interval, t, bool(examples))


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
