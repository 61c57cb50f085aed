"""Evaluations while a model trains: what a recipe's data sets are, and what measures a model on each."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from diffclip.config import Evaluation, Recipe
from diffclip.data.sources import open_source
from diffclip.errors import UserError
from diffclip.evaluation.datasets.dataset import DataSet
from diffclip.evaluation.run.suite import measure
from diffclip.models.clip import CLIP

Evaluator = Callable[[CLIP], Mapping[str, float]]


def evaluators(data: Sequence[DataSet]) -> dict[str, Evaluator]:
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
