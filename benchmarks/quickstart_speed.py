"""How many images a second does the quickstart train on, and what share of the processor's bf16 matrix peak is that?

    python benchmarks/quickstart_speed.py [--rounds 15] [--json FILE]

Each round times, in turn: one step of CLIP, the same step of DiffCLIP, drawing the batch that both train on, and large
square matrix products in bfloat16. The peak is the best rate of any product in any round. The work of a step is what
torch's FlopCounterMode counts over its forward and backward pass with attention written as plain products, so that
what a fused operation computes again does not count, nor does anything but products and convolutions.
"""

import argparse
import dataclasses
from importlib.resources import files
from pathlib import Path

import torch
from rounds import in_turn, medians, write_json
from torch.utils.flop_counter import FlopCounterMode

from diffclip.config import load_recipe
from diffclip.data.loading.loader import Batch
from diffclip.models.maps import record_attention
from diffclip.training.setup import new_state, training_loader, training_source
from diffclip.training.step import Schedule, TrainState

MODELS = ("clip_vit_quickstart", "diffclip_vit_quickstart")
SQUARES = (1024, 2048, 4096)


def flops(trainer: TrainState, batch: Batch) -> int:
    """Two for each multiply-add of a whole step."""
    with record_attention(trainer.model), FlopCounterMode(display=False) as counter:
        trainer.step(0, batch)
    return int(counter.get_total_flops())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with files("diffclip").joinpath("recipes/quickstart.toml").open("rb") as file:
        recipe = load_recipe(file.name)
    source = training_source(recipe)
    schedule = Schedule.of(recipe, len(source))
    trainers = {
        preset: new_state(dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, preset=preset)), schedule)
        for preset in MODELS
    }
    drawn = training_loader(recipe, source).epoch(0)
    batches: list[Batch] = []
    squares = {size: torch.randn(size, size).bfloat16() for size in SQUARES}
    seconds = in_turn(
        {"drawing": lambda _: batches.append(next(drawn))}
        | {preset: lambda _, trainer=trainer: trainer.step(0, batches[-1]) for preset, trainer in trainers.items()}
        | {f"{size} × {size}": lambda _, square=square: square @ square for size, square in squares.items()},
        arguments.rounds,
        fixed_order=True,
    )
    found = medians(seconds)
    peak = max(2 * size**3 / min(seconds[f"{size} × {size}"]) for size in SQUARES)
    images = recipe.training.batch_size
    print(f"bf16 matrix peak {peak / 1e9:.0f} GFLOP/s; drawing {images} images takes {found['drawing'] * 1e3:.0f} ms")
    print(f"{'':26}{'GFLOP':>8}{'ms/step':>9}{'images/s':>10}{'of peak':>9}{'images/s drawn':>16}{'of peak':>9}")
    results = {}
    for preset, trainer in trainers.items():
        work = flops(trainer, batches[-1])
        step, whole = found[preset], found[preset] + found["drawing"]
        results[preset] = {
            "flops": work,
            "images_per_second": images / step,
            "share_of_peak": work / step / peak,
            "images_per_second_drawn": images / whole,
            "share_of_peak_drawn": work / whole / peak,
        }
        print(
            f"{preset:26}{work / 1e9:8.1f}{step * 1e3:9.0f}{images / step:10.0f}{work / step / peak:9.3f}"
            f"{images / whole:16.0f}{work / whole / peak:9.3f}"
        )
    write_json(arguments.json, {"peak": peak, "seconds": seconds, "results": results})


if __name__ == "__main__":
    main()
