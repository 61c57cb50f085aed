"""Evaluate models on data sets: one pass over the images of each, every task from the same features."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from diffclip.data.images import BadImage
from diffclip.data.sources import TEMPLATES, Source
from diffclip.data.tokenizer import get_tokenizer
from diffclip.errors import UserError
from diffclip.evaluation import fine_grained, results, retrieval, zero_shot
from diffclip.evaluation.features import ImageFeatures, image_features, text_features
from diffclip.evaluation.fine_grained import PairImages
from diffclip.evaluation.results import Examples, Result
from diffclip.models.clip import CLIP

Task = Literal["zero_shot", "retrieval", "fine_grained"]

# What a task is called in results: the LAION CLIP benchmark's names where it has the task.
TASK_NAMES: dict[Task, str] = {
    "zero_shot": "zeroshot_classification",
    "retrieval": "zeroshot_retrieval",
    "fine_grained": "fine_grained",
}
RETRIEVAL_KS = (1, 5, 10)


@dataclass(frozen=True)
class NamedModel:
    """A model and what results call it: its preset, and where its weights come from."""

    name: str
    pretrained: str
    model: CLIP


@dataclass(frozen=True)
class DataSet:
    """A data set, its name in results, and the tasks to do on it; `tasks_of` says which ones it can serve.

    Fine-grained pairs come as `PairImages`.
    """

    name: str
    source: Source
    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class Outcome:
    """A result, and how it came about."""

    result: Result
    fresh: bool
    """False where the results file had it already."""
    skipped: Counter[str]
    """Images that could not be read, by reason; empty where the result is not fresh."""


def evaluate(
    models: Sequence[NamedModel],
    data: Sequence[DataSet],
    path: Path,
    *,
    batch_size: int = 256,
    num_workers: int = 0,
    force: bool = False,
    on_progress: Callable[[NamedModel, DataSet, int], None] = lambda model, data, done: None,
) -> Iterator[Outcome]:
    """Do every task of every data set with every model, and yield each result once it is written to `path`.

    path: a results.jsonl, which is continued. A result that it has is not computed again, as long as the
    model's weights and the data set's size, classes and templates are what they were then, or with `force`.
    on_progress is given the number of images of the data set that are encoded. Raises UserError for a task
    that a data set cannot serve; what was yielded before stays written.
    """
    for model in models:
        weights = results.fingerprint(model.model)
        for dataset in data:
            fingerprint = _fingerprint(weights, dataset)
            keys = {task: (dataset.name, model.name, model.pretrained, TASK_NAMES[task]) for task in dataset.tasks}
            known = {result.key: result for result in results.read(path)}
            done = {
                task: known[key]
                for task, key in keys.items()
                if not force and key in known and results.stored_fingerprint(path, key) == fingerprint
            }
            for result in done.values():
                yield Outcome(result, False, Counter())
            left = [task for task in dataset.tasks if task not in done]
            if not left:
                continue
            measured, skipped = measure(
                model.model,
                dataset.source,
                left,
                batch_size=batch_size,
                num_workers=num_workers,
                on_progress=lambda count, m=model, d=dataset: on_progress(m, d, count),  # type: ignore[misc]
            )
            for task, examples in measured.items():
                yield Outcome(record(path, keys[task], examples, fingerprint), True, skipped)


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
    source: Source,
    tasks: Sequence[Task],
    *,
    batch_size: int = 256,
    num_workers: int = 0,
    on_progress: Callable[[int], None] = lambda done: None,
) -> tuple[dict[Task, Examples], Counter[str]]:
    """What each example adds to each metric of some tasks, and how many images could not be read.

    Raises UserError for a task that the data set cannot serve, or where no image can be read.
    """
    able = tasks_of(source)
    for task in tasks:
        if able and task not in able:
            raise UserError(f"{source.name} cannot serve {task}: {_NEEDS[task]}; it can serve {', '.join(able)}")
    images = image_features(model, source, batch_size=batch_size, num_workers=num_workers, on_progress=on_progress)
    found: dict[Task, Examples] = {}
    for task in tasks:
        if task == "zero_shot":
            found[task] = _zero_shot(model, source, images)
        elif task == "retrieval":
            found[task] = _retrieval(model, images)
        elif isinstance(source, PairImages):
            found[task] = fine_grained.examples(source.pairs, images, _texts(model, images)[0])
    return found, images.skipped


_NEEDS: dict[Task, str] = {
    "zero_shot": "it needs labels and class names",
    "retrieval": "it needs captions",
    "fine_grained": "it needs pairs of images",
}


def tasks_of(source: Source) -> tuple[Task, ...]:
    """The tasks that a data set can serve, judged by its first readable example; none if there is none."""
    if isinstance(source, PairImages):
        return ("fine_grained",)
    for index in range(len(source)):
        try:
            example = source[index]
        except BadImage:
            continue
        tasks: list[Task] = []
        if example.label is not None and source.classnames:
            tasks.append("zero_shot")
        if example.captions:
            tasks.append("retrieval")
        return tuple(tasks)
    return ()


def _fingerprint(weights: str, dataset: DataSet) -> str:
    source = dataset.source
    facts = repr((source.name, len(source), source.classnames, source.templates))
    return f"{weights}-{hashlib.sha256(facts.encode()).hexdigest()}"


def _texts(model: CLIP, images: ImageFeatures) -> tuple[Tensor, Tensor]:
    """Features of all captions (T, embed_dim), and the image of each (T,)."""
    captions = [caption for of_image in images.captions for caption in of_image]
    owner = torch.tensor([row for row, of_image in enumerate(images.captions) for _ in of_image])
    return text_features(model, get_tokenizer(model.config.context_length), captions), owner


def _zero_shot(model: CLIP, source: Source, images: ImageFeatures) -> Examples:
    classnames = source.classnames or ()
    labelled = images.labels >= 0
    labels = images.labels[labelled]
    if int(labels.max()) >= len(classnames):
        raise UserError(f"{source.name} has the label {int(labels.max())}, but only {len(classnames)} class names")
    tokenizer = get_tokenizer(model.config.context_length)
    embeddings = zero_shot.class_embeddings(model, tokenizer, classnames, source.templates or TEMPLATES)
    values = zero_shot.scores(images.features[labelled], labels, embeddings)
    return Examples(images.indices[labelled], values, zero_shot.chance(len(classnames)))


def _retrieval(model: CLIP, images: ImageFeatures) -> Examples:
    """By image, which is what was sampled: the captions of one image are not independent of each other."""
    features, owner = _texts(model, images)
    count = torch.bincount(owner, minlength=len(images.features)).double()  # (N,) captions of each image
    values = {}
    for metric, hits in retrieval.scores(images.features, features, owner, RETRIEVAL_KS).items():
        if metric.startswith("text_"):
            values[metric] = hits
        else:
            # An image with n of T captions counts n N / T: the mean over images is that over captions.
            share = torch.zeros_like(count).index_add(0, owner, hits) * (count > 0).sum() / count.sum()
            values[metric] = torch.where(count > 0, share, torch.nan)
    return Examples(images.indices, values, retrieval.chance(len(images.features), owner, RETRIEVAL_KS))
