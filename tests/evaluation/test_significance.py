"""Tests over a few numbers, power and equivalence: against SciPy, by hand, and by simulation."""

import numpy as np
import pytest
from scipy import stats

from diffclip.evaluation.stats import power, significance

TRIALS = 4000


def test_holm_is_that_of_the_definition():
    assert significance.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert significance.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert significance.holm([]) == []
    seven = [0.0014, 0.0030, 0.0052, 0.036, 0.036, 0.2, 0.4]
    adjusted = significance.holm(seven)
    assert [p < 0.05 for p in adjusted] == [True] * 3 + [False] * 4


def test_sign_flips_are_counted():
    """Six equal signs: 2 of 64 flips are as far out, and the interval ends at the outermost differences."""
    differences = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert significance.p_value(differences, "permutation") == pytest.approx(2 / 64)
    assert significance.interval(differences, 0.05, "permutation") == pytest.approx((0.1, 0.6))
    assert significance.interval(differences[:5], 0.05, "permutation") == (-np.inf, np.inf)
    assert significance.p_value(-differences, "t") == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)


def test_equivalence_is_two_one_sided_tests():
    differences = np.array([0.1, -0.2, 0.15, 0.05, -0.1])
    below = stats.ttest_1samp(differences, 1, alternative="less").pvalue
    above = stats.ttest_1samp(differences, -1, alternative="greater").pvalue
    assert significance.p_equivalence(differences, 1, "t") == pytest.approx(max(below, above))
    assert significance.p_equivalence(differences + 1, 1, "t") > 0.4


def test_a_collapsed_seed_is_pointed_out_and_few_others_are():
    assert significance.outlier([70, 71, 70.5, 50, 70.2]) == 3
    assert significance.outlier([71, 71.5, 50]) == 2
    assert significance.outlier([70, 71, 72, 73, 74]) is None
    assert significance.outlier([50, 70]) is None
    assert significance.outlier([70, 70, 70]) is None
    draws = np.random.default_rng(0).normal(size=(2000, 5))
    assert np.mean([significance.outlier(row) is not None for row in draws]) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(("effect", "sd", "seeds"), [(1.0, 0.75, 7), (2.0, 1.27, 6), (0.5, 0.48, 10), (5.0, 2.1, 4)])
def test_power_is_that_of_simulated_tests(effect, sd, seeds):
    draws = np.random.default_rng(0).normal(effect, sd, (TRIALS, seeds))
    found = np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05)
    assert power.power(effect, sd, seeds) == pytest.approx(found, abs=0.025)
    assert power.seeds_needed(effect, sd) == seeds
    assert power.smallest_effect(sd, seeds) == pytest.approx(effect, rel=0.35)
    assert power.power(power.smallest_effect(sd, seeds), sd, seeds) == pytest.approx(0.8, abs=0.001)


@pytest.mark.parametrize(("margin", "sd", "seeds"), [(1.0, 0.48, 4), (1.0, 0.75, 7), (1.0, 1.27, 16)])
def test_power_of_equivalence_is_that_of_simulated_tests(margin, sd, seeds):
    draws = np.random.default_rng(0).normal(0, sd, (TRIALS, seeds))
    sides = (stats.ttest_1samp(draws, at, axis=1, alternative=side).pvalue for at, side in
             ((margin, "less"), (-margin, "greater")))  # fmt: skip
    found = np.mean(np.maximum(*sides) < 0.05)
    assert power.power_of_equivalence(margin, sd, seeds) == pytest.approx(found, abs=0.025)
    assert power.seeds_for_equivalence(margin, sd) == seeds


def test_what_cannot_be_shown_and_what_a_pilot_does_not_know():
    assert power.seeds_needed(0.1, 11.9) is None
    draws = np.random.default_rng(0).normal(0, 1, (TRIALS, 5)).std(axis=1, ddof=1)
    assert np.mean([power.upper_sd(sd, 5) > 1 for sd in draws]) == pytest.approx(0.8, abs=0.02)
