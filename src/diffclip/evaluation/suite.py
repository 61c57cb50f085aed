"""Evaluate models on data sets: one pass over the images of each split, every task from the same features."""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffclip.data.sources import Source
from diffclip.data.stamp import Stamped
from diffclip.errors import UserError
from diffclip.evaluation import results
from diffclip.evaluation.feature_cache import FeatureCache
from diffclip.evaluation.results import Examples, Result
from diffclip.evaluation.splits import DataSet, Split, Task
from diffclip.evaluation.tasks import SPECS, Settings, Subject, served, unable
from diffclip.models.clip import CLIP

__all__ = ["DataSet", "Failure", "Job", "Monitor", "NamedModel", "Outcome", "Plan", "Settings", "evaluate", "measure"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NamedModel:
    """A model and what results call it: its preset, and where its weights come from."""

    name: str
    pretrained: str
    model: CLIP


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


@dataclass(frozen=True)
class Failure:
    """What could not be done, and why. Without a task, the data set could not be opened."""

    data: str
    reason: str
    model: NamedModel | None = None
    task: Task | None = None

    def __str__(self) -> str:
        what = f"{self.data} {self.task or ''}".strip()
        return f"{what}{f' with {self.model.pretrained}' if self.model else ''}: {self.reason}"


@dataclass(frozen=True)
class Job:
    """One model on one data set: what is known, what is to be done, and the images that it takes to encode."""

    model: NamedModel
    data: DataSet
    weights: str
    fingerprints: Mapping[Task, str]
    known: Mapping[Task, Result]
    todo: tuple[Task, ...]
    images: Mapping[Split, int]
    """Images of each split that are not in the cache, as far as is known before their files are read."""
    sizes: Mapping[Split, int]
    """All images of each split."""
    sample: int
    """Images of the test split that tasks look at which encode changed images."""

    def key(self, task: Task) -> results.Key:
        return (self.data.name, self.model.name, self.model.pretrained, SPECS[task].result)

    @property
    def work(self) -> float:
        """How many times an image is encoded."""
        return sum(self.images.values()) + self.sample * sum(SPECS[task].passes for task in self.todo)


@dataclass(frozen=True)
class Plan:
    """What an evaluation will do."""

    jobs: list[Job] = field(default_factory=list)
    unable: dict[str, dict[Task, str]] = field(default_factory=dict)
    """data set → the tasks it cannot serve, and what each needs."""
    failures: list[Failure] = field(default_factory=list)
    """Data sets that could not be opened."""


class Monitor:
    """Is told how an evaluation goes on; this one ignores it."""

    def planned(self, plan: Plan) -> None:
        """Before anything is computed."""

    def encoding(self, job: Job, split: Split) -> None:
        """The images of a split come next."""

    def encoded(self, job: Job, split: Split, images: int) -> None:
        """So many images of a split have features, those of the cache among them."""

    def began(self, job: Job, task: Task) -> None:
        """The features are there, and a task starts on them."""

    def sampled(self, job: Job, task: Task, images: int) -> None:
        """A task that encodes changed images is done with so many of its sample."""

    def ended(self, job: Job, task: Task) -> None:
        """A task is done, or has failed."""


def evaluate(
    models: Sequence[NamedModel],
    data: Sequence[DataSet],
    path: Path,
    *,
    settings: Settings = Settings(),  # noqa: B008  it is frozen
    cache: FeatureCache | None = None,
    force: bool = False,
    monitor: Monitor | None = None,
) -> Iterator[Outcome | Failure]:
    """Do every task of every data set with every model, and yield each result once it is written to `path`.

    path: a results.jsonl, which is continued. A result that it has is not computed again, as long as the
    model's weights, the data's stamps, classes and templates, and the settings that matter are what they were
    then, or with `force`. What fails is yielded as a Failure, and the rest goes on; a task that a data set cannot
    serve is only noted in the plan, which the monitor is told.
    """
    monitor = monitor or Monitor()
    plan = make_plan(models, data, path, settings=settings, cache=cache, force=force)
    monitor.planned(plan)
    yield from plan.failures
    previous: DataSet | None = None
    for job in plan.jobs:
        if previous is not None and previous is not job.data:
            previous.close()
        previous = job.data
        for result in job.known.values():
            yield Outcome(result, False, Counter())
        yield from _do(job, path, settings, cache, monitor)
    if previous is not None:
        previous.close()


def make_plan(
    models: Sequence[NamedModel],
    data: Sequence[DataSet],
    path: Path,
    *,
    settings: Settings = Settings(),  # noqa: B008
    cache: FeatureCache | None = None,
    force: bool = False,
) -> Plan:
    """What `evaluate` will do. Opens every data set that is needed, and reads no image but the first."""
    plan = Plan()
    known = {result.key: result for result in results.read(path)}
    weights = [results.fingerprint(model.model) for model in models]
    for dataset in data:
        try:
            lacking = unable(dataset)
            if lacking:
                plan.unable[dataset.name] = plan.unable.get(dataset.name, {}) | lacking
            tasks, stamps = [], dict[Split, str]()
            for task in dataset.tasks:
                if task in lacking:
                    continue
                try:
                    for split in _splits(dataset, task):
                        _open(dataset, split)
                    stamps |= {split: _stamp(dataset.split(split)) for split in _splits(dataset, task)}
                    tasks.append(task)
                except UserError as error:  # another split than the test split is not there
                    plan.failures.append(Failure(dataset.name, str(error), task=task))
            for model, digest in zip(models, weights, strict=True):
                plan.jobs.append(_job(model, digest, dataset, tasks, stamps, path, known, settings, cache, force))
        except Exception as error:
            plan.failures.append(Failure(dataset.name, _reason(error)))
        finally:
            dataset.close()
    return plan


def _open(data: DataSet, split: Split) -> None:
    """Open a split. Some copies of a data set lack the validation split, which no task needs."""
    try:
        data.split(split)
    except UserError as error:
        if split != "val":
            raise
        log.warning("%s has no validation split (%s): what one is needed for is held out of train", data.name, error)
        data.drop(split)


def _job(
    model: NamedModel,
    weights: str,
    data: DataSet,
    tasks: Sequence[Task],
    stamps: Mapping[Split, str],
    path: Path,
    known: Mapping[results.Key, Result],
    settings: Settings,
    cache: FeatureCache | None,
    force: bool,
) -> Job:
    prints, done = {}, {}
    for task in tasks:
        facts = [(split, stamps[split]) for split in _splits(data, task)]
        digest = hashlib.sha256(repr((facts, settings.of(task), data.mean_per_class)).encode()).hexdigest()
        prints[task] = f"{weights}-{digest}"
        key = (data.name, model.name, model.pretrained, SPECS[task].result)
        if not force and key in known and results.stored_fingerprint(path, key) == prints[task]:
            done[task] = known[key]
    todo = tuple(task for task in tasks if task not in done)
    read = dict.fromkeys(split for task in todo for split in SPECS[task].splits if data.has(split))
    sizes = {split: len(data.split(split)) for split in read}
    images = sizes
    if cache:
        images = {split: cache.missing(weights, model.model.config, data.split(split)) for split in read}
    sample = len(data.test) if settings.sample is None else min(settings.sample, len(data.test))
    return Job(model, data, weights, prints, done, todo, images, sizes, sample)


def _do(
    job: Job, path: Path, settings: Settings, cache: FeatureCache | None, monitor: Monitor
) -> Iterator[Outcome | Failure]:
    subject = Subject(
        job.model.model,
        job.data,
        settings,
        cache=cache,
        weights=job.weights,
        on_images=lambda split, done: monitor.encoded(job, split, done),
        on_sample=lambda done: monitor.sampled(job, task, done),
    )
    for task in job.todo:
        try:
            for split in SPECS[task].splits:
                if job.data.has(split):
                    if not subject.has(split):
                        monitor.encoding(job, split)
                    subject.features(split)
            monitor.began(job, task)
            began = time.monotonic()
            examples = SPECS[task].measure(subject)
            result = record(path, job.key(task), examples, job.fingerprints[task])
            outcome: Outcome | Failure = Outcome(result, True, subject.skipped, time.monotonic() - began)
        except Exception as error:
            outcome = Failure(job.data.name, _reason(error), job.model, task)
        monitor.ended(job, task)
        yield outcome


def record(path: Path, key: results.Key, examples: Examples, fingerprint: str) -> Result:
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
) -> tuple[dict[Task, Examples], Counter[str]]:
    """What each example adds to each metric of a data set's tasks, and how many images could not be read.

    Nothing is written. Raises UserError for a task that the data set cannot serve, or where no image can be read.
    """
    for task, needs in unable(data).items():
        able = ", ".join(served(data))
        raise UserError(f"{data.test.name} cannot serve {task}: it needs {needs}; it can serve {able}")
    subject = Subject(model, data, settings)
    return {task: SPECS[task].measure(subject) for task in data.tasks}, subject.skipped


def cost(model: CLIP) -> float:
    """Roughly what encoding an image takes: the image tower's parameters, once for each token."""
    tokens = (model.config.image_size // model.config.patch_size) ** 2 + 1
    return float(tokens * sum(parameter.numel() for parameter in model.visual.parameters()))


def _splits(data: DataSet, task: Task) -> list[Split]:
    """The splits whose content decides a task's result."""
    splits: tuple[Split, ...] = ("test", *SPECS[task].splits)
    return list(dict.fromkeys(split for split in splits if data.has(split)))


def _stamp(source: Source) -> str:
    facts = (source.name, len(source), source.classnames, source.templates)
    return repr((*facts, source.stamp() if isinstance(source, Stamped) else None))


def _reason(error: Exception) -> str:
    """One line of what went wrong. Only a UserError is expected: anything else is logged with where it happened."""
    if isinstance(error, UserError):
        return str(error)
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
