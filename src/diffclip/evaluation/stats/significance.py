"""Tests over a few numbers, one a seed: no difference, equivalence, several outcomes at once, a seed far from the rest.

SciPy computes what it has. The level is that of the whole program.
"""

from collections.abc import Sequence
from itertools import product
from typing import Literal

import numpy as np
import scipy.stats
from numpy.typing import NDArray

LEVEL = 0.05
Test = Literal["t", "permutation"]
FEWEST_FLIPS, MOST_FLIPS = 6, 16
"""Seeds of a permutation test: 2 of 2ⁿ sign flips reach 0.05 from six on; all of them are looked at."""

Numbers = NDArray[np.float64]


def p_value(differences: Numbers, test: Test) -> float:
    """Two-sided, of the hypothesis that (n ≥ 2,) paired differences have mean 0."""
    if test == "permutation":
        return _flips(differences, "two-sided")
    return float(scipy.stats.ttest_1samp(differences, 0).pvalue)


def p_equivalence(differences: Numbers, margin: float, test: Test) -> float:
    """Of the hypothesis that their mean is `margin` or more away from 0: the larger of two one-sided p."""
    if test == "permutation":
        return max(_flips(differences - margin, "less"), _flips(differences + margin, "greater"))
    sides = (scipy.stats.ttest_1samp(differences, at, alternative=side) for at, side in
             ((margin, "less"), (-margin, "greater")))  # fmt: skip
    return max(float(side.pvalue) for side in sides)


def interval(differences: Numbers, level: float, test: Test) -> tuple[float, float]:
    """What the test does not reject at `level`: mean ± t·sd/√n, or the flips' (Hartigan 1969) of subset means."""
    if test == "permutation":
        chosen = np.array(list(product([0, 1], repeat=len(differences)))[1:])
        means = np.sort(chosen @ differences / chosen.sum(axis=1))
        place = int(np.floor(level / 2 * 2 ** len(differences) + 1e-9))
        return (-np.inf, np.inf) if place == 0 else (float(means[place - 1]), float(means[-place]))
    found = scipy.stats.ttest_1samp(differences, 0).confidence_interval(1 - level)
    return float(found.low), float(found.high)


def _flips(differences: Numbers, side: str) -> float:
    found = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative=side, vectorized=True
    )
    return float(found.pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """p of several tests, adjusted so that the chance of any false rejection stays below the level (Holm 1979)."""
    adjusted, highest = [0.0] * len(p), 0.0
    for place, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, (len(p) - place) * p[index]))
        adjusted[index] = highest
    return adjusted


def outlier(values: Sequence[float]) -> int | None:
    """The place of the value that is too far from the others by Grubbs's test at 5 %, or None; of three or more."""
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    if n < 3 or array.std() < 1e-9:
        return None
    distance = np.abs(array - array.mean()) / array.std(ddof=1)
    t = scipy.stats.t.isf(LEVEL / (2 * n), n - 2)
    farthest = int(distance.argmax())
    return farthest if distance[farthest] > (n - 1) / np.sqrt(n) * np.sqrt(t**2 / (n - 2 + t**2)) else None
