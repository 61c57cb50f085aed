"""Evaluate models on data sets: one pass over the images of each split, every task from the same features."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType

from diffclip.errors import UserError
from diffclip.evaluation import results
from diffclip.evaluation.datasets.dataset import DataSet, offers
from diffclip.evaluation.features.cache import FeatureCache
from diffclip.evaluation.features.context import EvalContext, Settings
from diffclip.evaluation.results import Failure, ImagesRead, PerExampleScores, Result
from diffclip.evaluation.run.named_model import NamedModel
from diffclip.evaluation.run.plan import Job, JobList, list_jobs, reason_of
from diffclip.evaluation.task import TASKS, Task, get_task, missing
from diffclip.models.image_text import ImageTextModel

__all__ = ["DataSet", "Failure", "NamedModel", "Outcome", "Settings", "ValidationHook", "evaluate", "measure", "record"]


@dataclass(frozen=True)
class Outcome:
    """A result, and how it came about."""

    result: Result
    fresh: bool
    """False where the results file had it already."""
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
            yield Outcome(result, False)
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
            read = images_read(context, task, examples, job.sample)
            result = record(path, job.key(task), examples, job.fingerprints[task.name], read)
            outcome: Outcome | Failure = Outcome(result, True, time.monotonic() - began)
        except Exception as error:
            outcome = Failure(job.data.name, reason_of(error), job.model.pretrained, task.name)
        hook.on_task_end(job, task)
        yield outcome


def images_read(context: EvalContext, task: Task, examples: PerExampleScores, sample: int) -> dict[str, ImagesRead]:
    """Split → how many of its images a result comes from; the split that is tested on is called "test".

    sample: images that the tasks look at which encode changed images.
    """
    read = context.images_read(task.splits)
    if not read:
        skipped = dict(sorted(examples.skipped.items()))
        return {"test": ImagesRead(n=sample - sum(skipped.values()), n_expected=sample, skipped=skipped)}
    if "test" not in read:  # a benchmark that reads a split of its own, such as pairs
        read = {"test": read.pop(next(iter(read)))} | read
    return read


def record(
    path: Path,
    key: results.Key,
    examples: PerExampleScores,
    fingerprint: str,
    read: Mapping[str, ImagesRead] = MappingProxyType({}),
) -> Result:
    """Write what was measured to `path` and beside it; read: as `images_read` gives it, where it is known.

    The line comes first: after a crash between the two the old fingerprint stays, and the result is redone.
    """
    dataset, model, pretrained, task = key
    result = Result(dataset=dataset, model=model, pretrained=pretrained, task=task, metrics=examples.metrics)
    if read:
        others = {split: asdict(images) for split, images in read.items() if split != "test"}
        result = replace(result, **asdict(read["test"]), learned_from=others or None)
    results.append(path, result)
    results.save_examples(path, key, examples, fingerprint)
    return result


def measure(
    model: ImageTextModel,
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
