"""What a benchmark says of itself, and the list of all: a new one is a file in `tasks` and a line in `TASKS`.

The command line's choices, the plan's cost, the checks of recipes and sweeps, and the titles in tables and figures all
come from here. Importing this imports no torch: the file of a task is loaded when the task is first asked for.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from diffclip.evaluation.datasets.dataset import DataSet
    from diffclip.evaluation.features.context import EvalContext
    from diffclip.evaluation.results import PerExampleScores

# Name → module with its TASK. The order is that of the choices of `diffclip eval --tasks`.
TASKS: dict[str, str] = {
    "zero_shot": "diffclip.evaluation.tasks.zero_shot",
    "retrieval": "diffclip.evaluation.tasks.retrieval",
    "linear_probe": "diffclip.evaluation.tasks.linear_probe",
    "few_shot": "diffclip.evaluation.tasks.few_shot",
    "fine_grained": "diffclip.evaluation.tasks.fine_grained",
    "sugarcrepe": "diffclip.evaluation.tasks.sugarcrepe",
    "winoground": "diffclip.evaluation.tasks.winoground",
    "robustness": "diffclip.evaluation.tasks.robustness",
    "corruptions": "diffclip.evaluation.tasks.corruptions",
    "grounding": "diffclip.evaluation.tasks.grounding",
    "noise": "diffclip.evaluation.tasks.noise",
}


@dataclass(frozen=True)
class Metric:
    """One number of a result, or a family of numbers that share a pattern of names."""

    key: str
    """As results.jsonl calls it. A `*` stands for any text without a slash: `acc1/*` for `acc1/fog` and `acc1/snow`."""
    title: str
    """In words, for tables. `{}` is what the first `*` stands for, with spaces for underscores."""
    unit: str = "%"
    """`%`: results have a fraction, tables show 100 times as much. Empty: shown as it is."""
    better: Literal["up", "down"] | None = "up"
    """Which way a model is better; None for what says nothing about quality."""
    chance: float | None = None
    """What guessing scores, where that is the same for all data; otherwise each result has its own."""
    compared: bool = True
    """Whether tables of differences between models have it, rather than only results.jsonl and figures."""
    evidence: bool = True
    """Whether a difference of it between two kinds of attention says something about the models."""
    column: str = ""
    """A shorter title, for the head of a column."""

    def match(self, key: str) -> re.Match[str] | None:
        """The match of the pattern with the whole of a name; its groups are what the stars stand for."""
        return re.fullmatch(re.escape(self.key).replace(r"\*", "([^/]+)"), key)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark: what it needs of a data set, what it costs, what it measures."""

    name: str
    """On the command line and in recipes."""
    title: str
    """In words, for tables."""
    result: str
    """Its name in results.jsonl: the LAION CLIP benchmark's where that has the task."""
    needs: str
    """What a data set must have, in words."""
    requires: tuple[str, ...]
    """The same for the program, in the words of `datasets.dataset.offers`."""
    measure: Callable[[EvalContext], PerExampleScores]
    """Measure one model on one data set. Raises UserError for data or weights that cannot be used."""
    metrics: tuple[Metric, ...]
    splits: tuple[str, ...] = ()
    """The splits whose image features it reads. Of those that `requires` does not name, a data set may lack any."""
    settings: tuple[str | None, ...] = ()
    """The fields of `Settings` that change its result. None: a place in the fingerprint that stays empty."""
    passes: float = 0
    """How often it encodes each image of its sample; with a gradient counts thrice, with attention maps twice."""
    texts: Callable[[DataSet], int] = lambda data: 0
    """About how many texts it encodes."""
    version: int = 1
    """Raised where the same model and data give other numbers than before: results of an earlier version are redone."""
    headline: str = ""
    """The metric that stands for the task where a table has room for one; empty where none does."""


@cache
def get_task(name: str) -> Task:
    """The task of a name in `TASKS`. Loads its module."""
    task: Task = importlib.import_module(TASKS[name]).TASK
    return task


def missing(names: Iterable[str], offers: Collection[str]) -> dict[str, str]:
    """Those of some tasks that a data set cannot serve, with what each needs.

    offers: what the data set has, see `datasets.dataset.offers`. Where that is nothing, no example can be read, and
    each task says so itself when it tries.
    """
    tasks = map(get_task, names)
    return {task.name: task.needs for task in tasks if offers and not set(task.requires) <= set(offers)}


def by_default(offers: Collection[str]) -> tuple[str, ...]:
    """What is measured where nothing is asked for: what the data can serve without learning or changed images, or any.

    offers: as for `missing`. Where no example can be read, zero-shot classification, which says so.
    """
    names = [name for name in TASKS if not missing((name,), offers)] if offers else ["zero_shot"]
    able = [get_task(name) for name in names]
    light = [task for task in able if not task.passes and "train" not in task.requires]
    return tuple(task.name for task in light or able)


def during_training() -> dict[str, tuple[str, ...]]:
    """Tasks that a recipe may measure, which read the test split's features alone, and the metrics where up is better.

    Metrics are whole names, no patterns.
    """
    tasks = (task for task in map(get_task, TASKS) if task.splits == ("test",))
    return {task.name: tuple(m.key for m in task.metrics if m.better == "up" and "*" not in m.key) for task in tasks}


def _by_result() -> Mapping[str, Task]:
    return {task.result: task for task in map(get_task, TASKS)}


def title_of_task(result: str) -> str:
    """A task in words, by its name in results.jsonl; one that another program wrote is its name with spaces."""
    task = _by_result().get(result)
    return task.title if task else result.replace("_", " ")


def name_of_task(result: str) -> str:
    """What `--tasks` calls a task, by its name in results.jsonl; one that another program wrote is that name."""
    task = _by_result().get(result)
    return task.name if task else result


def headline_of_task(result: str) -> str:
    """The metric that stands for a task, by the task's name in results.jsonl; empty where none does."""
    task = _by_result().get(result)
    return task.headline if task else ""


def metric_of(result: str, key: str) -> Metric | None:
    """The metric of a key of results.jsonl, by the task's name there; None where the task does not state it."""
    task = _by_result().get(result)
    return next((metric for metric in task.metrics if metric.match(key)), None) if task else None


def metric_title(result: str, key: str) -> str:
    """A metric in words: `image_retrieval_recall@5` is "image recall@5", `pair_accuracy/text` is "text"."""
    metric = metric_of(result, key)
    match = metric and metric.match(key)
    if metric is None or not match:
        return key.replace("_retrieval_", " ").replace("_", " ")
    return metric.title.format(*(part.replace("_", " ") for part in match.groups()))


def is_compared(result: str, key: str) -> bool:
    """Whether tables of differences between models have a metric: one that speaks of quality, none by ε or severity."""
    metric = metric_of(result, key)
    return metric is not None and metric.compared and metric.better is not None


def is_evidence(result: str, key: str) -> bool:
    """Whether a difference between models in a metric may be judged; one that no task states, by whoever states it."""
    metric = metric_of(result, key)
    return metric is None or metric.evidence


def columns_of(result: str) -> dict[str, str]:
    """Metric → short title, of those of a task's metrics that have one, in the task's order."""
    task = _by_result().get(result)
    return {metric.key: metric.column for metric in task.metrics if metric.column} if task else {}
