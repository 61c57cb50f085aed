"""What the benchmarks of models share: contestants in turn, medians, peak memory in a process of its own, the table."""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def in_turn(
    contestants: Mapping[str, Callable[[int], object]],
    rounds: int,
    *,
    fixed_order: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every contestant in every round, after one round that is not counted.

    Each round calls each contestant once with the round's number, so all meet the same state of the machine; who
    begins changes from round to round, unless they need what those before them made. `clock` gives the seconds.
    """
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        first = 0 if fixed_order else number % len(names)
        for name in names[first:] + names[:first]:
            began = clock()
            contestants[name](number)
            if number >= 0:
                seconds[name].append(clock() - began)
    return seconds


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def ratio(seconds: Mapping[str, Sequence[float]], one: str, other: str) -> float:
    """Median over the rounds of the ratio within a round, which what slows a whole round down does not move."""
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def peak_mib() -> float:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def measured_apart(*arguments: str) -> float:
    """What the running script prints, a number, when it is started once more with these arguments."""
    command = [sys.executable, sys.argv[0], *arguments]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(answer.split()[-1])


def split(x: Tensor, heads: int, v_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a joint projection makes, (B, N, 3C) → q and k (B, heads, N, C/heads), v (B, v_heads, N, C/v_heads)."""
    q, k, v = x.chunk(3, -1)
    return (
        q.unflatten(-1, (heads, -1)).transpose(1, 2),
        k.unflatten(-1, (heads, -1)).transpose(1, 2),
        v.unflatten(-1, (v_heads, -1)).transpose(1, 2),
    )


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """The figures, and on what they were measured."""
    if path is None:
        return
    machine = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, **content}, indent=1) + "\n")


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
