"""A sweep: the runs of every variant with every seed, what is left of them, and their table."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from diffclip import durable
from diffclip.analysis.curves import read_curves
from diffclip.config import Recipe, to_toml
from diffclip.data.formats.stream import is_stream
from diffclip.errors import Stopped, UserError
from diffclip.evaluation import results
from diffclip.evaluation.datasets import registry
from diffclip.evaluation.datasets.dataset import DataSet
from diffclip.evaluation.datasets.named import data_set
from diffclip.evaluation.datasets.opening import default_root, locate
from diffclip.evaluation.features.cache import FeatureCache
from diffclip.evaluation.results import Result
from diffclip.evaluation.run.hooks import evaluators
from diffclip.evaluation.run.named_model import named_model
from diffclip.evaluation.run.progress import run_suite
from diffclip.evaluation.run.suite import Failure
from diffclip.evaluation.task import get_task
from diffclip.reporting.compare import compare_variants
from diffclip.reporting.design import FILE as DESIGN
from diffclip.reporting.design import Study, read_study
from diffclip.reporting.rows import Row
from diffclip.reporting.tables import comparison
from diffclip.reporting.verdicts import design_text
from diffclip.sweep_config import Sweep, Variant, recipe_of
from diffclip.sweep_sizes import HOLDOUT, held_out
from diffclip.text import did_you_mean, listed
from diffclip.training import checkpoint
from diffclip.training import setup as trainer
from diffclip.training.dry_run import training_examples
from diffclip.training.logs import LONGEST_NAME, Display, Shown
from diffclip.training.run_directory import RECIPE, holds
from diffclip.training.setup import seconds_per_step, training_source
from diffclip.training.side_by_side import Place
from diffclip.training.step import Schedule

log = logging.getLogger(__name__)

TIMED_IMAGES, TIMED_STEPS = 32, 2


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
        self._check()
        return True

    def measured(self, sweep: Sweep, every: Sequence[Result]) -> bool:
        """Whether a run that has no weights any more has every result of `every` that the sweep asks of it.

        Its recipe tells which run it was. Raises UserError where its folder holds a run of another recipe.
        """
        if (self.folder / "model.safetensors").exists() or self.step or not (self.folder / RECIPE).exists():
            return False
        there = {(result.dataset, result.task) for result in every if result.pretrained == self.pretrained}
        asked = {(name, get_task(task).result) for name, tasks in sweep.tasks().items() for task in tasks}
        if not asked <= there:
            return False
        self._check()
        return True

    def _check(self) -> None:
        if not (self.folder / RECIPE).exists() or not holds(self.folder, self.recipe):
            raise UserError(f"{self.folder} holds a run of another recipe: give another --out, or move it away")

    @property
    def step(self) -> int:
        """Of its newest checkpoint; 0 where it has none."""
        kept = checkpoint.found(self.folder)
        return int(kept[-1].name.removeprefix("step_")) if kept else 0


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


def study_of(sweep: Sweep, out: Path) -> Study:
    """What a sweep asks and declares."""
    weights = {variant.name: f"{_weights(out, variant)}*" for variant in sweep.variant}
    return Study(baseline=sweep.baseline, seeds=sweep.seeds, weights=weights, outcome=sweep.group, design=sweep.design)


def declare(study: Study, out: Path) -> None:
    """Write OUT/design.toml, before the first result.

    Raises UserError where there are results and another design, or none, was declared: a design that is changed after
    something was seen guarantees nothing. What is exploratory may change.
    """
    path, seen = out / DESIGN, (out / "results.jsonl").exists()
    before = read_study(path) if path.exists() else None
    if seen and before != study and (study.design or (before and before.design)):
        had = design_text(before) if before else "Nothing was declared."
        raise UserError(
            f"{out} has results, and its design was another: {had} Outcomes, seeds and variants are fixed before the "
            "first result: give another --out, or the design of before"
        )
    durable.write_bytes(path, to_toml(study).encode(errors="surrogateescape"))


def open_data(sweep: Sweep, root: Path | None) -> tuple[list[DataSet], list[Failure]]:
    """The data sets of all groups, and those that are not there. Raises UserError for a name that nothing knows."""
    data, missing = [], []
    folder = default_root(root)
    for name, tasks in sweep.tasks().items():
        if name not in sweep.data and name not in registry():
            raise UserError(f"{name}: no such data set; give its path in [data], or one of {', '.join(registry())}")
        if name not in sweep.data and locate(registry()[name], folder) is None:
            missing.append(Failure(name, f"not in {folder}, as --root names it"))
            continue
        try:
            if sweep.data.get(name) == HOLDOUT:
                opened = DataSet(name, partial(held_out, sweep), tasks)
            else:
                opened = data_set(f"{name}={sweep.data.get(name, folder)}", tasks)
            if not len(opened.test):
                raise UserError(f"{opened.test.name} is empty")
            opened.close()
            data.append(opened)
        except UserError as error:
            missing.append(Failure(name, str(error)))
    return data, missing


def train(run: Run, *, allow_pipe: bool = False, show: Callable[[str, int], Shown] = Display) -> None:
    """Train a run to its end, from its newest checkpoint where it has one; allow_pipe as of `training_source`.

    show: as of `training.setup.train`.

    Raises UserError where the data have changed since it began, finished or not: a table is of runs on the same data.
    """
    if run.finished:
        trainer.check_data(run.recipe, run.folder)
    else:
        trainer.train(
            run.recipe,
            run.folder,
            resume=True,
            allow_pipe=allow_pipe,
            evaluators=evaluators(run.recipe),
            show=show,
        )


@dataclass(frozen=True)
class Job:
    """A run, for a process that has nothing else."""

    run: Run
    sweep: Sweep
    out: Path
    root: Path | None
    allow_pipe: bool


def do(job: Job, place: Place) -> list[Failure]:
    """Train and measure in a process of a `Team`; returns what failed. Raises Stopped."""
    data, _ = open_data(job.sweep, job.root)  # what is missing was told before
    return train_and_measure(job.run, data, job.out, place, allow_pipe=job.allow_pipe)


def train_and_measure(run: Run, data: Sequence[DataSet], out: Path, place: Place, *, allow_pipe: bool) -> list[Failure]:
    """Train a run, and write its results to OUT/results.jsonl; returns what failed. Raises Stopped."""
    try:
        train(run, allow_pipe=allow_pipe, show=lambda _, total: place.display(str(run).ljust(LONGEST_NAME), total))
        model = replace(named_model(str(run.folder)), pretrained=run.pretrained)
    except Stopped:
        raise
    except Exception as error:  # the other runs go on
        failure = Failure(str(run), reason(error))
        place.console.print(f"{run} failed: {failure.reason}", style="red", highlight=False, soft_wrap=True)
        return [failure]
    return run_suite([model], data, out / "results.jsonl", place.console, cache=FeatureCache(out / "features"))


def write_table(sweep: Sweep, out: Path, *, resamples: int = 10_000) -> tuple[Row, ...]:
    """The table of what results.jsonl has, also as OUT/table.md, OUT/table.csv and, seed by seed, OUT/seeds.csv.

    Raises UserError, and leaves the files as they are, where results that are there lack a metric which a group asks.
    """
    study = study_of(sweep, out)
    _check_metrics(out / "results.jsonl", sweep)
    rows = compare_variants(out / "results.jsonl", study, resamples=resamples)
    if not any(row.score for row in rows) and (out / "table.md").exists():
        return rows
    for path, text in (
        (out / "table.md", comparison.sweep_markdown(rows, study)),
        (out / "table.csv", comparison.sweep_csv(rows)),
        (out / "seeds.csv", comparison.seeds_csv(rows)),
    ):
        durable.write_text(path, text)
    return rows


def _check_metrics(path: Path, sweep: Sweep) -> None:
    every = results.read(path)
    for group in sweep.group:
        task, metric = get_task(group.task).result, group.resolved_metric
        measured = [result for result in every if result.task == task and result.dataset in group.data]
        if measured and not any(metric in result.metrics for result in measured):
            there = dict.fromkeys(name for result in measured for name in result.metrics)
            meant = did_you_mean(metric, there)
            raise UserError(
                f"group {group.name!r}: no result of {group.task} has the metric {metric!r}{meant}; there "
                f"are {listed(there)}. The table was left as it is"
            )


@dataclass(frozen=True)
class Remaining:
    """What is left of a run's training."""

    run: Run
    finished: bool
    steps: int
    """Of the whole run."""
    seconds: float | None
    """A step takes, of the runs that are not finished; None where the training data are not here, or a stream."""

    @property
    def left(self) -> int:
        """Steps that are left."""
        return 0 if self.finished else self.steps - self.run.step


def remaining(sweep: Sweep, runs: Sequence[Run], out: Path) -> Iterator[Remaining]:
    """What is left of each run. Measures a few steps of each variant where nothing is known."""
    seconds: dict[str, float | None] = {}
    every = results.read(out / "results.jsonl")
    for run in runs:
        steps = Schedule.of(run.recipe, training_examples(run.recipe)[0]).steps
        name, finished = run.variant.name, run.finished or run.measured(sweep, every)
        if not finished and name not in seconds:
            seconds[name] = _seconds_per_step(run)
        yield Remaining(run, finished, steps, None if finished else seconds[name])


def seconds_of(run: Run) -> float | None:
    """What a whole run takes; None where the training data are not here."""
    seconds = _seconds_per_step(run)
    return None if seconds is None else seconds * Schedule.of(run.recipe, training_examples(run.recipe)[0]).steps


def _seconds_per_step(run: Run) -> float | None:
    """As its own log has it in the median, or else by a few steps of a small batch.

    None where data are missing, or a stream, which is opened to train alone.
    """
    try:
        return run.recipe.training.batch_size / float(np.median(read_curves(run.folder)["images_per_s"].values))
    except (UserError, KeyError):  # nothing is logged yet
        pass
    if is_stream(run.recipe.data.train.path):
        return None
    try:
        source = training_source(run.recipe)
    except UserError:
        return None
    images = min(TIMED_IMAGES, run.recipe.training.batch_size)
    small = replace(run.recipe, training=replace(run.recipe.training, batch_size=images))
    return seconds_per_step(small, source, TIMED_STEPS) * run.recipe.training.batch_size / images


def reason(error: Exception) -> str:
    """Why a run failed, in one line. Anything but a UserError is unexpected: it is logged with where it happened."""
    if isinstance(error, UserError):
        return str(error)
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
