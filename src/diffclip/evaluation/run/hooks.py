"""Evaluations while a model trains: whether a recipe's are possible, their data sets, what measures a model on each."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from diffclip.config import Evaluation, Recipe
from diffclip.data.sources import open_source
from diffclip.errors import UserError
from diffclip.evaluation.datasets.dataset import DataSet
from diffclip.evaluation.run.suite import measure
from diffclip.evaluation.task import during_training
from diffclip.models.clip import CLIP

Evaluator = Callable[[CLIP], Mapping[str, float]]


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


def evaluators(data: Sequence[DataSet]) -> dict[str, Evaluator]:
    """What measures a model on each data set while it trains."""
    return {dataset.name: _evaluator(dataset) for dataset in data}


def _evaluator(data: DataSet) -> Evaluator:
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
