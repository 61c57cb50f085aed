"""What each command does: the parts of the library put together, and what a person reads meanwhile."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from diffclip.config import Evaluation, Recipe
from diffclip.data.scenes import FineGrainedSource
from diffclip.data.sources import open_source
from diffclip.errors import UserError
from diffclip.evaluation.fine_grained import MMVPSource, PairImages
from diffclip.evaluation.results import Result
from diffclip.evaluation.suite import DataSet, NamedModel, Task, measure
from diffclip.evaluation.suite import evaluate as evaluate_suite
from diffclip.models.clip import CLIP, count_parameters
from diffclip.models.presets import list_models, model_config
from diffclip.models.weights import load
from diffclip.reporting import tables
from diffclip.reporting.tables import ModelName
from diffclip.training import dry_run, trainer
from diffclip.training.step import default_device


def train(recipe: Recipe, run: Path, *, resume: bool) -> None:
    """Train, evaluate as the recipe says, and write the run's results.jsonl."""
    data = [evaluation_data(recipe, evaluation) for evaluation in recipe.evaluation]
    trainer.train(recipe, run, resume=resume, evaluators={one.name: _evaluator(one) for one in data})
    console = Console()
    if data:
        show(console, run_suite([_named(str(run))], data, run / "results.jsonl", console))
    console.print(f"The model is in {run}: diffclip.load({str(run)!r})", highlight=False, soft_wrap=True)


def _evaluator(data: DataSet) -> Callable[[CLIP], Mapping[str, float]]:
    def evaluate(model: CLIP) -> Mapping[str, float]:
        measured, _ = measure(model, data.source, data.tasks)
        return {name: value for examples in measured.values() for name, value in examples.metrics.items()}

    return evaluate


def evaluation_data(recipe: Recipe, evaluation: Evaluation) -> DataSet:
    """The data set of a recipe's evaluation; without a path of its own, another part of the training data."""
    config = evaluation.data
    if not config.path:
        config = dataclasses.replace(config, path=recipe.data.train.path, format=recipe.data.train.format)
    if not config.path:
        raise UserError("the recipe names no training data: set data.train.path, or give --data.train.path PATH")
    return DataSet(evaluation.name, open_source(**vars(config)), evaluation.tasks)


def evaluate(
    models: Sequence[str],
    data: Sequence[str],
    tasks: Sequence[Task],
    out: Path,
    *,
    batch_size: int,
    workers: int,
) -> None:
    """Evaluate models on data sets given as NAME=PATH; prints the results, writes OUT/results.jsonl.

    Two models are also compared, the second with the first, with paired intervals.
    """
    if not models:
        raise UserError("no model to evaluate: give run directories, .safetensors files, checkpoints or hub ids")
    data_sets = [data_set for text in data for data_set in _data_sets(text, tasks)]
    named = [_named(source) for source in models]
    console, path = Console(), out / "results.jsonl"
    show(console, run_suite(named, data_sets, path, console, batch_size, workers))
    if len(named) == 2:
        letters = [ModelName(letter, one.name, one.pretrained) for letter, one in zip("AB", named, strict=True)]
        console.print(tables.to_rich(tables.compare(path, *letters)))
        console.print(*(f"{one.label}: {one.pretrained}" for one in letters), highlight=False, soft_wrap=True)
    console.print(f"Written to {path}", highlight=False, soft_wrap=True)


def run_suite(
    models: Sequence[NamedModel],
    data: Sequence[DataSet],
    path: Path,
    console: Console,
    batch_size: int = 256,
    workers: int = 0,
) -> list[Result]:
    """Every task of every data set with every model, under a progress bar; skipped images are told."""
    results = []
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=None)

        def advance(model: NamedModel, data: DataSet, done: int) -> None:
            progress.update(bar, description=f"{model.name} on {data.name}", completed=done, total=len(data.source))

        for outcome in evaluate_suite(
            models, data, path, batch_size=batch_size, num_workers=workers, on_progress=advance
        ):
            results.append(outcome.result)
            if outcome.skipped:
                reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(outcome.skipped.items()))
                console.print(f"{outcome.result.dataset}: skipped images: {reasons}", highlight=False)
    return results


def show(console: Console, results: Sequence[Result]) -> None:
    """A line for each result, in percent."""
    for result in results:
        metrics = {name: value for name, value in result.metrics.items() if "/" not in name}
        shown = "  ".join(f"{name.replace('_retrieval_', ' ')} {100 * value:.1f}" for name, value in metrics.items())
        console.print(
            f"{result.pretrained}  {result.dataset}  {result.task}:  {shown}", highlight=False, soft_wrap=True
        )


def _data_sets(text: str, tasks: Sequence[Task]) -> list[DataSet]:
    """NAME=PATH as one data set for pairs of images and one for single images, as far as the tasks need them."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UserError(f"--data {text}: expected NAME=PATH, such as cifar10=data/cifar10 or scenes=scenes:test")
    single: tuple[Task, ...] = tuple(task for task in tasks if task != "fine_grained")
    found = []
    if single:
        split = None if path.startswith("scenes") or Path(path).is_file() else _test_split(path)
        found.append(DataSet(name, open_source(path, split=split), single))
    if "fine_grained" in tasks:
        pairs = FineGrainedSource() if path.startswith("scenes") else MMVPSource(Path(path))
        found.append(DataSet(name, PairImages(pairs), ("fine_grained",)))
    return found


def _test_split(path: str) -> str | None:
    """ "test" for a folder that holds a test split among others."""
    folder = Path(path)
    return "test" if folder.is_dir() and any(entry.name.startswith("test") for entry in folder.iterdir()) else None


def _named(source: str) -> NamedModel:
    model = load(source, device=default_device())[0]
    return NamedModel(_preset_of(model), source, model)


def _preset_of(model: CLIP) -> str:
    """The preset that has the model's config; for a config of its own, what it is."""
    for name in list_models():
        if model_config(name) == model.config:
            return name
    kind = "diffclip" if "differential" in (model.config.vision_attention, model.config.text_attention) else "clip"
    return f"{kind}_{model.config.vision_width}x{model.config.vision_depth}_patch{model.config.patch_size}"


def print_dry_run(recipe: Recipe) -> None:
    """What a recipe would do, as rows."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for what, value in dry_run.describe(recipe):
        table.add_row(what, value)
    Console().print(table, highlight=False)


def print_models() -> None:
    """The presets and their sizes."""
    table = Table("preset", "image", "patch", "parameters", "of them λ and head norms", box=None, padding=(0, 2, 0, 0))
    for name in list_models():
        config = model_config(name)
        with torch.device("meta"):
            counts = count_parameters(CLIP(config))
        added = counts["lambda"] + counts["head_norm"]
        share = f"{added:,} ({added / counts['total']:.4%})" if added else ""
        table.add_row(name, str(config.image_size), str(config.patch_size), f"{counts['total']:,}", share)
    Console().print(table, highlight=False)
