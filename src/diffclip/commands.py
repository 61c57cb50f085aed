"""What each command does: the parts of the library put together, and what a person reads meanwhile."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from diffclip.config import Evaluation, Recipe
from diffclip.data.sources import open_source
from diffclip.errors import UserError
from diffclip.evaluation.command import named_model, raise_failures, run_suite
from diffclip.evaluation.feature_cache import FeatureCache
from diffclip.evaluation.suite import DataSet, Settings, measure
from diffclip.evaluation.together import encode_together
from diffclip.models.clip import CLIP, count_parameters
from diffclip.models.presets import list_models, model_config
from diffclip.training import dry_run, trainer
from diffclip.training.distributed import joined


def train(recipe: Recipe, run: Path, *, resume: bool) -> None:
    """Train, evaluate as the recipe says, and write the run's results.jsonl; with the other processes of torchrun."""
    path, cache = run / "results.jsonl", None
    with joined() as world:
        data = [evaluation_data(recipe, evaluation) for evaluation in recipe.evaluation]
        trainer.train(recipe, run, resume=resume, evaluators=evaluators(data))
        if data and world.size > 1:
            cache = FeatureCache(run / "features")
            encode_together([named_model(str(run))], data, path, Settings(), cache, world)
    if not world.main:
        return
    console = Console()
    failures = run_suite([named_model(str(run))], data, path, console, cache=cache) if data else []
    console.print(f"The model is in {run}: diffclip.load({str(run)!r})", highlight=False, soft_wrap=True)
    raise_failures(failures)


def evaluators(data: Sequence[DataSet]) -> dict[str, trainer.Evaluator]:
    """What measures a model on each data set while it trains."""
    return {one.name: _evaluator(one) for one in data}


def _evaluator(data: DataSet) -> Callable[[CLIP], Mapping[str, float]]:
    def evaluate(model: CLIP) -> Mapping[str, float]:
        measured, _ = measure(model, data)
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
