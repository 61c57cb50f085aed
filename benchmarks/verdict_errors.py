"""How often is a verdict wrong? Sizes of the tests, alone, many at once, looked at early, and with a collapsed seed.

    python benchmarks/verdict_errors.py [--trials 4000] [--json FILE]

Differences by seed are drawn from a normal distribution with sd 1, and judged as a sweep is (`verdicts.judge`'s parts:
p, Holm's adjustment, two one-sided tests). Where nothing differs, every "higher" is an error; at the edge of the
margin every "equivalent" is one.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffclip.evaluation.stats.power import power, power_of_equivalence, seeds_for_equivalence, seeds_needed
from diffclip.evaluation.stats.significance import LEVEL, holm, outlier, p_equivalence, p_value


def rows(generator: np.random.Generator, seeds: int, count: int, correlation: float) -> np.ndarray:
    """(count, seeds) differences of outcomes that vary together."""
    shared = generator.standard_normal((1, seeds))
    return correlation**0.5 * shared + (1 - correlation) ** 0.5 * generator.standard_normal((count, seeds))


def many(seeds: int, count: int, correlation: float) -> Callable[[np.random.Generator], tuple[bool, bool]]:
    """Whether any of several outcomes is called different: each for itself, and by Holm."""

    def trial(generator: np.random.Generator) -> tuple[bool, bool]:
        p = [p_value(row, "t") for row in rows(generator, seeds, count, correlation)]
        return min(p) < LEVEL, min(holm(p)) < LEVEL

    return trial


def early(first: int, last: int) -> Callable[[np.random.Generator], tuple[bool, bool]]:
    """Whether a difference is found where one looks after every seed, and where one waits for the last."""

    def trial(generator: np.random.Generator) -> tuple[bool, bool]:
        values = generator.standard_normal(last)
        p = [p_value(values[:n], "t") for n in range(first, last + 1)]
        return min(p) < LEVEL, p[-1] < LEVEL

    return trial


def equivalent(seeds: int, margin: float, test: str) -> Callable[[np.random.Generator], tuple[bool, bool]]:
    """Whether a true difference of the margin is called equivalent, and whether one of 0 is."""

    def trial(generator: np.random.Generator) -> tuple[bool, bool]:
        values = generator.standard_normal(seeds)
        return tuple(p_equivalence(values + at, margin, test) < LEVEL for at in (margin, 0.0))

    return trial


def collapsed(seeds: int, share: float) -> Callable[[np.random.Generator], tuple[bool, bool]]:
    """Whether p is below 0.05 of the true mean, and whether Grubbs's test points at a seed, where some runs lose 40."""

    def trial(generator: np.random.Generator) -> tuple[bool, bool]:
        values = generator.standard_normal(seeds) - 40 * (generator.random(seeds) < share)
        return p_value(values + 40 * share, "t") < LEVEL, outlier(values) is not None

    return trial


def needed(effect: float, sd: float) -> Callable[[np.random.Generator], tuple[bool, bool]]:
    """Whether `seeds_needed` seeds find an effect, and `seeds_for_equivalence` seeds show equivalence within it."""
    find, show = seeds_needed(effect, sd), seeds_for_equivalence(effect, sd)

    def trial(generator: np.random.Generator) -> tuple[bool, bool]:
        found = p_value(generator.normal(effect, sd, find), "t") < LEVEL
        return found, p_equivalence(generator.normal(0, sd, show), effect, "t") < LEVEL

    return trial


CASES = {
    "one outcome, 3 seeds | each for itself | Holm": many(3, 1, 0.0),
    "20 independent outcomes, 5 seeds | each for itself | Holm": many(5, 20, 0.0),
    "33 independent outcomes, 5 seeds | each for itself | Holm": many(5, 33, 0.0),
    "33 outcomes, correlation 0.6, 5 seeds | each for itself | Holm": many(5, 33, 0.6),
    "a look after each of 3 to 5 seeds | any look | the last": early(3, 5),
    "a look after each of 3 to 10 seeds | any look | the last": early(3, 10),
    "margin 1 sd, 5 seeds, t | equivalent at the margin | at 0": equivalent(5, 1.0, "t"),
    "margin 1 sd, 16 seeds, t | equivalent at the margin | at 0": equivalent(16, 1.0, "t"),
    "margin 1 sd, 8 seeds, flips | equivalent at the margin | at 0": equivalent(8, 1.0, "permutation"),
    "3 seeds, 5 % collapse by 40 sd | true mean missed | pointed out": collapsed(3, 0.05),
    "3 seeds, 10 % collapse by 40 sd | true mean missed | pointed out": collapsed(3, 0.1),
    "5 seeds, 5 % collapse by 40 sd | true mean missed | pointed out": collapsed(5, 0.05),
    "5 seeds, 10 % collapse by 40 sd | true mean missed | pointed out": collapsed(5, 0.1),
    "power at 1 point, sd 0.48 | difference found | equivalence shown": needed(1.0, 0.48),
    "power at 1 point, sd 0.75 | difference found | equivalence shown": needed(1.0, 0.75),
    "power at 1 point, sd 1.27 | difference found | equivalence shown": needed(1.0, 1.27),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=4000)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    results = []
    for case, trial in CASES.items():
        generator = np.random.default_rng(0)
        first, second = np.mean([trial(generator) for _ in range(arguments.trials)], axis=0)
        what, *kinds = case.split(" | ")
        said = "; ".join(f"{kind} {100 * share:.1f} %" for kind, share in zip(kinds, (first, second), strict=True))
        print(f"{what:42}{said}", flush=True)
        results.append({"case": what, kinds[0]: first, kinds[1]: second})
    for sd in (0.48, 0.75, 1.27):
        find, show = seeds_needed(1.0, sd), seeds_for_equivalence(1.0, sd)
        stated = f"{find} seeds, {100 * power(1.0, sd, find):.1f} %"
        print(f"stated, sd {sd}: {stated}; {show} seeds, {100 * power_of_equivalence(1.0, sd, show):.1f} %")
    if arguments.json:
        arguments.json.write_text(json.dumps({"trials": arguments.trials, "results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
