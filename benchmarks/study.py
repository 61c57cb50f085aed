"""The study of docs/study.md, stage by stage: rates, choice, confirmation at equal steps and at equal time.

    python benchmarks/study.py --data DIR --out runs/study [--stage rates] [--dry-run]

DIR is the folder with CIFAR-10's parquet files, as recipes/cifar10.toml says. Each stage is a sweep, which goes on
where it stopped; what one stage decides is written into OUT as the sweep of the next, by the rules of docs/study.md,
and is not decided again. Killed at any moment, the same command goes on.
"""

import argparse
import csv
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from diffclip.analysis.curves import read_curves
from diffclip.recipe_files import shipped
from diffclip.sweep_config import Sweep, load_sweep

STAGES = ("rates", "choose", "confirm-steps", "confirm-time")
RATES = (5e-4, 1e-3, 2e-3)
RATE_SEEDS, FRESH_SEEDS = (100, 101), tuple(range(10, 20))
HELD_OUT, TRAINING_IMAGES = 5_000, 50_000
EPOCHS = 8
BASELINE, FIRST_VERSION = "CLIP", "DiffCLIP"


def best_rates(scores: Mapping[float, Mapping[str, float]]) -> dict[str, float]:
    """Rate → variant → accuracy on held-out images: the best rate of each variant, of equals the lowest."""
    variants = next(iter(scores.values()))
    return {name: max(sorted(scores), key=lambda rate: scores[rate][name]) for name in variants}


def chosen(means: Mapping[str, float]) -> list[str]:
    """Variant → mean of the primary outcome: baseline, first version, and the two best of the others."""
    others = sorted((name for name in means if name not in (BASELINE, FIRST_VERSION)), key=lambda name: -means[name])
    return [BASELINE, FIRST_VERSION, *others[:2]]


def equal_time(rates: Mapping[str, float]) -> dict[str, float]:
    """Variant → images a second: the epochs in which each takes the time of the baseline's."""
    return {name: round(EPOCHS * rate / rates[BASELINE], 3) for name, rate in rates.items()}


class Unfinished(Exception):
    """The stage that decides has runs left."""


def means_of(table: Path, seeds: Sequence[int]) -> dict[str, float]:
    """Variant → mean of the primary outcome, of a sweep's table.csv. Raises Unfinished where a seed is missing."""
    try:
        with table.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["role"] == "primary"]
    except FileNotFoundError:
        raise Unfinished(f"{table} is not there") from None
    missing = [row["variant"] for row in rows if row["seeds"] != str(len(seeds))]
    if missing:
        raise Unfinished(f"{table} lacks seeds of {', '.join(missing)}")
    return {row["variant"]: float(row["mean"]) for row in rows}


def speeds(sweep: Sweep, out: Path, names: Sequence[str]) -> dict[str, float]:
    """Variant → images a second, the median over all that the runs of a stage have logged."""
    found: dict[str, float] = {}
    for variant in sweep.variant:
        if variant.name in names:
            runs = [out / variant.folder / f"seed_{seed}" for seed in sweep.seeds]
            found[variant.name] = statistics.median(x for run in runs for x in read_curves(run)["images_per_s"].values)
    return found


def write_sweep(path: Path, changes: Mapping[str, Any], variants: Sequence[Mapping[str, Any]]) -> Path:
    """A sweep that starts from the package's study.toml. One that is there was decided before, and stays."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            tomli_w.dumps({"extends": str(shipped("sweep")["study"]), **changes, "variant": list(variants)})
        )
    return path


def run(path: Path, out: Path, data: Path, extra: Sequence[str] = ()) -> None:
    command = [sys.executable, "-m", "diffclip", "sweep", str(path), "--out", str(out), "--root", str(data)]
    subprocess.run([*command, *extra, "--set", f"data.train.path={data}"], check=True)


def with_rate(variant: Any, rate: float | None = None, epochs: float | None = None) -> dict[str, Any]:
    """A variant as TOML has it, with a learning rate and epochs of its own."""
    changes: dict[str, Any] = {**variant.set}
    if rate is not None:
        changes["optimizer"] = {**changes.get("optimizer", {}), "lr": rate}
    if epochs is not None:
        changes["training"] = {**changes.get("training", {}), "epochs": epochs}
    return {"name": variant.name, "set": changes}


def rates(out: Path, data: Path, extra: Sequence[str]) -> None:
    """Each variant with each rate, one epoch, on seeds of their own, judged on images held out of training."""
    study = load_sweep("study")
    for rate in RATES:
        changes = {
            "seeds": list(RATE_SEEDS),
            "set": {
                "data": {
                    "examples": TRAINING_IMAGES - HELD_OUT,
                    "train": {"holdout": HELD_OUT, "part": "train"},
                },
                "training": {"epochs": 1},
                "optimizer": {"lr": rate},
            },
            "data": {"held-out": "holdout"},
            "design": {"primary": "zero-shot", "secondary": []},
            "group": [{"name": "zero-shot", "task": "zero_shot", "data": ["held-out"]}],
        }
        name = f"rates-{rate:g}"
        run(write_sweep(out / f"{name}.toml", changes, [with_rate(v) for v in study.variant]), out / name, data, extra)


def choose(out: Path, data: Path, extra: Sequence[str]) -> None:
    """All variants with their rates, two epochs, seeds 0 to 4."""
    path, study = out / "choose.toml", load_sweep("study")
    if not path.exists():
        best = best_rates({rate: means_of(out / f"rates-{rate:g}" / "table.csv", RATE_SEEDS) for rate in RATES})
        write_sweep(path, {}, [with_rate(v, best[v.name]) for v in study.variant])
    run(path, out / "choose", data, extra)


def confirm(out: Path, data: Path, extra: Sequence[str], stage: str) -> None:
    """What was chosen, on fresh seeds: as many steps as the baseline, or as much time."""
    path = out / f"{stage}.toml"
    if not path.exists():
        if not (out / "choose.toml").exists():
            raise Unfinished(f"{out / 'choose.toml'} is not there")
        before = load_sweep(out / "choose.toml")
        names = chosen(means_of(out / "choose" / "table.csv", before.seeds))
        epochs = equal_time(speeds(before, out / "choose", names)) if stage == "confirm-time" else {}
        variants = [with_rate(v, epochs=epochs.get(v.name, EPOCHS)) for v in before.variant if v.name in names]
        write_sweep(path, {"seeds": list(FRESH_SEEDS)}, variants)
    run(path, out / stage, data, extra)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--stage", choices=STAGES, help="only this one; by default all, in order")
    parser.add_argument("--dry-run", action="store_true", help="say what is left of the stage; needs --stage")
    options = parser.parse_args()
    if options.dry_run and not options.stage:
        parser.error("--dry-run needs --stage: a later stage is decided by the one before")
    if not options.data.is_dir():
        parser.error(f"--data {options.data}: no such folder")
    extra = ["--dry-run"] if options.dry_run else []
    for stage in [options.stage] if options.stage else STAGES:
        try:
            if stage == "rates":
                rates(options.out, options.data, extra)
            elif stage == "choose":
                choose(options.out, options.data, extra)
            else:
                confirm(options.out, options.data, extra, stage)
        except Unfinished as error:
            parser.error(f"stage {stage} is decided by an earlier one, which has to be finished first: {error}")
        except subprocess.CalledProcessError as error:
            sys.exit(error.returncode)


if __name__ == "__main__":
    main()
