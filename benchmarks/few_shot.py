"""How much faster are few-shot episodes all at once than one after the other, with the same numbers?

    python benchmarks/few_shot.py [--features 50000] [--dim 512] [--classes 100] [--rounds 5] [--json FILE]

The loop is the usual one, in PyTorch: an episode draws its classes and examples with `randperm` and
`multinomial`, and is classified by itself. Both ways of drawing, and both ways of classifying one set of
episodes, run in turn in one process on the same threads; medians over the rounds, of wall seconds and, for
machines that do other work too, of CPU seconds. It says how many episodes differ, which happens where a query is
as near to two prototypes to the last bits of float32, and fails if it is more than one in a thousand.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import normalize

from diffclip.evaluation.tasks import few_shot

PLAN = {"num_ways": 5, "num_shots": 5, "num_queries": 6}

Features = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def overlapping_classes(count: int, dim: int, classes: int) -> Features:
    """train_x, train_y, test_x, test_y; a fifth as many test as training examples."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(classes, dim, generator=generator)
    splits = []
    for size in (count, count // 5):
        labels = torch.arange(size) % classes
        splits += [0.2 * means[labels] + torch.randn(size, dim, generator=generator) + 0.3, labels]
    return tuple(splits)


def draw_one_by_one(train_y: torch.Tensor, test_y: torch.Tensor, episodes: int) -> few_shot.Episodes:
    members = [[(y == label).nonzero()[:, 0] for label in range(int(train_y.max()) + 1)] for y in (train_y, test_y)]
    support, query = [], []
    for _ in range(episodes):
        ways = torch.randperm(len(members[0]))[: PLAN["num_ways"]].tolist()
        for way in ways:
            for chosen, of_class, count in (
                (support, members[0][way], PLAN["num_shots"]),
                (query, members[1][way], PLAN["num_queries"]),
            ):
                chosen.append(of_class[torch.multinomial(torch.ones(len(of_class)), count)])
    shape = (episodes, PLAN["num_ways"], -1)
    return few_shot.Episodes(torch.stack(support).view(shape), torch.stack(query).view(shape))


def classify_one_by_one(train_x: torch.Tensor, test_x: torch.Tensor, episodes: few_shot.Episodes) -> torch.Tensor:
    accuracies = []
    truth = torch.arange(PLAN["num_ways"]).repeat_interleave(PLAN["num_queries"])
    for support, query in zip(episodes.support, episodes.query, strict=True):
        s, q = train_x[support.flatten()], test_x[query.flatten()]
        mean = s.mean(dim=0, keepdim=True)
        s, q = normalize(s - mean, dim=-1), normalize(q - mean, dim=-1)
        prototypes = s.view(PLAN["num_ways"], PLAN["num_shots"], -1).mean(dim=1)
        distance = (q[:, None] - prototypes[None]).norm(dim=-1)
        accuracies.append((distance.argmin(dim=1) == truth).double().mean())
    return torch.stack(accuracies)


def timed(function: Callable, *arguments):
    """What a function returns, and its (wall, CPU) seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = function(*arguments)
    return found, (time.perf_counter() - wall, time.process_time() - cpu)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, default=50_000, help="training features")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--episodes", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    train_x, train_y, test_x, test_y = overlapping_classes(arguments.features, arguments.dim, arguments.classes)
    times: dict[str, list[tuple[float, float]]] = {"draw_loop": [], "draw": [], "classify_loop": [], "classify": []}
    differ: list[int] = []
    plan = {**PLAN, "num_episodes": arguments.episodes}
    for seed in range(arguments.rounds):
        _, seconds = timed(draw_one_by_one, train_y, test_y, arguments.episodes)
        times["draw_loop"].append(seconds)
        episodes, seconds = timed(lambda seed=seed: few_shot.draw(train_y, test_y, seed=seed, **plan))
        times["draw"].append(seconds)
        expected, seconds = timed(classify_one_by_one, train_x, test_x, episodes)
        times["classify_loop"].append(seconds)
        hits, seconds = timed(few_shot.classify, train_x, test_x, episodes)
        found = hits.flatten(1).nanmean(dim=1)
        times["classify"].append(seconds)
        differ.append(int((found != expected).sum()))
        if differ[-1] > len(found) / 1000:
            raise ValueError(f"{differ[-1]} of {len(found)} episodes differ")
    print(f"{arguments.episodes} episodes of {arguments.features} × {arguments.dim} features, ", end="")
    print(f"{arguments.classes} classes; {torch.get_num_threads()} threads; accuracy {100 * found.mean():.2f} %")
    print(f"episodes that differ, by round: {', '.join(map(str, differ))}")
    print(f"{'':22}{'loop':>10}{'at once':>10}{'faster':>9}")
    figures = {}
    for place, kind in enumerate(("wall seconds", "CPU seconds")):
        median = {name: statistics.median(values[place] for values in pairs) for name, pairs in times.items()}
        median["all_loop"] = median["draw_loop"] + median["classify_loop"]
        median["all"] = median["draw"] + median["classify"]
        figures[kind] = median
        for name in ("draw", "classify", "all"):
            loop, ours = median[f"{name}_loop"], median[name]
            print(f"{kind:13}{name:9}{loop:10.3f}{ours:10.3f}{loop / ours:8.1f}×")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rounds": arguments.rounds, **figures}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
