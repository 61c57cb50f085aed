"""What do recalls over many captions and images cost, in memory and in time?

    python benchmarks/retrieval.py [--texts 40000] [--images 10000] [--width 512] [--rounds 3] [--json FILE]

The peer does as the LAION CLIP benchmark: the whole matrix of scores, a matrix of the same shape that says which pairs
belong together, and of each row the k best, in batches. Every run is a process of its own, contestants taking turns,
so that its peak is its own; medians over the rounds. "at rest" is a process that has made the features and nothing
else. Both have the same features and have to find the same recalls.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from diffclip.evaluation.tasks.retrieval import recall

KS = (1, 5, 10)


def features(texts: int, images: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised features of images and of texts that are somewhat like theirs, and the image of each text."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(images, width, generator=generator)
    owner = torch.arange(texts) % images
    text = torch.randn(texts, width, generator=generator).mul_(4).add_(image[owner])
    normalize = torch.nn.functional.normalize
    return normalize(image, dim=-1), normalize(text, dim=-1), owner


def whole_matrix(image: Tensor, text: Tensor, owner: Tensor) -> dict[str, float]:
    """Recalls from one matrix of all scores."""
    scores = text @ image.T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), owner] = True

    def recall_at(k: int, scores: Tensor, positive: Tensor) -> float:
        hits = []
        for start in range(0, len(scores), 64):
            best = scores[start : start + 64].topk(k, dim=1).indices
            hits.append(positive[start : start + 64].gather(1, best).any(dim=1))
        return torch.cat(hits).float().mean().item()

    found = {f"image_retrieval_recall@{k}": recall_at(k, scores, positive) for k in KS}
    return found | {f"text_retrieval_recall@{k}": recall_at(k, scores.T, positive.T) for k in KS}


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], dict[str, float]]] = {
    "at rest": lambda image, text, owner: {},
    "in blocks": lambda image, text, owner: recall(image, text, owner, KS),
    "whole matrix": whole_matrix,
}


def child(way: str, texts: int, images: int, width: int) -> None:
    made = features(texts, images, width)
    start = time.perf_counter()
    found = WAYS[way](*made)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB; Linux counts in KiB
    print(json.dumps({"seconds": seconds, "peak_gib": peak, "recalls": found}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=40_000)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = (options.texts, options.images, options.width)
    if options.child:
        child(options.child, *size)
        return
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    recalls: dict[str, dict[str, float]] = {}
    numbers = [f"--{name}={value}" for name, value in zip(("texts", "images", "width"), size, strict=True)]
    for _ in range(options.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, *numbers, "--child", way]
            run = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            recalls[way] = run.pop("recalls")
            runs[way].append(run)
    furthest = max(abs(recalls["in blocks"][name] - value) for name, value in recalls["whole matrix"].items())
    names = ("seconds", "peak_gib")
    median = {way: {name: statistics.median(run[name] for run in runs[way]) for name in names} for way in WAYS}
    threads = torch.get_num_threads()
    print(f"{options.texts:,} texts, {options.images:,} images, width {options.width}, {threads} threads")
    print(f"{'':14}{'seconds':>9}{'peak GiB':>10}{'above rest':>12}")
    for way, found in median.items():
        above = found["peak_gib"] - median["at rest"]["peak_gib"]
        print(f"{way:14}{found['seconds']:9.2f}{found['peak_gib']:10.2f}{above:12.2f}")
    print(f"recalls differ by at most {furthest:.1e}")
    if options.json:
        found = {"size": size, "median": median, "runs": runs, "recalls": recalls}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
