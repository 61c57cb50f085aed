"""Evaluations while a model trains: whether a recipe's are possible, their data sets, what measures a model on each."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from diffclip.config import Evaluation, Recipe, SourceConfig, load_recipe
from diffclip.data.sources import open_source
from diffclip.distributed import World
from diffclip.errors import UserError
from diffclip.evaluation.datasets.dataset import DataSet
from diffclip.evaluation.features.cache import FeatureCache
from diffclip.evaluation.features.context import Settings
from diffclip.evaluation.results import Failure
from diffclip.evaluation.run.distributed import encode_distributed
from diffclip.evaluation.run.named_model import named_model
from diffclip.evaluation.run.progress import run_suite
from diffclip.evaluation.run.suite import measure
from diffclip.evaluation.task import during_training
from diffclip.models.image_text import ImageTextModel
from diffclip.training.run_directory import RECIPE

log = logging.getLogger(__name__)

Evaluator = Callable[[ImageTextModel], Mapping[str, float]]


def check_evaluations(recipe: Recipe, where: str = "command line") -> None:
    """Raise UserError where a recipe evaluates by a task that training cannot, or keeps the best by what none measures.

    where: what the recipe came from, for the error.
    """
    metrics = during_training()
    for place, evaluation in enumerate(recipe.evaluation):
        for number, task in enumerate(evaluation.tasks):
            if task not in metrics:
                *some, last = map(repr, metrics)
                expected = f"{', '.join(some)} or {last}"
                raise UserError(
                    f"{where}: evaluation.{place}.tasks.{number}: input should be {expected}, found {task!r:.100}"
                )
    names = [
        f"{evaluation.name}/{metric}"
        for evaluation in recipe.evaluation
        for task in evaluation.tasks
        for metric in metrics[task]
    ]
    best_by = recipe.training.best_by
    if recipe.training.keep_best and recipe.evaluation and best_by not in names:
        raise UserError(f"{where}: training.best_by = {best_by!r} is not measured; give one of {', '.join(names)}")


def evaluators(recipe: Recipe) -> dict[str, Evaluator]:
    """What measures a model on each data set of a recipe while it trains. Raises UserError as `open_evaluations`."""
    return {data.name: evaluator(data) for data in open_evaluations(recipe)}


def evaluate_run(run: Path, world: World, console: Console) -> list[Failure]:
    """Evaluate a finished run as its own recipe says, and write its results.jsonl; returns what failed.

    All ranks of the world call this. They encode the images together, and rank 0 does the rest.
    """
    recipe = load_recipe(run / RECIPE, typed=False)
    data = open_evaluations(recipe)
    if not data:
        return []
    path, cache, model = run / "results.jsonl", None, named_model(str(run))
    if world.size > 1:
        cache = FeatureCache(run / "features")
        encode_distributed([model], data, path, Settings(), cache, world)
    if not world.is_main:
        return []
    return run_suite([model], data, path, console, cache=cache, max_skipped=recipe.data.max_skipped)


def evaluator(data: DataSet) -> Evaluator:
    """A function of a model: the metrics of the data set's tasks."""

    told: Counter[str] = Counter()

    def evaluate(model: ImageTextModel) -> Mapping[str, float]:
        measured, skipped = measure(model, data)
        if skipped != told:  # not at every evaluation again
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
            log.warning("%s: skipped images: %s; its numbers are of the others", data.name, reasons or "none any more")
            told.clear()
            told.update(skipped)
        return {name: value for examples in measured.values() for name, value in examples.metrics.items()}

    return evaluate


def open_evaluations(recipe: Recipe) -> list[DataSet]:
    """The data set of each of a recipe's evaluations. Raises UserError where one cannot be opened."""
    return [_open(evaluation, recipe.data.train) for evaluation in recipe.evaluation]


def _open(evaluation: Evaluation, train: SourceConfig) -> DataSet:
    config = evaluation.source(train)
    if not config.path:
        raise UserError("the recipe names no training data: set data.train.path, or give --data.train.path PATH")
    return DataSet(evaluation.name, open_source(**vars(config)), evaluation.tasks)
