"""What memory does a step take as the batch grows, with micro-batches and without, and what do they cost in time?

    python benchmarks/grad_cache.py [--batch-sizes 256 512 1024 2048 4096] [--micro-batch 128] [--whole-up-to 1024]
        [--rounds 3] [--json FILE]

One optimizer step of the quickstart's DiffCLIP on random images and captions. Each row is a process of its own: the
peak of its memory over two steps, less what it holds before the model and the batch are made. The batch itself, in
uint8, is in it. Without micro-batches sizes end at --whole-up-to. The time is that of one batch of
--whole-up-to with and without, in turn in one process, in CPU seconds.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rounds import in_turn, measured_apart, peak_mib, ratio, write_json

from diffclip.config import Model, Recipe, Training
from diffclip.data.loading.loader import Batch
from diffclip.training.setup import new_state
from diffclip.training.step import Schedule, TrainState

END, LENGTH = 49407, 12


def random_batch(size: int) -> Batch:
    pixels = torch.randint(256, (size, 3, 64, 64), dtype=torch.uint8)
    tokens = torch.randint(1, END, (size, LENGTH))
    tokens[:, -1] = END
    return Batch(pixels=pixels, tokens=tokens, groups=-1 - torch.arange(size), indices=torch.arange(size))


def new_trainer(size: int, micro_batch: int) -> TrainState:
    recipe = Recipe(
        model=Model(preset="diffclip_vit_quickstart"), training=Training(batch_size=size, micro_batch=micro_batch)
    )
    return new_state(recipe, Schedule(steps_per_epoch=1000, steps=10_000, warmup_steps=1000))


def peak(size: int, micro_batch: int) -> float:
    """MiB of this process over two steps, the second with AdamW's moments, above what it holds now."""
    idle = peak_mib()
    trainer, batch = new_trainer(size, micro_batch), random_batch(size)
    for step in range(2):
        trainer.step(step, batch)
    return peak_mib() - idle


def cpu_seconds(size: int, micro_batches: tuple[int, int], rounds: int) -> dict[str, list[float]]:
    batch = random_batch(size)
    seconds: dict[str, list[float]] = {str(micro_batch): [] for micro_batch in micro_batches}

    def timed(micro_batch: int) -> Callable[[int], None]:
        trainer = new_trainer(size, micro_batch)

        def step(number: int) -> None:
            began = time.process_time()
            trainer.step(0, batch)
            if number >= 0:
                seconds[str(micro_batch)].append(time.process_time() - began)

        return step

    in_turn({str(micro_batch): timed(micro_batch) for micro_batch in micro_batches}, rounds)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--micro-batch", type=int, default=128)
    parser.add_argument("--whole-up-to", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--peak-of", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        print(peak(*arguments.peak_of))
        return
    found = []
    print(f"{'batch':>6}{'whole, MiB':>12}{f'{arguments.micro_batch} at a time, MiB':>24}")
    for size in arguments.batch_sizes:
        whole = measured_apart("--peak-of", str(size), "0") if size <= arguments.whole_up_to else None
        parts = measured_apart("--peak-of", str(size), str(arguments.micro_batch))
        print(f"{size:6}{'-' if whole is None else format(whole, '.0f'):>12}{parts:24.0f}", flush=True)
        found.append({"batch_size": size, "whole_mib": whole, "micro_batch_mib": parts})
    seconds = cpu_seconds(arguments.whole_up_to, (0, arguments.micro_batch), arguments.rounds)
    times = ratio(seconds, str(arguments.micro_batch), "0")
    print(f"CPU time of a step of {arguments.whole_up_to}, {arguments.micro_batch} at a time: {times:.2f} of the whole")
    write_json(arguments.json, {"micro_batch": arguments.micro_batch, "rows": found, "cpu_seconds": seconds})


if __name__ == "__main__":
    main()
