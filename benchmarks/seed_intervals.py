"""How often does a 95 % interval from a few seeds hold the true difference between two models?

    python benchmarks/seed_intervals.py [--trials 1000] [--json FILE]

Differences are simulated, so the truth, 0, is known: a part that a seed adds to all test examples, a part that an
example adds with all seeds, and a part of each pair of them. Contestants, on the same draws: a percentile
bootstrap over the seeds alone; one over seeds and examples; the test over the seeds (Student's t or all sign flips);
and the smallest interval that holds the last two, on which diffclip's p rests. Coverage, and the median width in units
of the last. The size of the test, how often p is below 0.05 where there is no difference, stands at the end.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from diffclip.evaluation.stats.seeds import paired

EXAMPLES = 200
CONTESTANTS = ("seeds", "seeds, examples", "test", "p")
# What varies → standard deviations of the seed's, the example's and the pair's part for S seeds.
CASES = {
    "seeds": lambda seeds: (1.0, 0.1, 0.5),
    "both alike": lambda seeds: (1.0, (EXAMPLES / seeds) ** 0.5, 1.0),
    "examples": lambda seeds: (0.05, 5.0, 1.0),
}
PLANS = ((2, "t"), (3, "t"), (5, "t"), (10, "t"), (6, "permutation"), (10, "permutation"))


def measure(deviations: tuple[float, float, float], seeds: int, test: str, trials: int) -> dict[str, dict[str, float]]:
    """Contestant → coverage and median width; and the size."""
    generator = np.random.default_rng(0)
    held = dict.fromkeys(CONTESTANTS, 0)
    widths: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    rejected = 0
    for trial in range(trials):
        shapes = ((seeds, 1), (1, EXAMPLES), (seeds, EXAMPLES))
        parts = (sd * generator.standard_normal(shape) for sd, shape in zip(deviations, shapes, strict=True))
        matrix = sum(parts, np.zeros(shapes[-1]))
        scores = dict(enumerate(matrix.mean(axis=1).tolist()))
        zero = dict.fromkeys(scores, 0.0)
        alone = paired(zero, scores, resamples=1000, seed=trial)
        found = paired(zero, scores, examples=[matrix], test=test, resamples=1000, seed=trial)
        intervals = (alone.by_bootstrap(), found.by_bootstrap(), found.by_test(), found.interval)
        for name, interval in zip(CONTESTANTS, intervals, strict=True):
            held[name] += interval.low <= 0 <= interval.high
            widths[name].append(interval.high - interval.low)
        rejected += found.p < 0.05
    unit = float(np.median(widths["p"]))
    cells = {n: {"coverage": held[n] / trials, "width": float(np.median(widths[n])) / unit} for n in CONTESTANTS}
    return cells | {"size": {"rejected": rejected / trials}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    results = []
    print(f"{'seeds':>5}  {'test':12}{'what varies':12}" + "".join(f"{name:>18}" for name in (*CONTESTANTS, "size")))
    for seeds, test in PLANS:
        for case, deviations in CASES.items():
            found = measure(deviations(seeds), seeds, test, arguments.trials)
            cells = [f"{100 * found[n]['coverage']:5.1f} % ×{found[n]['width']:.2f}" for n in CONTESTANTS]
            cells.append(f"{100 * found['size']['rejected']:.1f} %")
            print(f"{seeds:5}  {test:12}{case:12}" + "".join(f"{cell:>18}" for cell in cells), flush=True)
            results.append({"seeds": seeds, "test": test, "varies": case, **found})
    if arguments.json:
        arguments.json.write_text(json.dumps({"trials": arguments.trials, "results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
