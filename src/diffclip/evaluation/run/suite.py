"""Evaluate models on data sets: one pass over the images of each split, every task from the same features."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffclip.errors import UserError
from diffclip.evaluation import results
from diffclip.evaluation.datasets.dataset import DataSet, offers
from diffclip.evaluation.features.cache import FeatureCache
from diffclip.evaluation.features.context import EvalContext, Settings
from diffclip.evaluation.results import Failure, PerExampleScores, Result
from diffclip.evaluation.run.named_model import NamedModel
from diffclip.evaluation.run.plan import Job, JobList, list_jobs, reason_of
from diffclip.evaluation.task import TASKS, Task, get_task, missing
from diffclip.models.clip import CLIP

__all__ = ["DataSet", "Failure", "NamedModel", "Outcome", "Settings", "ValidationHook", "evaluate", "measure", "record"]


@dataclass(frozen=True)
class Outcome:
    """A result, and how it came about."""

    result: Result
    fresh: bool
    """False where the results file had it already."""
    skipped: Counter[str]
    """Images that could not be read, by reason; empty where the result is not fresh."""
    seconds: float = 0.0
    """What the task took beside the encoding of images."""


class ValidationHook:
    """What `evaluate` calls as it goes on. Here each method does nothing."""

    def on_plan(self, plan: JobList) -> None:
        """Before anything is computed."""

    def on_split(self, job: Job, split: str) -> None:
        """The images of a split come next."""

    def on_images(self, job: Job, split: str, images: int) -> None:
        """So many images of a split have features, those of the cache among them."""

    def on_task(self, job: Job, task: Task) -> None:
        """The features are there, and a task starts on them."""

    def on_progress(self, job: Job, task: Task, done: int, total: int) -> None:
        """A task is done with so many of the images or texts that it encodes itself."""

    def on_task_end(self, job: Job, task: Task) -> None:
        """A task is done, or has failed."""


def evaluate(
    models: Sequence[NamedModel],
    data: Sequence[DataSet],
    path: Path,
    *,
    settings: Settings = Settings(),  # noqa: B008  it is frozen
    cache: FeatureCache | None = None,
    force: bool = False,
    hook: ValidationHook | None = None,
) -> Iterator[Outcome | Failure]:
    """Do every task of every data set with every model, and yield each result once it is written to `path`.

    path: a results.jsonl, which is continued. A result that it has is computed again only with `force`, or when
    something that decides it has changed. That is the model's weights, the data's stamps, classes and templates,
    and the task's settings. What fails is yielded as a Failure, and the rest goes on; a task that a data set cannot
    serve is only noted in the plan, which the hook gets.
    """
    hook = hook or ValidationHook()
    plan = list_jobs(models, data, path, settings=settings, cache=cache, force=force)
    hook.on_plan(plan)
    yield from plan.failures
    previous: DataSet | None = None
    for job in plan.jobs:
        if previous is not None and previous is not job.data:
            previous.close()
        previous = job.data
        for result in job.known.values():
            yield Outcome(result, False, Counter())
        yield from _do(job, path, settings, cache, hook)
    if previous is not None:
        previous.close()


def _do(
    job: Job, path: Path, settings: Settings, cache: FeatureCache | None, hook: ValidationHook
) -> Iterator[Outcome | Failure]:
    context = EvalContext(
        job.model.model,
        job.data,
        settings,
        cache=cache,
        weights=job.weights,
        on_images=lambda split, done: hook.on_images(job, split, done),
        on_sample=lambda done: hook.on_progress(job, task, done, job.sample),
        on_texts=lambda done, total: hook.on_progress(job, task, done, total),
    )
    for task in job.todo:
        try:
            for split in task.splits:
                if job.data.has(split):
                    if not context.has(split):
                        hook.on_split(job, split)
                    context.features(split)
            hook.on_task(job, task)
            began = time.monotonic()
            examples = task.measure(context)
            result = record(path, job.key(task), examples, job.fingerprints[task.name])
            outcome: Outcome | Failure = Outcome(result, True, context.skipped, time.monotonic() - began)
        except Exception as error:
            outcome = Failure(job.data.name, reason_of(error), job.model.pretrained, task.name)
        hook.on_task_end(job, task)
        yield outcome


def record(path: Path, key: results.Key, examples: PerExampleScores, fingerprint: str) -> Result:
    """Write what was measured to `path` and beside it.

    The line comes first: after a crash between the two the old fingerprint stays, and the result is redone.
    """
    dataset, model, pretrained, task = key
    result = Result(dataset=dataset, model=model, pretrained=pretrained, task=task, metrics=examples.metrics)
    results.append(path, result)
    results.save_examples(path, key, examples, fingerprint)
    return result


def measure(
    model: CLIP,
    data: DataSet,
    settings: Settings = Settings(),  # noqa: B008
) -> tuple[dict[str, PerExampleScores], Counter[str]]:
    """What each example adds to each metric of a data set's tasks, and how many images could not be read.

    Nothing is written. Raises UserError for a task that the data set cannot serve, or where no image can be read.
    """
    held = offers(data)
    for task, needs in missing(data.tasks, held).items():
        able = ", ".join(name for name in TASKS if name not in missing(TASKS, held))
        raise UserError(f"{data.test.name} cannot serve {task}: it needs {needs}; it can serve {able}")
    context = EvalContext(model, data, settings)
    return {task: get_task(task).measure(context) for task in data.tasks}, context.skipped
