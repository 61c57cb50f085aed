"""Does training take the memory that `diffclip plan` and `diffclip train --dry-run` say?

    python benchmarks/plan.py [--json FILE]

Each row is two steps of the real trainer on this processor, in a process of its own: the most memory that it held, less
what it held before the model was made. Beside it two estimates: weights, gradients, moments and activations together,
which is what a plan states; and with the larger of gradients and activations alone, since in one process, without
DDP's buckets, gradients come as activations go.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from rounds import measured_apart, peak_mib, write_json

from diffclip.config import Recipe, validate
from diffclip.data.loading.loader import Batch
from diffclip.plan import flops
from diffclip.training.dry_run import activation_growth, state_bytes
from diffclip.training.setup import new_state
from diffclip.training.step import Schedule

ROWS = (
    ("diffclip_vit_quickstart", 64, 0),
    ("diffclip_vit_quickstart", 256, 0),
    ("diffclip_vit_quickstart", 256, 32),
    ("diffclip_vit_s16", 16, 0),
    ("diffclip_vit_b16", 16, 0),
)
MIB = 2**20


def recipe(preset: str, batch_size: int, micro_batch: int) -> Recipe:
    training = {"batch_size": batch_size, "micro_batch": micro_batch, "epochs": 1}
    return validate({"model": {"preset": preset}, "training": training}, where="benchmark")


def batch_of(one: Recipe) -> Batch:
    """Noise, and captions that are as long as the model reads."""
    config, size = one.model.resolve(), one.training.batch_size
    tokens = torch.randint(1, 1000, (size, config.context_length))
    tokens[:, -1] = config.vocab_size - 1
    pixels = torch.randint(0, 256, (size, 3, config.image_size, config.image_size), dtype=torch.uint8)
    return Batch(pixels, tokens, torch.arange(size), torch.arange(size))


def peak(one: Recipe) -> float:
    """MiB of two steps, the first of which makes the moments."""
    batch = batch_of(one)
    idle = peak_mib()
    trainer = new_state(one, Schedule(10, 10, 1))
    for step in range(2):
        trainer.step(step, batch)
    return peak_mib() - idle


def estimated(one: Recipe) -> tuple[float, float]:
    """MiB of weights, gradients and moments, and of activations."""
    state = state_bytes(one, new_state(one, Schedule(10, 10, 1)).model)
    growth, fixed = activation_growth(one)
    at_a_time = one.training.micro_batch or one.training.batch_size
    return state / MIB, (growth * at_a_time + fixed) / MIB


def rate(one: Recipe, steps: int = 3) -> float:
    """Operations a second of the training step, without what is computed again."""
    trainer, batch = new_state(one, Schedule(10, 10, 1)), batch_of(one)
    trainer.step(0, batch)
    seconds = []
    for step in range(steps):
        began = time.perf_counter()
        trainer.step(step, batch)
        seconds.append(time.perf_counter() - began)
    size = one.training.batch_size
    return size * sum(flops.training(one.model.resolve(), size).values()) / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of is not None:
        print(peak(recipe(*ROWS[arguments.peak_of])))
        return
    print(
        f"{'':26}{'images':>8}{'at a time':>11}{'state':>8}{'activations':>13}{'measured':>10}{'all':>9}{'in turn':>9}"
    )
    results = []
    for number, row in enumerate(ROWS):
        state, activations = estimated(recipe(*row))
        measured = measured_apart("--peak-of", str(number))
        # A quarter of the state are gradients.
        estimates = (state + activations, 3 / 4 * state + max(state / 4, activations))
        errors = "".join(f"{estimate / measured - 1:+9.0%}" for estimate in estimates)
        print(
            f"{row[0]:26}{row[1]:8}{row[2] or row[1]:11}{state:8.0f}{activations:13.0f}{measured:10.0f}{errors}",
            flush=True,
        )
        results.append({"row": row, "state": state, "activations": activations, "measured": measured})
    found = rate(recipe("diffclip_vit_quickstart", 128, 0))
    print(f"quickstart's step, 128 images: {found / 1e9:.0f}·10⁹ operations a second")
    write_json(arguments.json, {"memory_mib": results, "operations_a_second": found})


if __name__ == "__main__":
    main()
