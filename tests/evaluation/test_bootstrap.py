import numpy as np
import pytest

from diffclip.evaluation.stats import bootstrap
from diffclip.evaluation.stats.bootstrap import mean_interval


def plain_bootstrap(values, resamples, seed):
    """The textbook form: draw the examples with replacement, one resample after the other."""
    generator = np.random.default_rng(seed)
    means = [generator.choice(values, len(values)).mean() for _ in range(resamples)]
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("kind", ["answers", "continuous"])
def test_equals_the_textbook_form(kind):
    generator = np.random.default_rng(1)
    values = generator.choice([-1.0, 0.0, 1.0], 300, p=[0.1, 0.7, 0.2]) if kind == "answers" else generator.random(300)
    found = mean_interval(values, resamples=20_000)
    low, high = plain_bootstrap(values, 20_000, seed=2)
    spread = values.std() / np.sqrt(300)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(low, abs=0.1 * spread)
    assert found.high == pytest.approx(high, abs=0.1 * spread)


def test_covers_the_truth_about_95_times_of_100():
    generator = np.random.default_rng(3)
    covered = 0
    for trial in range(400):
        interval = mean_interval(generator.choice([-1.0, 0.0, 1.0], 200, p=[0.1, 0.7, 0.2]), resamples=500, seed=trial)
        covered += interval.low <= 0.1 <= interval.high
    assert 0.90 <= covered / 400 <= 0.98


def test_significant_only_where_zero_is_left_out():
    generator = np.random.default_rng(4)
    noise = generator.standard_normal(300)
    assert not mean_interval(noise - noise.mean()).significant
    assert mean_interval(noise - noise.mean() + 0.2).significant
    assert mean_interval(noise - noise.mean() - 0.2).significant
    assert not mean_interval(np.zeros(50)).significant


def test_same_seed_same_interval_and_blocks_do_not_change_what_it_means(monkeypatch):
    values = np.random.default_rng(5).random(100)
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values) != mean_interval(values, seed=1)
    whole = mean_interval(values)
    monkeypatch.setattr(bootstrap, "BLOCK", 1000)
    assert mean_interval(values) == whole  # the stream is drawn in order, whatever the block


def test_nothing_and_nan_are_refused():
    for values in ([], [0.1, float("nan")], [[0.1]]):
        with pytest.raises(ValueError, match="one finite number an example"):
            mean_interval(values)


@pytest.mark.parametrize("count", [9000, 9001])
def test_many_examples_that_all_differ_are_resampled_in_groups(count, monkeypatch):
    """The same mean to rounding, and the interval of the examples themselves to the noise of a bootstrap."""
    values = np.random.default_rng(0).normal(0.7, 1, count)
    grouped = mean_interval(values)
    assert bootstrap.distinct_columns(values[None])[0].shape == (1, bootstrap.GROUPS)
    monkeypatch.setattr(bootstrap, "GROUPS", count)
    one_by_one = mean_interval(values, resamples=1000)
    assert grouped.mean == one_by_one.mean == values.mean()
    width = one_by_one.high - one_by_one.low
    assert (grouped.low, grouped.high) == pytest.approx((one_by_one.low, one_by_one.high), abs=0.05 * width)
