"""The list of jobs of an evaluation: which results are known, which images have features, what work is left.

Each data set is opened once, in `_survey`, to see which of its tasks it can serve; the rest is handed on as numbers.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffclip.data.formats.stamp import Stamped
from diffclip.data.sources import Source
from diffclip.errors import UserError
from diffclip.evaluation import results
from diffclip.evaluation.datasets.dataset import DataSet, offers
from diffclip.evaluation.features.cache import FeatureCache
from diffclip.evaluation.features.context import Settings
from diffclip.evaluation.results import Failure, Result
from diffclip.evaluation.run.named_model import NamedModel
from diffclip.evaluation.task import Task, by_default, get_task, missing
from diffclip.models.weights.store import fingerprint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One model on one data set: what is known, what is to be done, and the images that it takes to encode."""

    model: NamedModel
    data: DataSet
    weights: str
    fingerprints: Mapping[str, str]
    known: Mapping[str, Result]
    todo: tuple[Task, ...]
    images: Mapping[str, int]
    """Images of each split that are not in the cache, as far as is known before their files are read."""
    sizes: Mapping[str, int]
    """All images of each split."""
    sample: int
    """Images of the test split that tasks look at which encode changed images."""
    texts: Mapping[str, int]
    """About how many texts each task encodes."""

    def key(self, task: Task) -> results.Key:
        """What results call this model, this data set and a task."""
        return _key(self.model, self.data, task)

    @property
    def work(self) -> float:
        """All that is to be done, in parameters used once for each token."""
        return sum(map(self.work_of_split, self.images)) + sum(map(self.work_of, self.todo))

    def work_of_split(self, split: str) -> float:
        """Of encoding the images of a split that are left."""
        return self.images[split] * self.model.model.work()[0]

    def work_of(self, task: Task) -> float:
        """Of what a task encodes itself: changed images, texts."""
        image, text = self.model.model.work()
        return self.sample * task.passes * image + self.texts[task.name] * text


@dataclass(frozen=True)
class JobList:
    """What an evaluation will do."""

    jobs: list[Job] = field(default_factory=list)
    unable: dict[str, dict[str, str]] = field(default_factory=dict)
    """data set → the tasks it cannot serve, and what each needs."""
    failures: list[Failure] = field(default_factory=list)
    """Data sets that could not be opened."""


def list_jobs(
    models: Sequence[NamedModel],
    data: Sequence[DataSet],
    path: Path,
    *,
    settings: Settings = Settings(),  # noqa: B008
    cache: FeatureCache | None = None,
    force: bool = False,
) -> JobList:
    """What `evaluate` will do. Opens every data set that is needed, and reads no image but the first."""
    plan = JobList()
    known = {result.key: result for result in results.read(path)}
    weights = [fingerprint(model.model) for model in models]
    for dataset in data:
        try:
            survey = _survey(dataset, settings, plan)
            for model, digest in zip(models, weights, strict=True):
                plan.jobs.append(_job(model, digest, dataset, survey, path, {} if force else known, cache))
        except Exception as error:
            plan.failures.append(Failure(dataset.name, reason_of(error)))
        finally:
            dataset.close()
    return plan


@dataclass(frozen=True)
class _Survey:
    """What a data set has for those of its tasks that it can serve."""

    digests: Mapping[Task, str]
    """Of the splits and settings that decide a task's result."""
    sizes: Mapping[str, int]
    """Images of each split that any task reads."""
    texts: Mapping[str, int]
    """About how many texts each task encodes."""
    sample: int


def _survey(data: DataSet, settings: Settings, plan: JobList) -> _Survey:
    """Open the splits of a data set that its tasks need. What it cannot serve, and what fails, is noted in the plan."""
    held = offers(data)
    data.tasks = data.tasks or by_default(held)
    lacking = missing(data.tasks, held)
    if lacking:
        plan.unable[data.name] = plan.unable.get(data.name, {}) | lacking
    if lacking and len(lacking) == len(set(data.tasks)):
        needs = "; ".join(f"{task} needs {what}" for task, what in lacking.items())
        plan.failures.append(Failure(data.name, f"it can serve none of the tasks that are asked of it: {needs}"))
    digests: dict[Task, str] = {}
    for task in (get_task(name) for name in data.tasks if name not in lacking):
        try:
            stamps = _stamps(data, task)
        except UserError as error:  # another split than the test split is not there
            plan.failures.append(Failure(data.name, str(error), task=task.name))
            continue
        facts = [list(stamps.items()), settings.values_of(task.settings), data.mean_per_class]
        facts += [task.version] if task.version > 1 else []  # it came later than the first results did
        digests[task] = hashlib.sha256(repr(tuple(facts)).encode()).hexdigest()
    read = dict.fromkeys(split for task in digests for split in task.splits if data.has(split))
    sample = len(data.test) if settings.sample is None else min(settings.sample, len(data.test))
    texts = {task.name: task.texts(data) for task in digests}
    return _Survey(digests, {split: len(data.split(split)) for split in read}, texts, sample)


def _stamps(data: DataSet, task: Task) -> dict[str, str]:
    """What tells that the splits which decide a task's result are still the same. Opens them.

    Some copies of a data set lack the validation split, which no task needs. Raises UserError for another split.
    """
    stamps = {}
    for split in dict.fromkeys(("test", *task.splits)):
        try:
            if data.has(split):
                stamps[split] = _stamp(data.split(split))
        except UserError as error:
            if split != "val":
                raise
            name = data.name
            log.warning("%s has no validation split (%s): what one is needed for is held out of train", name, error)
            data.drop(split)
    return stamps


def _stamp(source: Source) -> str:
    facts = (source.name, len(source), source.classnames, source.templates)
    return repr((*facts, source.stamp() if isinstance(source, Stamped) else None))


def _job(
    model: NamedModel,
    weights: str,
    data: DataSet,
    survey: _Survey,
    path: Path,
    known: Mapping[results.Key, Result],
    cache: FeatureCache | None,
) -> Job:
    prints = {task.name: f"{weights}-{digest}" for task, digest in survey.digests.items()}
    done = {
        task.name: known[key]
        for task in survey.digests
        if (key := _key(model, data, task)) in known and results.stored_fingerprint(path, key) == prints[task.name]
    }
    todo = tuple(task for task in survey.digests if task.name not in done)
    read = dict.fromkeys(split for task in todo for split in task.splits if split in survey.sizes)
    sizes = {split: survey.sizes[split] for split in read}
    images = sizes
    if cache:
        images = {split: cache.missing(weights, model.model.config, data.split(split)) for split in sizes}
    return Job(model, data, weights, prints, done, todo, images, sizes, survey.sample, survey.texts)


def _key(model: NamedModel, data: DataSet, task: Task) -> results.Key:
    return (data.name, model.name, model.pretrained, task.result)


def reason_of(error: Exception) -> str:
    """One line of what went wrong. Only a UserError is expected: anything else is logged with where it happened."""
    if isinstance(error, UserError):
        return str(error)
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
