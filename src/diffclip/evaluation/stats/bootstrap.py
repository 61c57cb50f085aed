"""How sure a mean is, by resampling test examples (Efron & Tibshirani 1993, percentile interval).

It says how the number would vary with other test examples of the same kind. It says nothing about other
training runs: two networks that differ only in their seed also differ, and often significantly in this sense.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Draws that are held at a time.
BLOCK = 2**24
GROUPS = 2000
"""Examples that all differ are resampled in at most so many groups."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def mean_interval(values: ArrayLike, *, resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean of (N,) values, one an independent test example, with its 95 % percentile bootstrap interval.

    For a paired comparison give the differences. Deterministic by seed. Raises ValueError for no value or
    NaN.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"a bootstrap needs one finite number an example, found shape {values.shape}")
    (distinct,), counts = distinct_columns(values[None])
    number, share = counts.sum(), counts / counts.sum()
    generator = np.random.default_rng(seed)
    rows = max(1, BLOCK // len(distinct))
    means = np.concatenate(
        [
            generator.multinomial(number, share, size=min(rows, resamples - start)) @ distinct / number
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def distinct_columns(matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The distinct columns (S, U) of (S, N), one column an example, and how often each is there.

    A resample is how often each of them is drawn: multinomial, so two models' right and wrong answers, which differ by
    -1, 0 or 1, cost three numbers a resample instead of N. Where more than `GROUPS` differ, as few-shot's images do,
    they are random groups of examples, whose means vary as the examples' do.
    """
    distinct, counts = np.unique(matrix, axis=1, return_counts=True)
    if len(counts) <= GROUPS:
        return distinct, counts
    number, mean = matrix.shape[1], matrix.mean(axis=1, keepdims=True)
    group = np.random.default_rng(0).permutation(number) % GROUPS
    sums = np.stack([np.bincount(group, weights=row, minlength=GROUPS) for row in matrix - mean])
    return mean + sums * (GROUPS / number), np.ones(GROUPS, dtype=np.int64)
