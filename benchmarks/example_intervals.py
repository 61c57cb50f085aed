"""How often does the 95 % interval over test examples, of one pair of models, hold what is true of that pair?

    python benchmarks/example_intervals.py [--trials 1000] [--json FILE]

Answers are simulated for a population of images whose difficulty both models share. For each kind of number that the
program gives an interval of: the true difference is that of a large population, each trial draws N of its images and
takes the interval of `mean_interval` or, where images are drawn for two data sets, of `seeds.paired`. It says nothing
about other training runs. Few-shot episodes have `few_shot_intervals.py`.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from diffclip.evaluation.datasets.pope import Question
from diffclip.evaluation.pope import evaluate as pope
from diffclip.evaluation.stats.bootstrap import Interval, mean_interval
from diffclip.evaluation.stats.seeds import paired
from diffclip.evaluation.tasks import corruptions
from diffclip.evaluation.tasks.linear_probe import Probe
from diffclip.evaluation.tasks.linear_probe import evaluate as probe

POPULATION = 100_000
SIZES = (15, 50, 250)
VARIANTS = [("fog", severity) for severity in (1, 2, 3, 4, 5)]
CLASSES = np.array([0.4, 0.3, 0.2, 0.1])

Draw = Callable[[int, np.random.Generator], np.ndarray]


def right(count: int, generator: np.random.Generator, columns: int = 1) -> np.ndarray:
    """(2, count, columns) answers of two models, right (1) or wrong: the second a little better."""
    difficulty = generator.normal(0, 1.5, (1, count, 1))
    ability = np.array([0.4, 0.6])[:, None, None]
    return (generator.random((2, count, columns)) < 1 / (1 + np.exp(difficulty - ability))).astype(float)


def accuracy(count: int, generator: np.random.Generator) -> np.ndarray:
    first, second = right(count, generator)[..., 0]
    return second - first


def per_class(count: int, generator: np.random.Generator) -> np.ndarray:
    labels = torch.from_numpy(generator.choice(4, count, p=CLASSES))
    every = []
    for answers in right(count, generator)[..., 0]:
        predictions = torch.where(torch.from_numpy(answers) > 0, labels, (labels + 1) % 4)
        found = probe(Probe(1.0, predictions, {}), labels, torch.arange(count))
        every.append(found.values["mean_per_class_recall"].numpy())
    return every[1] - every[0]


def relative(count: int, generator: np.random.Generator) -> np.ndarray:
    first, second = (
        corruptions.summarise(torch.from_numpy(hits), VARIANTS)["relative_acc1"].numpy()
        for hits in right(count, generator, 1 + len(VARIANTS))
    )
    return second - first


def pope_f1(count: int, generator: np.random.Generator) -> np.ndarray:
    """Six questions an image, half of them to be answered with yes; of one model."""
    answers = right(count, generator, 6)[0].ravel() > 0
    questions = [Question(str(i), str(i // 6), i % 2 == 0) for i in range(6 * count)]
    said = ["yes" if q.yes == answer else "no" for q, answer in zip(questions, answers, strict=True)]
    return pope(questions, said).values["f1"].numpy()


KINDS: dict[str, Draw] = {
    "difference of accuracies": accuracy,
    "difference of means per class": per_class,
    "difference of shares of the clean accuracy": relative,
    "POPE's F1, by image": pope_f1,
}


def two_data_sets(count: int, generator: np.random.Generator) -> Interval | None:
    """The mean over two data sets, the second twice as large."""
    parts = [accuracy(size, generator)[None] for size in (count, 2 * count)]
    mean = float(np.mean([part.mean() for part in parts]))
    return paired({0: 0.0}, {0: mean}, examples=parts, resamples=1000).interval


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    print(f"{'':44}{'truth':>8}" + "".join(f"{f'N = {size}':>16}" for size in SIZES))
    rows = []
    for kind, draw in (*KINDS.items(), ("difference of means over two data sets", two_data_sets)):
        values = accuracy if draw is two_data_sets else draw
        population = POPULATION if draw is not pope_f1 else POPULATION // 10
        truth = float(np.mean([values(population, np.random.default_rng((1, i))).mean() for i in range(5)]))
        cells = {}
        for size in SIZES:
            generator = np.random.default_rng(size)
            found = [
                draw(size, generator) if draw is two_data_sets else mean_interval(draw(size, generator), resamples=1000)
                for _ in range(arguments.trials)
            ]
            some = [interval for interval in found if interval is not None and interval.high > interval.low]
            held = float(np.mean([interval.low <= truth <= interval.high for interval in some]))
            half = float(np.mean([(interval.high - interval.low) / 2 for interval in some]))
            cells[size] = {"coverage": held, "half width": half, "without an interval": 1 - len(some) / len(found)}
        text = "".join(f"{100 * c['coverage']:8.1f} % ± {100 * c['half width']:4.1f}" for c in cells.values())
        print(f"{kind:44}{100 * truth:8.2f}{text}", flush=True)
        rows.append({"kind": kind, "truth": truth, "sizes": cells})
    if arguments.json:
        arguments.json.write_text(json.dumps({"trials": arguments.trials, "results": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
