"""The quickstart: train CLIP and DiffCLIP on the embedded scenes, compare them, write one report."""

import math
import statistics
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.resources import files as resources
from pathlib import Path

import torch
from rich.console import Console

from diffclip.analysis.curves import read_curves
from diffclip.config import Recipe, load_recipe
from diffclip.data.scenes import SPLITS, FineGrainedSource, SceneSource
from diffclip.distributed import default_device
from diffclip.errors import Stopped, UserError
from diffclip.evaluation.datasets.pairs import PairImages
from diffclip.evaluation.run.progress import raise_failures, run_suite
from diffclip.evaluation.run.suite import DataSet, NamedModel, record
from diffclip.evaluation.tasks import grounding
from diffclip.models.weights.store import fingerprint, load
from diffclip.reporting.compare import ModelName, compare_two
from diffclip.reporting.report import Options, report
from diffclip.reporting.tables.comparison import brief
from diffclip.reporting.verdicts import headline
from diffclip.terminal import Terminal
from diffclip.training import checkpoint
from diffclip.training import setup as trainer
from diffclip.training.setup import seconds_per_step, training_source
from diffclip.training.side_by_side import Place, Team
from diffclip.training.step import Schedule

# Baseline first: label, preset.
MODELS = {"CLIP": "clip_vit_quickstart", "DiffCLIP": "diffclip_vit_quickstart"}

LABELS = ("a star", "an arrow", "a heart")
RELEASED = "hf:hammh0a/DiffCLIP_ViTB16_CC12M"
"""What the last lines of the quickstart name: labels of scenes, and a model for photographs."""

EVALUATION_MINUTES = 1.0
"""What evaluation and the report take on two CPU cores, kept free of the budget."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    timed_steps: int = 6
    test_images: int = 1000
    shifted_images: int = 500
    fine_grained: int = FineGrainedSource().count
    grounded_images: int = 100
    panels: int = 4


@dataclass(frozen=True)
class Job:
    """What is to be done for one of the models."""

    preset: str
    recipe: Recipe
    run: Path
    results: Path
    sizes: Sizes


def run(out: Path, minutes: float, seed: int, sizes: Sizes = Sizes()) -> Path:
    """Train both models in at most `minutes`, evaluate and compare them; returns the report, OUT/report.html.

    Both have the same seed, data, order and number of steps, and train side by side where there are cores for both.
    Where OUT holds the runs already, finished or not, they are gone on with. Raises UserError where OUT holds runs of
    another seed, or the budget is too small.
    """
    began = time.monotonic()
    console = Terminal()
    runs = {label: out / label.lower() for label in MODELS}
    with Team(_processes(), console, brief=True) as team:
        recipes = _recipes(out, minutes, seed, sizes, team, console)
        begun = {label: _begun(directory) for label, directory in runs.items()}
        jobs = {
            label: Job(preset, recipes[label], runs[label], out / "results.jsonl", sizes)
            for label, preset in MODELS.items()
        }
        try:
            team.run(train_and_measure, jobs)
        except Stopped:
            raise Stopped(f"stopped, and saved in {out}: the same command goes on") from None
    clip, diffclip = (ModelName(label, preset, str(runs[label])) for label, preset in MODELS.items())
    rows = compare_two(out / "results.jsonl", clip, diffclip)
    console.print(brief(rows))
    console.print(headline(rows))
    recipe = recipes["DiffCLIP"]
    files = report(
        [out],
        out,
        Options(scenes=sizes.panels, figure_files=False),
        title="CLIP and DiffCLIP, side by side",
        introduction=(
            "Two small models that differ in their attention alone, "
            "trained with the same seed on the same drawn scenes in the same order."
        ),
        facts={
            "command": f"diffclip quickstart --out {out} --minutes {minutes:g} --seed {seed}",
            "models": ", ".join(MODELS.values()),
            "training": f"{Schedule.of(recipe, len(training_source(recipe))).steps} steps of "
            f"{recipe.training.batch_size} images, seed {seed}",
            "training speed": ", ".join(_speed(label, directory, begun[label]) for label, directory in runs.items())
            + (
                f", side by side {_threads(team.threads)} each"
                if team.threads
                else f", {_threads(torch.get_num_threads())}"
            ),
            "versions": ", ".join(f"{name} {version(name)}" for name in ("diffclip", "torch", "timm")),
        },
    )
    console.print(f"Report: {files.page}   took {(time.monotonic() - began) / 60:.1f} minutes", highlight=False)
    labels = " ".join(f'"{label}"' for label in LABELS)
    for line in (
        "Try it on scenes, which is all that these two have seen:",
        f'  diffclip classify {runs["DiffCLIP"]} "scenes:test?length=5" --labels {labels}',
        "On your own pictures, with a released model of 0.6 GB:",
        f'  diffclip classify {RELEASED} PICTURES --labels "a cat" "a dog" "a beach"',
    ):
        console.print(line, highlight=False, soft_wrap=True)
    return files.page


def _begun(run: Path) -> str:
    """What there is of a run, in words for the report; nothing where it is new."""
    if (run / "model.safetensors").exists():
        return "trained before"
    kept = checkpoint.found(run)
    return f"resumed from step {int(kept[-1].name.removeprefix('step_')):,}" if kept else ""


def _processes() -> int:
    """As many as models, but one on a GPU, which one training fills, and where threads are fewer."""
    return len(MODELS) if default_device().type == "cpu" and torch.get_num_threads() >= len(MODELS) else 1


def _threads(count: int) -> str:
    return f"on {count} thread{'s' * (count > 1)}"


def _speed(label: str, run: Path, begun: str) -> str:
    """The median over the lines of a run's log, which a busy hour or a pause does not move."""
    images = statistics.median(read_curves(run)["images_per_s"].values.tolist())
    return f"{label} {images:.0f} images/s in the median" + (f" ({begun})" if begun else "")


def train_and_measure(job: Job, place: Place) -> None:
    """Train a model to its end, and measure it on every test set and on where it looks, into the results of its job."""
    if not (job.run / "model.safetensors").exists():
        width = max(map(len, MODELS))
        trainer.train(
            job.recipe, job.run, resume=True, show=lambda name, total: place.display(name.ljust(width), total)
        )
    named = NamedModel(job.preset, str(job.run), load(job.run, device=default_device())[0])
    raise_failures(run_suite((named,), test_data(job.sizes), job.results, place.console, brief=True))
    grounded = grounding.evaluate(named.model, SceneSource("test"), limit=job.sizes.grounded_images)
    key = ("scenes/test", named.name, named.pretrained, grounding.TASK.result)
    record(job.results, key, grounded, fingerprint(named.model))


def test_data(sizes: Sizes) -> list[DataSet]:
    """Scenes' test set, its four shifts and the fine-grained pairs. The test set comes first: headlines speak of it."""
    shifted = [split for split in SPLITS if split not in ("train", "test")]
    return [
        DataSet("scenes/test", SceneSource("test", length=sizes.test_images), ("zero_shot", "retrieval")),
        *(
            DataSet(f"scenes/{split}", SceneSource(split, length=sizes.shifted_images), ("zero_shot",))
            for split in shifted
        ),
        DataSet("scenes/finegrained", PairImages(FineGrainedSource(count=sizes.fine_grained)), ("fine_grained",)),
    ]


def _recipes(out: Path, minutes: float, seed: int, sizes: Sizes, team: Team, console: Console) -> dict[str, Recipe]:
    """The recipe of each model: that of OUT where there is one, else as many epochs as the budget allows."""
    begun = [path for label in MODELS if (path := out / label.lower() / "recipe.toml").exists()]
    if begun:
        recipe = load_recipe(begun[0])
        if recipe.seed != seed:
            raise UserError(f"{out} holds runs of seed {recipe.seed}, not {seed}: give another --out")
        console.print(f"Going on with the runs in {out}", highlight=False)
    else:
        with resources("diffclip").joinpath("recipes/quickstart.toml").open("rb") as file:
            recipe = replace(load_recipe(file.name), seed=seed)
        recipe = _fit(recipe, minutes, sizes.timed_steps, team, console)
    return _of_models(recipe)


def _of_models(recipe: Recipe) -> dict[str, Recipe]:
    return {label: replace(recipe, model=replace(recipe.model, preset=preset)) for label, preset in MODELS.items()}


def time_steps(job: tuple[Recipe, int], place: Place) -> float:
    """Seconds that a step of a recipe takes, the median of so many."""
    recipe, steps = job
    return seconds_per_step(recipe, training_source(recipe), steps)


def _fit(recipe: Recipe, minutes: float, timed_steps: int, team: Team, console: Console) -> Recipe:
    """The recipe, shortened if need be so that training both models fits into the budget."""
    if not math.isfinite(minutes):
        raise UserError(f"--minutes {minutes}: give a number of minutes, such as 9")
    schedule = Schedule.of(recipe, len(training_source(recipe)))
    timed = team.run(time_steps, {label: (of_model, timed_steps) for label, of_model in _of_models(recipe).items()})
    seconds = max(timed.values()) if team.threads else sum(timed.values())
    affordable = int((minutes - EVALUATION_MINUTES) * 60 / seconds)
    if affordable < schedule.warmup_steps + 1:
        fewest = math.ceil(10 * (EVALUATION_MINUTES + (schedule.warmup_steps + 1) * seconds / 60) + 1) / 10
        raise UserError(
            f"--minutes {minutes:g} is too short: this machine needs {seconds:.1f} s for a step of both models, so "
            f"give at least --minutes {fewest:g}"
        )
    steps = min(schedule.steps, affordable)
    how = " side by side" if team.threads else ""
    shorter = "" if steps == schedule.steps else f", of {schedule.steps} in the whole recipe"
    console.print(
        f"Training {' and '.join(MODELS)}{how} for {steps} steps each{shorter}: about {steps * seconds / 60:.0f} "
        "minutes",
        highlight=False,
    )
    epochs = steps / schedule.steps_per_epoch
    return replace(recipe, training=replace(recipe.training, epochs=epochs))
