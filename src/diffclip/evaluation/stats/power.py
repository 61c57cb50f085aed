"""How many seeds a comparison needs: the power of the paired t test and of two one-sided tests, for normal differences.

`benchmarks/power.py` checks both against simulation.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import scipy.stats
from numpy.typing import NDArray
from scipy.special import ndtr

from diffclip.evaluation.stats.significance import LEVEL

POWER = 0.8
MOST = 2000
"""Seeds that are looked at; a comparison that needs more is said to need more."""


def power(effect: float, sd: float, seeds: int, level: float = LEVEL) -> float:
    """The chance that a paired t test of n seeds finds an effect, sd being that of the paired difference."""
    limit, shift = scipy.stats.t.isf(level / 2, seeds - 1) * _deviations(seeds), effect / sd * np.sqrt(seeds)
    return float((ndtr(shift - limit) + ndtr(-shift - limit)).mean())


def power_of_equivalence(margin: float, sd: float, seeds: int, level: float = LEVEL) -> float:
    """The chance that two one-sided tests show a true difference of 0 to be within ± margin."""
    room = margin / sd * np.sqrt(seeds) - scipy.stats.t.isf(level, seeds - 1) * _deviations(seeds)
    return float(np.clip(2 * ndtr(room) - 1, 0, None).mean())


def seeds_needed(effect: float, sd: float, level: float = LEVEL) -> int | None:
    """The fewest seeds that find an effect with 80 % power; None for more than `MOST`."""
    return _fewest(lambda n: power(effect, sd, n, level))


def seeds_for_equivalence(margin: float, sd: float, level: float = LEVEL) -> int | None:
    """The fewest seeds that show equivalence with 80 % power where there is no difference, or None."""
    return _fewest(lambda n: power_of_equivalence(margin, sd, n, level))


def smallest_effect(sd: float, seeds: int, level: float = LEVEL) -> float:
    """What n seeds find with 80 % power, in the unit of sd."""
    low, high = 0.0, 1.0
    while power(high, 1, seeds, level) < POWER:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, 1, seeds, level) >= POWER else (middle, high)
    return sd * high


def upper_sd(sd: float, seeds: int, confidence: float = 0.8) -> float:
    """What the true sd is below with this confidence, by the sd of a pilot of n seeds."""
    return float(sd * np.sqrt((seeds - 1) / scipy.stats.chi2.ppf(1 - confidence, seeds - 1)))


@cache
def _deviations(seeds: int) -> NDArray[np.float64]:
    """Sds of n normal numbers of sd 1, as equally likely quantiles: a mean over them is one over all samples' sds.

    SciPy's noncentral t, which would do, gives NaN for large shifts.
    """
    quantiles = (np.arange(4000) + 0.5) / 4000
    return np.asarray(np.sqrt(scipy.stats.chi2.ppf(quantiles, seeds - 1) / (seeds - 1)))


def _fewest(of: Callable[[int], float]) -> int | None:
    """By halving: power rises with the number of seeds."""
    low, high = 1, MOST
    if of(high) < POWER:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if of(middle) >= POWER else (middle, high)
    return high
