"""What the ways to cheaper training save: processor time of a training step of the quickstart's DiffCLIP.

    python benchmarks/cheaper.py [--rounds 5] [--json FILE]

A step of each in turn, on the images that most of its steps see; processor time, so that a busy machine matters
little. What they cost in accuracy is measured by `diffclip sweep recipes/sweeps/cheaper.toml`. The compiled towers are
compiled in rounds that are not counted, a minute each; the 8 bits need bitsandbytes.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from rounds import in_turn, medians, ratio, write_json

from diffclip.config import Recipe, validate
from diffclip.training.step import Schedule, Trainer, training_loader, training_source

FIRST = "as the quickstart"
HALF = {"model": {"overrides": {"patch_dropout": 0.5}}, "training": {"undropped_epochs": 1}}
ROWS: dict[str, dict[str, Any]] = {
    FIRST: {},
    "patch_dropout = 0.5": HALF,
    "images of 32 pixels, where image_sizes starts": {"training": {"image_sizes": [[0, 32], [3, 64]]}},
    "both": HALF | {"training": {"undropped_epochs": 1, "image_sizes": [[0, 32], [3, 64]]}},
    'loss.kind = "sigmoid"': {"loss": {"kind": "sigmoid"}},
    "ema = 0.99": {"training": {"ema": 0.99}},
    'optimizer.kind = "adamw_8bit"': {"optimizer": {"kind": "adamw_8bit"}},
    "compile = true": {"training": {"compile": True}},
}


def recipe(changes: dict[str, Any]) -> Recipe:
    table = {
        "model": {"preset": "diffclip_vit_quickstart"} | changes.get("model", {}),
        "data": {"train": {"path": "scenes:train?size=64&length=512"}, "workers": 0, "scale": [0.9, 1.0]},
        "loss": changes.get("loss", {}),
        "optimizer": changes.get("optimizer", {}),
        "training": {"epochs": 5, "batch_size": 128} | changes.get("training", {}),
    }
    return validate(table, where="benchmark")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    contestants = {}
    for name, changes in ROWS.items():
        one = recipe(changes)
        trainer = Trainer(one, Schedule(1000, 5000, 0))  # so many steps that those taken here are early ones
        batches = list(training_loader(one, training_source(one)).epoch(0))[:2]
        for number in range(3):  # captions of several lengths, which torch.compile comes to see as one kind
            trainer.step(number, batches[number % 2])
        contestants[name] = lambda number, trainer=trainer, batch=batches[0]: trainer.step(number + 4, batch)
    seconds = in_turn(contestants, arguments.rounds, clock=time.process_time)
    print(f"{'a step':54}{'s':>7}{'ratio':>8}")
    for name in ROWS:
        print(f"{name:54}{medians(seconds)[name]:7.2f}{ratio(seconds, name, FIRST):8.2f}")
    write_json(arguments.json, {"step_seconds": seconds})


if __name__ == "__main__":
    main()
