"""Does the interval of a few-shot difference hold the truth where the same images serve many episodes?

    python benchmarks/few_shot_intervals.py [--trials 60] [--json FILE]

Features of two models are simulated: classes are points, images vary around them, and both models see the same images
with noise of their own. The truth is the difference over many sets of images; each trial draws one set and gives an
interval by image (`few_shot.evaluate`) and one that takes the 5,000 episodes for independent, as is often done.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from diffclip.evaluation.stats.bootstrap import mean_interval
from diffclip.evaluation.tasks import few_shot

DIM, NOISE = 32, (1.0, 1.1)
# Images a class for training and for testing; 10 classes.
SIZES = {"20 + 20": (20, 20), "100 + 50": (100, 50), "500 + 200": (500, 200)}
CLASSES = 10


def features(
    per_class: int, means: torch.Tensor, generator: torch.Generator
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Of each model (N, DIM), and the labels."""
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    shared = means[labels] + 1.3 * torch.randn(len(labels), DIM, generator=generator)
    return [shared + noise * torch.randn(len(labels), DIM, generator=generator) for noise in NOISE], labels


def trial(sizes: tuple[int, int], means: torch.Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Differences between the models by image, and by episode."""
    generator = torch.Generator().manual_seed(seed)
    (train, train_y), (test, test_y) = (features(size, means, generator) for size in sizes)
    by_image, by_episode = [], []
    for x, z in zip(train, test, strict=True):
        episodes, hits = few_shot.episode_hits(x, train_y, z, test_y, seed=seed)
        by_image.append(few_shot.evaluate(episodes, hits, train_y, test_y).values["acc1"].numpy())
        by_episode.append(hits.flatten(1).nanmean(dim=1).numpy())
    return by_image[1] - by_image[0], by_episode[1] - by_episode[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    means = 0.55 * torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0))
    results = []
    print(f"{'images a class':16}{'difference':>12}{'true sd':>9}{'':6}{'by image':>20}{'by episode':>20}")
    for name, sizes in SIZES.items():
        found = [trial(sizes, means, seed) for seed in range(arguments.trials)]
        scores = 100 * np.array([images.mean() for images, _ in found])
        cells = {}
        for kind, which in (("by image", 0), ("by episode", 1)):
            every = [pair[which] for pair in found]
            error = float(np.mean([100 * v.std() / len(v) ** 0.5 for v in every]))
            intervals = [mean_interval(v, resamples=1000) for v in every]
            held = float(np.mean([i.low <= scores.mean() / 100 <= i.high for i in intervals]))
            cells[kind] = {"standard error": error, "coverage": held}
        sd = float(scores.std(ddof=1))
        text = "".join(f"{c['standard error']:11.2f} {100 * c['coverage']:6.1f} %" for c in cells.values())
        print(f"{name:16}{scores.mean():12.2f}{sd:9.2f}{'':6}{text}", flush=True)
        results.append({"images": name, "difference": float(scores.mean()), "true sd": sd, **cells})
    if arguments.json:
        arguments.json.write_text(json.dumps({"trials": arguments.trials, "results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
