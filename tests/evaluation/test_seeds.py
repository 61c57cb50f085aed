"""Runs over seeds: against scipy, against plain loops, and how often an interval holds the truth."""

import numpy as np
import pytest
import torch
from scipy import stats

from diffclip.evaluation.results import PerExampleScores
from diffclip.evaluation.stats.seeds import example_differences, paired, split_seed


def test_the_t_interval_is_that_of_a_paired_t_test():
    baseline = {0: 0.50, 1: 0.52, 2: 0.47, 3: 0.49, 7: 0.9}
    candidate = {3: 0.53, 2: 0.52, 1: 0.53, 0: 0.55, 8: 0.1}
    found = paired(baseline, candidate)
    first, second = [baseline[s] for s in range(4)], [candidate[s] for s in range(4)]
    expected = stats.ttest_rel(second, first).confidence_interval()
    assert found.seeds == (0, 1, 2, 3)
    assert (found.by_test().low, found.by_test().high) == pytest.approx((expected.low, expected.high))
    assert found.correlation == pytest.approx(stats.pearsonr(first, second).statistic)
    assert found.sd == pytest.approx(np.std(np.subtract(second, first), ddof=1))
    assert not found.over_examples


def plain_hierarchical(matrices, resamples, seed):
    """The textbook form: draw seeds, then examples of each data set, one resample after the other."""
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        rows = generator.integers(len(matrices[0]), size=len(matrices[0]))
        each = [m[rows][:, generator.integers(m.shape[1], size=m.shape[1])].mean() for m in matrices]
        means.append(np.mean(each))
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("kind", ["answers", "continuous"])
def test_the_bootstrap_over_seeds_and_examples_equals_the_textbook_form(kind, monkeypatch):
    monkeypatch.setattr("diffclip.evaluation.stats.bootstrap.BLOCK", 50_000)
    generator = np.random.default_rng(1)
    shapes = [(4, 60), (4, 90)]
    if kind == "answers":
        matrices = [generator.choice([-1.0, 0.0, 1.0], shape, p=[0.1, 0.6, 0.3]) for shape in shapes]
    else:
        matrices = [generator.standard_normal(shape) for shape in shapes]
    matrices = [m + 0.1 * np.arange(4)[:, None] for m in matrices]
    means = {seed: np.mean([m[seed].mean() for m in matrices]) for seed in range(4)}
    found = paired(dict.fromkeys(range(4), 0.0), means, examples=matrices, resamples=20_000)
    low, high = plain_hierarchical(matrices, 10_000, seed=2)
    found_ends = found.by_bootstrap().low, found.by_bootstrap().high
    assert found_ends == pytest.approx((low, high), abs=0.05 * (high - low))
    assert found.over_examples


def coverage(seed_sd, example_sd, both_sd, count=3, examples=50, trials=300):
    """How often each interval holds the true difference, 0, for a model of how differences come about."""
    generator = np.random.default_rng(3)
    held = np.zeros(3)
    for trial in range(trials):
        matrix = seed_sd * generator.standard_normal((count, 1))
        matrix = matrix + example_sd * generator.standard_normal((1, examples))
        matrix = matrix + both_sd * generator.standard_normal((count, examples))
        candidate = dict(enumerate(matrix.mean(axis=1)))
        found = paired(dict.fromkeys(candidate, 0.0), candidate, examples=[matrix], resamples=400, seed=trial)
        held += [i.low <= 0 <= i.high for i in (found.by_bootstrap(), found.by_test(), found.interval)]
    return held / trials


def test_the_interval_of_the_verdict_covers_where_the_bootstrap_or_t_alone_does_not():
    bootstrap, t, interval = coverage(
        seed_sd=1, example_sd=0.1, both_sd=0.5
    )  # seeds differ: few seeds fool a bootstrap
    assert bootstrap < 0.85 < 0.92 < t <= interval
    bootstrap, t, interval = coverage(seed_sd=0.05, example_sd=5, both_sd=1)  # the test set matters: t does not see it
    assert t < 0.6 < 0.90 < bootstrap <= interval
    *_, interval = coverage(seed_sd=1, example_sd=(50 / 3) ** 0.5 * 3**0.5, both_sd=1)
    assert interval > 0.90


@pytest.mark.parametrize("test", ["t", "permutation"])
def test_p_and_the_interval_say_the_same(test):
    """At any level: p is below it where its interval leaves out 0."""
    generator = np.random.default_rng(0)
    outcomes = set()
    for trial in range(60):
        candidate = dict(enumerate(generator.normal(0.7, 1, 7)))
        found = paired(dict.fromkeys(candidate, 0.0), candidate, test=test, resamples=2000, seed=trial)
        for level in (0.05, 0.1, 0.3):
            interval = found.interval_at(level)
            if abs(found.p - level) > 0.004:  # nearer than the resamples resolve
                assert (found.p < level) == (interval.low > 0 or interval.high < 0)
                outcomes.add((level, found.p < level))
    assert len(outcomes) == 6


def test_too_few_seeds_for_sign_flips_have_no_interval():
    five = paired(dict.fromkeys(range(5), 0.0), dict(enumerate([0.1, 0.2, 0.3, 0.4, 0.5])), test="permutation")
    assert (five.interval, five.by_test(), five.half_width) == (None, None, None)
    assert five.p == pytest.approx(2 / 32)


def test_equivalence_is_what_the_90_percent_interval_shows():
    baseline = dict.fromkeys(range(5), 0.5)
    near = paired(baseline, {0: 0.501, 1: 0.499, 2: 0.5005, 3: 0.4995, 4: 0.5002})
    interval = near.interval_at(0.1)
    for margin in (0.0005, 0.002, 0.01):
        within = -margin < interval.low and interval.high < margin
        assert (near.p_equivalence(margin) < 0.05) == within
    assert near.p > 0.5


def test_numbers_that_do_not_vary_say_nothing():
    alike = paired({0: 0.5, 1: 0.5}, {0: 0.52, 1: 0.52})
    assert (alike.mean, alike.sd) == (pytest.approx(0.02), pytest.approx(0))
    assert (alike.interval, alike.p, alike.p_equivalence(0.1)) == (None, None, None)
    # Whatever the examples say: three seeds that agree to the last bit are no estimate of how seeds differ.
    examples = [np.tile([0.0, 1, 0, 0], (3, 1))]
    assert paired(dict.fromkeys(range(3), 0.5), dict.fromkeys(range(3), 0.75), examples=examples).p is None
    assert paired({0: 0.5}, {0: 0.5}, examples=[np.zeros((1, 50))]).interval is None


def test_one_pair_has_an_interval_over_its_examples_and_no_p():
    one = paired({0: 0.5}, {0: 0.9})
    assert (one.by_test(), one.sd, one.interval, one.p, one.correlation) == (None, None, None, None, None)
    known = paired({0: 0.5}, {0: 0.9}, examples=[np.array([[0.0, 1.0] * 50])])
    assert known.interval == known.by_bootstrap()
    assert known.interval.low > 0
    assert known.p is None
    with pytest.raises(ValueError, match="no common seed"):
        paired({0: 0.5}, {1: 0.5})


@pytest.mark.parametrize(
    ("pretrained", "expected"),
    [
        ("runs/clip/seed_3", ("runs/clip/seed_*", 3)),
        ("runs/seed12/clip", ("runs/seed*/clip", 12)),
        ("runs/clip-seed-0", ("runs/clip-seed-*", 0)),
        ("seed1/x/seed=20", ("seed1/x/seed=*", 20)),
        ("runs/clip", ("runs/clip", None)),
        ("reseeding/clip", ("reseeding/clip", None)),
    ],
)
def test_the_seed_is_read_from_the_name_of_the_weights(pretrained, expected):
    assert split_seed(pretrained) == expected


def of_examples(values, indices=None):
    indices = torch.arange(len(values)) if indices is None else torch.tensor(indices)
    return PerExampleScores(indices, {"acc1": torch.tensor(values)}, {"acc1": 0.5})


def test_differences_of_examples_are_by_seed_and_leave_out_those_without_a_part_in_the_metric():
    nan = float("nan")
    pairs = [
        (of_examples([0.0, 0, 1, nan]), of_examples([1.0, 0, 1, nan])),
        (of_examples([1.0, 0, 1, 1]), of_examples([1.0, 1, 0, 1])),
    ]
    assert example_differences(pairs, "acc1").tolist() == [[1, 0, 0], [0, 1, -1]]
    assert example_differences(pairs, "acc5") is None
    assert example_differences([*pairs, (pairs[0][0], None)], "acc1") is None
    assert example_differences([(of_examples([nan]), of_examples([1.0]))], "acc1") is None


def test_examples_that_differ_are_not_paired():
    pairs = [(of_examples([0.0, 1]), of_examples([1.0, 1], indices=[0, 2]))]
    assert example_differences(pairs, "acc1") is None
