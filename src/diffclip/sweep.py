"""A sweep: every variant trained with every seed, measured alike, and put into one table.

What is done already is not done again, so the same command goes on after it was stopped or killed.
"""

import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from diffclip.config import Recipe, to_toml
from diffclip.errors import Stopped, UserError
from diffclip.evaluation.datasets import registry
from diffclip.evaluation.datasets.dataset import DataSet
from diffclip.evaluation.datasets.named import data_set
from diffclip.evaluation.datasets.opening import default_root, locate
from diffclip.evaluation.features.cache import FeatureCache
from diffclip.evaluation.run.hooks import evaluation_data, evaluators
from diffclip.evaluation.run.named_model import named_model
from diffclip.evaluation.run.progress import raise_failures, run_suite
from diffclip.evaluation.run.suite import Failure
from diffclip.evaluation.task import get_task
from diffclip.reporting import sweep_table
from diffclip.sweep_config import Sweep, Variant, load_sweep, parse_settings, recipe_of
from diffclip.training import checkpoint
from diffclip.training import setup as trainer
from diffclip.training.dry_run import training_examples
from diffclip.training.run_directory import RECIPE, holds
from diffclip.training.setup import new_state, training_loader, training_source
from diffclip.training.step import Schedule

log = logging.getLogger(__name__)

TIMED_IMAGES, TIMED_STEPS = 32, 2
ROUGH = 1000
"""Resamples of the intervals between two runs; the last table has all."""


@dataclass(frozen=True)
class Run:
    """One variant with one seed."""

    variant: Variant
    seed: int
    recipe: Recipe
    folder: Path
    pretrained: str
    """What results call its weights: SWEEP/VARIANT/seed_N."""

    def __str__(self) -> str:
        return f"{self.variant.name}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether it is trained to the end. Raises UserError where its folder holds a run of another recipe."""
        if not (self.folder / "model.safetensors").exists():
            return False
        if not (self.folder / RECIPE).exists() or not holds(self.folder, self.recipe):
            raise UserError(f"{self.folder} holds a run of another recipe: give another --out, or move it away")
        return True

    @property
    def step(self) -> int:
        """Of its newest checkpoint; 0 where it has none."""
        kept = checkpoint.found(self.folder)
        return int(kept[-1].name.removeprefix("step_")) if kept else 0


def command(
    paths: Sequence[Path],
    out: Path,
    *,
    base: Path | None,
    seeds: Sequence[int],
    variants: Sequence[str],
    root: Path | None,
    settings: Sequence[str],
    dry_run: bool,
) -> None:
    """What `diffclip sweep` does. Raises UserError, once all else is done, with a list of what could not be."""
    sweep = load_sweep(*paths, base=base, settings=parse_settings(settings))
    if seeds:
        sweep = replace(sweep, seeds=tuple(dict.fromkeys(seeds)))
    runs = plan(sweep, out, variants)
    data, failures = open_data(sweep, root)
    console = Console()
    for failure in failures:
        console.print(f"Not measured: {failure}", style="yellow", highlight=False, soft_wrap=True)
    if dry_run:
        console.print(describe(runs), highlight=False)
        return
    _write(out / "sweep.toml", to_toml(sweep))
    for number, one in enumerate(runs, start=1):
        console.print(f"{number} of {len(runs)}: {one}", style="bold", highlight=False)
        try:
            train(one)
            model = replace(named_model(str(one.folder)), pretrained=one.pretrained)
        except Stopped:
            raise Stopped(f"stopped while training {one}, and saved; the same command goes on") from None
        except Exception as error:  # the other runs go on
            failures.append(Failure(str(one), _reason(error)))
            console.print(f"{one} failed: {_reason(error)}", style="red", highlight=False, soft_wrap=True)
            continue
        results = out / "results.jsonl"
        failures += run_suite([model], data, results, console, cache=FeatureCache(out / "features"))
        write_table(sweep, out, resamples=ROUGH)
    table = write_table(sweep, out)
    console.print(sweep_table.to_rich(table))
    for row in table.rows:
        if row.missing:
            numbers = ", ".join(map(str, row.missing))
            console.print(f"{row.variant} lacks results of {row.group} with seeds {numbers}", highlight=False)
    console.print(f"Written to {out}: table.md, table.csv, results.jsonl", highlight=False, soft_wrap=True)
    raise_failures(failures)


def plan(sweep: Sweep, out: Path, only: Sequence[str] = ()) -> list[Run]:
    """Every run, one seed of all variants after the other, so that comparisons are there early.

    only: names of the variants to run; all if empty. Raises UserError for a name that is no variant and for settings
    that make no valid recipe.
    """
    known = {variant.name: variant for variant in sweep.variant}
    for name in only:
        if name not in known:
            raise UserError(f"--variants {name}: there are {', '.join(known)}")
    chosen = [known[name] for name in only or known]
    return [
        Run(
            variant,
            seed,
            recipe_of(sweep, variant, seed),
            out / variant.folder / f"seed_{seed}",
            f"{_weights(out, variant)}{seed}",
        )
        for seed in sweep.seeds
        for variant in chosen
    ]


def _weights(out: Path, variant: Variant) -> str:
    return f"{out.resolve().name}/{variant.folder}/seed_"


def open_data(sweep: Sweep, root: Path | None) -> tuple[list[DataSet], list[Failure]]:
    """The data sets of all groups, and those that are not there. Raises UserError for a name that nothing knows."""
    found, missing = [], []
    folder = default_root(root)
    for name, tasks in sweep.tasks().items():
        if name not in sweep.data and name not in registry():
            raise UserError(f"{name}: no such data set; give its path in [data], or one of {', '.join(registry())}")
        if name not in sweep.data and locate(registry()[name], folder) is None:
            missing.append(Failure(name, f"not in {folder}, as --root names it"))
            continue
        try:
            data = data_set(f"{name}={sweep.data.get(name, folder)}", tasks)
            if not len(data.test):
                raise UserError(f"{data.test.name} is empty")
            data.close()
            found.append(data)
        except UserError as error:
            missing.append(Failure(name, str(error)))
    return found, missing


def train(one: Run) -> None:
    """Train a run to its end, from its newest checkpoint where it has one."""
    if not one.finished:
        data = [evaluation_data(one.recipe, evaluation) for evaluation in one.recipe.evaluation]
        trainer.train(one.recipe, one.folder, resume=True, evaluators=evaluators(data))


def write_table(sweep: Sweep, out: Path, *, resamples: int = 10_000) -> sweep_table.SweepTable:
    """The table of what results.jsonl has, also as OUT/table.md and OUT/table.csv."""
    variants = {variant.name: f"{_weights(out, variant)}*" for variant in sweep.variant}
    groups = {
        group.name: [(name, get_task(group.task).result, group.resolved_metric) for name in group.data]
        for group in sweep.group
    }
    table = sweep_table.tabulate(out / "results.jsonl", variants, groups, sweep.baseline, resamples=resamples)
    _write(out / "table.md", sweep_table.to_markdown(table))
    _write(out / "table.csv", sweep_table.to_csv(table))
    return table


def describe(runs: Sequence[Run]) -> Table:
    """What is to be done: steps and minutes of training left, by run. Measures a few steps where nothing is known.

    Minutes are not known where the training data are not here.
    """
    table = Table("run", "state", "steps left", "minutes left", box=None, padding=(0, 2, 0, 0))
    speeds: dict[str, float | None] = {}
    total, known = 0.0, True
    for one in runs:
        name = one.variant.name
        steps = Schedule.of(one.recipe, training_examples(one.recipe)[0]).steps
        if one.finished:
            table.add_row(str(one), "finished", "0", "0")
            continue
        if name not in speeds:
            speeds[name] = _seconds_per_step(one)
        left, seconds = steps - one.step, speeds[name]
        state = f"at step {one.step:,} of {steps:,}" if one.step else "new"
        table.add_row(str(one), state, f"{left:,}", f"{left * seconds / 60:.1f}" if seconds else "not known")
        total, known = total + left * (seconds or 0.0), known and seconds is not None
    table.add_section()
    minutes = f"{total / 60:.1f}" if known else "not known"
    table.add_row("all, evaluation apart", "", "", minutes, style="bold")
    return table


def _seconds_per_step(one: Run) -> float | None:
    """As its own log has it, or else by a few steps of a small batch; None where the training data are not here."""
    metrics = one.folder / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    for line in reversed(lines):
        try:
            record = json.loads(line)
            return float(record["seconds"]) / int(record["step"])
        except (ValueError, KeyError):  # cut short by a crash
            continue
    try:
        source = training_source(one.recipe)
    except UserError:
        return None
    images = min(TIMED_IMAGES, one.recipe.training.batch_size)
    small = replace(one.recipe, training=replace(one.recipe.training, batch_size=images))
    candidate = new_state(small, Schedule.of(small, len(source)))
    batches = training_loader(small, source).epoch(0)
    candidate.step(0, next(batches))  # the first step also allocates
    began = time.monotonic()
    for step in range(1, TIMED_STEPS + 1):
        candidate.step(step, next(batches))
    return (time.monotonic() - began) / TIMED_STEPS * one.recipe.training.batch_size / images


def _reason(error: Exception) -> str:
    """One line. Only a UserError is expected: anything else is logged with where it happened."""
    if isinstance(error, UserError):
        return str(error)
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _write(path: Path, text: str) -> None:
    """Under a temporary name first."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
