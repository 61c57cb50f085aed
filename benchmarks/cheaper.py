"""What the ways to cheaper training bring: processor time of a step, and what a short run on drawn scenes learns by it.

    python benchmarks/cheaper.py [--rounds 5] [--epochs 5] [--seeds 1] [--json FILE]

First a step of each, in turn, on the images that most of its steps see; processor time, so that a busy machine matters
little. Then, unless --epochs 0, each row trains the quickstart's DiffCLIP on the same scenes in the same order for the
same number of steps, and is judged on 500 others: recall at 5 among them. So short a run tells what learns less only
where the gap is large.
"""

import argparse
import time
from pathlib import Path

from rounds import in_turn, medians, ratio, write_json

from diffclip.commands import evaluators
from diffclip.config import Recipe, validate
from diffclip.data.sources import open_source
from diffclip.evaluation.suite import DataSet
from diffclip.training.step import Schedule, Trainer, training_loader, training_source

SCENES = 4096
ROWS = {
    "as the quickstart": {},
    "half of the patches, none dropped in the last epoch": {
        "model": {"overrides": {"patch_dropout": 0.5}},
        "training": {"undropped_epochs": 1},
    },
    "32 pixels at first, 64 in the last two epochs": {"training": {"image_sizes": "grow"}},
    "both": {
        "model": {"overrides": {"patch_dropout": 0.5}},
        "training": {"undropped_epochs": 1, "image_sizes": "grow"},
    },
    "sigmoid loss": {"loss": {"kind": "sigmoid"}},
    "averaged weights, 0.99": {"training": {"ema": 0.99}},
}


def recipe(changes: dict, epochs: int, seed: int) -> Recipe:
    training = {"epochs": epochs, "batch_size": 128} | changes.get("training", {})
    if training.get("image_sizes") == "grow":
        training["image_sizes"] = [[0, 32], [max(1, epochs - 2), 64]]
    table = {
        "seed": seed,
        "model": {"preset": "diffclip_vit_quickstart"} | changes.get("model", {}),
        "data": {"train": {"path": f"scenes:train?size=64&length={SCENES}"}, "workers": 0, "scale": [0.9, 1.0]},
        "optimizer": {"lr": 2e-3, "weight_decay": 0.1, "warmup_epochs": 0.5},
        "loss": changes.get("loss", {}),
        "training": training,
    }
    return validate(table, where="benchmark")


def steps(rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of each row, by round."""
    contestants = {}
    for name, changes in ROWS.items():
        one = recipe(changes, 5, 0)
        trainer = Trainer(one, Schedule(1000, 5000, 0))  # so many steps that those taken here are early ones
        batch = next(training_loader(one, training_source(one)).epoch(0))
        contestants[name] = lambda number, trainer=trainer, batch=batch: trainer.step(number + 1, batch)
    return in_turn(contestants, rounds, clock=time.process_time)


def run(one: Recipe, judge) -> tuple[float, float]:
    """(processor seconds of all steps, mean of both recalls at 5 at the end)"""
    source = training_source(one)
    schedule = Schedule.of(one, len(source))
    trainer, loader = Trainer(one, schedule), training_loader(one, source)
    seconds, step = 0.0, 0
    while step < schedule.steps:
        for batch in loader.epoch(step // schedule.steps_per_epoch):
            began = time.process_time()
            trainer.step(step, batch)
            seconds += time.process_time() - began
            step += 1
    with trainer.judged():
        found = judge(trainer.model.eval())
    return seconds, (found["image_retrieval_recall@5"] + found["text_retrieval_recall@5"]) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    seconds_of = steps(arguments.rounds)
    print(f"{'a step':54}{'s':>7}{'ratio':>8}")
    for name in ROWS:
        relative = ratio(seconds_of, name, "as the quickstart")
        print(f"{name:54}{medians(seconds_of)[name]:7.2f}{relative:8.2f}", flush=True)
    write_json(arguments.json, {"step_seconds": seconds_of})
    if not arguments.epochs:
        return
    data = DataSet("scenes", open_source("scenes:test?size=64&length=500"), ("retrieval",))
    judge = evaluators([data])["scenes"]
    results: dict[str, list[tuple[float, float]]] = {}
    print(f"{'':54}{'processor time':>15}{'recall@5':>10}")
    for name, changes in ROWS.items():
        results[name] = [run(recipe(changes, arguments.epochs, seed), judge) for seed in range(arguments.seeds)]
        seconds, recall = (sum(column) / arguments.seeds for column in zip(*results[name], strict=True))
        first = sum(one for one, _ in results["as the quickstart"]) / arguments.seeds
        print(f"{name:54}{seconds / first:15.2f}{recall:10.1%}", flush=True)
    write_json(arguments.json, {"step_seconds": seconds_of, "epochs": arguments.epochs, "results": results})


if __name__ == "__main__":
    main()
