"""The study of docs/study.md, stage by stage: rates, choice, confirmation at equal steps and at equal time.

    python benchmarks/study.py --data cifar10 [--stage rates] [--dry-run]

--data is the folder with CIFAR-10's parquet files, as recipes/cifar10.toml says. Each stage is a sweep, which goes on
where it stopped; what one stage decides is written into `study/` as the sweep of the next, by the rules of
docs/study.md, and is not decided again. Killed at any moment, the same command goes on. Recipes, curves and results in
`study/` are committed, weights are not: a run with all its results counts as done without them.
"""

import argparse
import csv
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tomli_w
import torch
from rounds import in_turn, ratio

from diffclip.config import load_recipe
from diffclip.data.parallel import processors
from diffclip.recipe_files import merge_tables, shipped
from diffclip.sweep_config import Sweep, Variant, load_sweep, recipe_of
from diffclip.training.setup import new_state, training_loader, training_source
from diffclip.training.step import Schedule

STAGES = ("rates", "choose", "confirm")
RATES = (2e-3, 4e-3, 8e-3)
RATE_SEEDS, FRESH_SEEDS = (100,), tuple(range(10, 18))
HELD_OUT, TRAINING_IMAGES = 5_000, 50_000
EPOCHS = 4
BASELINE, FIRST_VERSION = "CLIP", "DiffCLIP"
PRIMARY, IN_TIME = "zero-shot", ", equal time"
KEPT = {"evaluate_every": 0, "checkpoint_every": 200, "keep_last": 1, "log_every": 50}
FILES = {
    "train-00000-of-00001.parquet": "b5353cb228dfb15322a725640bca8afd855ced3e2e63e11141e772631e30b35a",
    "test-00000-of-00001.parquet": "de0c635e804f455827ed2c78d9d8a3265b1188b807dacb2bd661449bc1eebc72",
}
"""Name → SHA-256 of the hub's files."""


def best_rates(scores: Mapping[float, Mapping[str, float]]) -> dict[str, float]:
    """Rate → variant → accuracy on held-out images: the best rate of each variant, of equals the lowest."""
    variants = next(iter(scores.values()))
    return {name: max(sorted(scores), key=lambda rate: scores[rate][name]) for name in variants}


def chosen(means: Mapping[str, float]) -> list[str]:
    """Variant → mean of the primary outcome: baseline, first version, and the two best of the others."""
    others = sorted((name for name in means if name not in (BASELINE, FIRST_VERSION)), key=lambda name: -means[name])
    return [BASELINE, FIRST_VERSION, *others[:2]]


def equal_time(times: Mapping[str, float]) -> dict[str, float]:
    """Variant → time of a step over the baseline's: the epochs in which each takes as long as the baseline's."""
    return {name: round(EPOCHS / time, 3) for name, time in times.items()}


class Unfinished(Exception):
    """The stage that decides has runs left."""


def means_of(table: Path, seeds: Sequence[int]) -> dict[str, float]:
    """Variant → mean of the primary outcome, of a sweep's table.csv. Raises Unfinished where a seed is missing."""
    try:
        with table.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["group"] == PRIMARY]
    except FileNotFoundError:
        raise Unfinished(f"{table} is not there") from None
    missing = [row["variant"] for row in rows if row["seeds"] != str(len(seeds))]
    if missing:
        raise Unfinished(f"{table} lacks seeds of {', '.join(missing)}")
    return {row["variant"]: float(row["mean"]) for row in rows}


def kind_of(variant: Variant) -> tuple[Any, Any]:
    """The attention of both towers. Variants of a kind share the learning rate of the first of them."""
    overrides = variant.set["model"]["overrides"]
    return overrides["vision_attention"], overrides["text_attention"]


def first_of_kinds(variants: Sequence[Variant]) -> dict[tuple[Any, Any], Variant]:
    """Kind → its first variant."""
    first: dict[tuple[Any, Any], Variant] = {}
    for variant in variants:
        first.setdefault(kind_of(variant), variant)
    return first


def times(sweep: Sweep, names: Sequence[str], data: Path | str, rounds: int = 15) -> dict[str, float]:
    """Variant → time of a batch drawn and a step on it, over the baseline's, all in turn on one thread."""
    torch.set_num_threads(1)
    given = replace(sweep, set=merge_tables(sweep.set, {"data": {"train": {"path": str(data)}}}))
    recipes = {variant.name: recipe_of(given, variant, 0) for variant in sweep.variant if variant.name in names}
    source = training_source(recipes[BASELINE])
    drawn = {name: training_loader(recipe, source).epoch(0) for name, recipe in recipes.items()}
    states = {name: new_state(recipe, Schedule.of(recipe, len(source))) for name, recipe in recipes.items()}
    seconds = in_turn(
        {name: lambda _, name=name: states[name].step(0, next(drawn[name])) for name in recipes},
        rounds,
        clock=time.process_time,
    )
    return {name: ratio(seconds, name, BASELINE) for name in recipes}


def write_sweep(path: Path, start: str, changes: Mapping[str, Any], variants: Sequence[Mapping[str, Any]]) -> Path:
    """A sweep on the package's study.toml or on its recipe. One that is there was decided before, and stays.

    start: "extends", all that study.toml states, its design too; or "base", its recipe alone.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        of = {"extends": shipped("sweep")["study"], "base": shipped("recipe")["cifar10"]}[start]
        # The file is committed: it says where the package lies from where it is itself.
        beside = os.path.relpath(of, path.parent.resolve())
        path.write_text(tomli_w.dumps({start: beside, **changes, "variant": list(variants)}))
    return path


def run(path: Path, out: Path, data: Path, jobs: int, extra: Sequence[str] = ()) -> None:
    """The sweep, by `jobs` processes of one thread each, however many: bits depend on the number of threads."""
    command = [sys.executable, "-m", "diffclip", "sweep", str(path), "--out", str(out), "--root", str(data)]
    command += [*extra, "--jobs", str(jobs), "--set", f"data.train.path={data}"]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": str(jobs)})


def with_rate(variant: Variant, rate: float | None = None, epochs: float | None = None) -> dict[str, Any]:
    """A variant as TOML has it, with a learning rate and epochs of its own."""
    changes: dict[str, Any] = {**variant.set}
    if rate is not None:
        changes["optimizer"] = {**changes.get("optimizer", {}), "lr": rate}
    if epochs is not None:
        changes["training"] = {**changes.get("training", {}), "epochs": epochs}
    return {"name": variant.name, "set": changes}


def rates(out: Path, data: Path, jobs: int, extra: Sequence[str]) -> None:
    """The first variant of each kind with each rate, one epoch, judged on images held out of training."""
    firsts = first_of_kinds(load_sweep("study").variant).values()
    for rate in RATES:
        changes = {
            "seeds": list(RATE_SEEDS),
            "baseline": BASELINE,
            "set": {
                "data": {
                    "examples": TRAINING_IMAGES - HELD_OUT,
                    "train": {"holdout": HELD_OUT, "part": "train"},
                },
                "evaluation": [],  # the recipe's own is on test images
                # Stated, or a sweep that holds examples out chooses a batch of its own.
                "training": {"epochs": 1, "batch_size": load_recipe("cifar10").training.batch_size, **KEPT},
                "optimizer": {"lr": rate},
            },
            "data": {"held-out": "holdout"},
            "group": [{"name": PRIMARY, "task": "zero_shot", "data": ["held-out"]}],
        }
        name = f"rates-{rate:g}"
        path = write_sweep(out / f"{name}.toml", "base", changes, [with_rate(v) for v in firsts])
        run(path, out / name, data, jobs, extra)


def choose(out: Path, data: Path, jobs: int, extra: Sequence[str]) -> None:
    """All variants with the rates of their kinds, on the seeds of study.toml."""
    path, study = out / "choose.toml", load_sweep("study")
    if not path.exists():
        best = best_rates({rate: means_of(out / f"rates-{rate:g}" / "table.csv", RATE_SEEDS) for rate in RATES})
        firsts = first_of_kinds(study.variant)
        # The other groups take as long to measure as an epoch to train: they are for what is confirmed.
        primary = [asdict(group) for group in study.group if group.name == PRIMARY]
        changes = {"design": {"secondary": []}, "group": primary}
        write_sweep(path, "extends", changes, [with_rate(v, best[firsts[kind_of(v)].name]) for v in study.variant])
    run(path, out / "choose", data, jobs, extra)


def confirm(out: Path, data: Path, jobs: int, extra: Sequence[str]) -> None:
    """What was chosen, on fresh seeds: with as many steps as the baseline, and in its time."""
    path = out / "confirm.toml"
    if not path.exists():
        if not (out / "choose.toml").exists():
            raise Unfinished(f"{out / 'choose.toml'} is not there")
        before = load_sweep(out / "choose.toml")
        names = chosen(means_of(out / "choose" / "table.csv", before.seeds))
        epochs = equal_time(times(before, names, data))
        picked = [variant for name in names for variant in before.variant if variant.name == name]
        variants = [with_rate(v, epochs=EPOCHS) for v in picked]
        variants += [
            with_rate(v, epochs=epochs[v.name]) | {"name": f"{v.name}{IN_TIME}"} for v in picked if v.name != BASELINE
        ]
        write_sweep(path, "extends", {"seeds": list(FRESH_SEEDS)}, variants)
    run(path, out / "confirm", data, jobs, extra)


def check_data(data: Path) -> None:
    """Exit with a line unless the folder has the very files that earlier stages were run on."""
    for name, digest in FILES.items():
        try:
            found = hashlib.sha256((data / name).read_bytes()).hexdigest()
        except OSError as error:
            sys.exit(f"--data {data}: {name}: {error.strerror}: give the folder of recipes/cifar10.toml")
        if found != digest:
            sys.exit(f"--data {data}: {name} is another file than that of the study (SHA-256 {found[:12]}…)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("study"))
    parser.add_argument("--stage", choices=STAGES, help="only this one; by default all, in order")
    parser.add_argument("--jobs", type=int, default=processors(), help="processes, of one thread each; one a core")
    parser.add_argument("--dry-run", action="store_true", help="say what is left of the stage; needs --stage")
    options = parser.parse_args()
    if options.dry_run and not options.stage:
        parser.error("--dry-run needs --stage: a later stage is decided by the one before")
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: give 1 or more")
    check_data(options.data)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends with this process
    extra = ["--dry-run"] if options.dry_run else []
    steps = {"rates": rates, "choose": choose, "confirm": confirm}
    for stage in [options.stage] if options.stage else STAGES:
        try:
            steps[stage](options.out, options.data, options.jobs, extra)
        except Unfinished as error:
            parser.error(f"stage {stage} is decided by an earlier one, which has to be finished first: {error}")
        except subprocess.CalledProcessError as error:
            sys.exit(error.returncode)
        except KeyboardInterrupt:
            sys.exit(130)


if __name__ == "__main__":
    main()
