"""What does each kind of attention cost: parameters, operations, and the time of a training step?

    python benchmarks/variants.py [--size b16] [--batch 8] [--rounds 5] [--precision float32] [--threads 1]
        [--json FILE]

One row a preset of that size. A step is what trains: forward, loss, backward, AdamW. Every kind gets the same images
and captions, in turn in one process; the time is the processor's own, so that other programs weigh little. The ratio is
the median over rounds of the step's time to that of CLIP in the same round.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rounds import in_turn, medians, ratio, write_json
from train_step import Batches

from diffclip.config import Model, Recipe, Training
from diffclip.data.loading.loader import Batch
from diffclip.models.clip import CLIP, count_parameters
from diffclip.models.presets import PRESETS, VARIANTS
from diffclip.plan import flops
from diffclip.training.setup import new_state
from diffclip.training.step import Schedule

CAPTION = 12
"""Tokens of a usual caption, for the operations."""


def step_of(preset: str, precision: str) -> Callable[[Batch], object]:
    recipe = Recipe(model=Model(preset=preset), training=Training(batch_size=8, precision=precision))
    state = new_state(recipe, Schedule(steps_per_epoch=1000, steps=10_000, warmup_steps=1000))
    size = state.config.image_size

    def step(batch: Batch) -> object:
        pixels = batch.pixels[..., :size, :size].contiguous()
        return state.step(0, Batch(pixels, batch.tokens, batch.groups, batch.indices))

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="b16", choices=["s16", "b16", "quickstart"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    first = ("clip", "diffclip", *VARIANTS)
    names = [f"{name}_vit_{options.size}" for name in (*first[:3], "diffclip_v2_even", *first[3:])]
    batches = Batches(options.batch, None)
    steps = {name: step_of(name, options.precision) for name in names}
    seconds = in_turn(
        {name: lambda number, step=step: step(batches(number)) for name, step in steps.items()},
        options.rounds,
        clock=time.process_time,
    )
    milliseconds = {name: 1e3 * value / options.batch for name, value in medians(seconds).items()}
    print(
        "| preset | parameters | added | of them in λ, norms, gates | GFLOPs of a pair | ms of a pair | beside CLIP |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    rows = {}
    clip = 0
    for name in names:
        with torch.device("meta"):
            counts = count_parameters(CLIP(PRESETS[name]))
        clip = clip or counts["total"]
        small = counts["lambda"] + counts["head_norm"] + counts["gate"]
        work = sum(flops.training(PRESETS[name], options.batch, CAPTION).values()) / 1e9
        beside = ratio(seconds, name, names[0])
        rows[name] = {"parameters": counts["total"], "gflops": work, "ms": milliseconds[name], "ratio": beside}
        print(
            f"| {name} | {counts['total']:,} | {counts['total'] - clip:+,} | {small:,} | {work:.1f} "
            f"| {milliseconds[name]:.0f} | {beside:.2f} |",
            flush=True,
        )
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
