"""How sure a mean is, by resampling test examples (Efron & Tibshirani 1993, percentile interval).

It says how the number would vary with other test examples of the same kind. It says nothing about other
training runs: two networks that differ only in their seed also differ, and often significantly in this sense.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

# Draws that are held at a time.
BLOCK = 2**24


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
    # A resample is how often each distinct value is drawn: multinomial, so two models' right and wrong
    # answers, which differ by -1, 0 or 1, cost three numbers a resample instead of N.
    distinct, counts = np.unique(values, return_counts=True)
    share = counts / len(values)
    generator = np.random.default_rng(seed)
    rows = max(1, BLOCK // len(distinct))
    means = np.concatenate(
        [
            generator.multinomial(len(values), share, size=min(rows, resamples - start)) @ distinct / len(values)
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))
