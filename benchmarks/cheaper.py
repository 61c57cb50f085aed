"""What each variant of recipes/sweeps/cheaper.toml takes of a processor, beside the recipe as it is.

    python benchmarks/cheaper.py DIR [--rounds 5] [--json FILE]

DIR has CIFAR-10's parquet files (recipes/cifar10.toml). A run is the sum over its stages (small images, dropped
patches, ...) of a step's time by the number of steps; the steps are timed in turn, by processor time, so that a busy
machine matters little. `diffclip sweep recipes/sweeps/cheaper.toml` says what each variant learns. The last row, not of
the sweep since it learns the same, has its blocks compiled, in steps that are not counted.
"""

import argparse
import dataclasses
import time
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

from rounds import in_turn, medians, ratio, write_json

from diffclip.config import Recipe
from diffclip.sweep_config import load_sweep, recipe_of
from diffclip.training.setup import new_state, training_loader, training_source
from diffclip.training.step import Schedule

SWEEP = files("diffclip") / "recipes/sweeps/cheaper.toml"


def recipes(data: str) -> dict[str, Recipe]:
    sweep = load_sweep(Path(str(SWEEP)), settings={"data": {"train": {"path": data}}})
    found = {variant.name: recipe_of(sweep, variant, 0) for variant in sweep.variant}
    first = found[sweep.baseline]
    compiled = dataclasses.replace(first, training=dataclasses.replace(first.training, compile=True))
    return {sweep.baseline: first, **found, "compiled": compiled}


def stage(one: Recipe, schedule: Schedule, step: int) -> tuple[int, bool]:
    """(pixels of the images, whether patches are dropped) at a step."""
    config, epoch = one.model.resolve(), step // schedule.steps_per_epoch
    sizes = [size for since, size in one.training.image_sizes if since <= epoch] or [config.image_size]
    whole = schedule.steps - round(one.training.undropped_epochs * schedule.steps_per_epoch)
    return sizes[-1], config.patch_dropout > 0 and step < whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", metavar="DIR")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    contestants: dict[str, Any] = {}
    runs: dict[str, dict[str, int]] = {}  # variant → stage → steps
    for name, one in recipes(arguments.data).items():
        source = training_source(one)
        schedule = Schedule.of(one, len(source))
        trainer, loader = new_state(one, schedule), training_loader(one, source)
        stages = [stage(one, schedule, step) for step in range(schedule.steps)]
        runs[name] = {f"{name}: {kind}": count for kind, count in Counter(stages).items()}
        for kind in dict.fromkeys(stages):
            step = stages.index(kind)
            batch = next(loader.epoch(step // schedule.steps_per_epoch))
            trainer.step(step, batch)
            contestants[f"{name}: {kind}"] = lambda _, act=trainer.step, step=step, batch=batch: act(step, batch)
    seconds = in_turn(contestants, arguments.rounds, clock=time.process_time)
    rounds = range(arguments.rounds)
    whole = {
        name: [sum(count * seconds[part][number] for part, count in parts.items()) for number in rounds]
        for name, parts in runs.items()
    }
    first = next(iter(whole))
    print(f"{'a run':28}{'steps':>7}{'minutes':>9}{'ratio':>7}")
    for name in whole:
        print(f"{name:28}{sum(runs[name].values()):7}{medians(whole)[name] / 60:9.1f}{ratio(whole, name, first):7.2f}")
    write_json(arguments.json, {"step_seconds": seconds, "run_seconds": whole})


if __name__ == "__main__":
    main()
