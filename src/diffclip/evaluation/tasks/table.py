"""The tasks: what each needs of a data set, and how it is measured on one model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor

from diffclip.data.sources import TEMPLATES, Subset
from diffclip.evaluation.datasets.dataset import DataSet, Split, Task, first_readable
from diffclip.evaluation.features.labelled import chosen
from diffclip.evaluation.results import PerExampleScores
from diffclip.evaluation.run.context import EvalContext, Settings
from diffclip.evaluation.stats.seeds import spread
from diffclip.evaluation.tasks import (
    corruptions,
    few_shot,
    fine_grained,
    linear_probe,
    retrieval,
    robustness,
    zero_shot,
)
from diffclip.evaluation.tasks.fine_grained import PairImages

TASKS: tuple[Task, ...] = get_args(Task)

RETRIEVAL_KS = (1, 5, 10)
ATTACK_PASSES = 1 + 3 + len(robustness.EPSILONS) * (1 + 10 * 3)
"""Clean, FGSM's gradient, and for each ε FGSM's image and ten steps of PGD; fewer where images are broken early."""
GROUNDING_PASSES = 2 * 3 + 8**2 + 1
"""Relevance of about two phrases an image, and the image whole and with each of 8 × 8 cells covered."""
CORRUPTED_PASSES = 1 + len(corruptions.KINDS) * len(corruptions.SEVERITIES)


def _zero_shot(context: EvalContext) -> PerExampleScores:
    images, labelled = context.labelled()
    values = zero_shot.scores(images.features[labelled], images.labels[labelled], context.class_embeddings)
    return PerExampleScores(images.indices[labelled], values, zero_shot.chance(len(context.class_embeddings)))


def _retrieval(context: EvalContext) -> PerExampleScores:
    """By image, which is what was sampled: the captions of one image are not independent of each other."""
    images, (features, owner) = context.features(), context.captions()
    count = torch.bincount(owner, minlength=len(images.features)).double()  # (N,) captions of each image
    values = {}
    for metric, hits in retrieval.scores(images.features, features, owner, RETRIEVAL_KS).items():
        if metric.startswith("text_"):
            values[metric] = hits
        else:
            # An image with n of T captions counts n N / T: the mean over images is that over captions.
            share = torch.zeros_like(count).index_add(0, owner, hits) * (count > 0).sum() / count.sum()
            values[metric] = torch.where(count > 0, share, torch.nan)
    return PerExampleScores(images.indices, values, retrieval.chance(len(images.features), owner, RETRIEVAL_KS))


def _linear_probe(context: EvalContext) -> PerExampleScores:
    train_x, train_y, _ = _learned(context, "train")
    val_x, val_y, _ = _learned(context, "val") if context.data.has("val") else (None, None, None)
    test_x, test_y, indices = _learned(context, "test")
    by_class = context.data.mean_per_class
    probe = linear_probe.fit_and_predict(train_x, train_y, val_x, val_y, test_x, mean_per_class=by_class)
    return replace(linear_probe.evaluate(probe, test_y, indices, by_class), facts={"C": probe.C})


def _few_shot(context: EvalContext) -> PerExampleScores:
    train_x, train_y, _ = _learned(context, "train")
    test_x, test_y, _ = _learned(context, "test")
    first, count = context.settings.seed, context.settings.repeats
    repeats = [
        few_shot.episode_accuracies(train_x, train_y, test_x, test_y, seed=seed) for seed in range(first, first + count)
    ]
    accuracies = torch.cat(repeats)
    facts = {"std": accuracies.std().item()}
    if (sd := spread([one.mean().item() for one in repeats]).sd) is not None:
        facts["acc1_sd"] = sd
    return replace(few_shot.evaluate(accuracies), facts=facts)


def _learned(context: EvalContext, split: Split) -> tuple[Tensor, Tensor, Tensor]:
    """Features on the model's device, labels, places in the source, of a split's labelled images."""
    images, labelled = context.labelled(split)
    x = images.tower if context.settings.features == "tower" else images.features
    device = next(context.model.parameters()).device
    return x[labelled].to(device), images.labels[labelled], images.indices[labelled]


def _fine_grained(context: EvalContext) -> PerExampleScores:
    source = context.data.split("pairs")
    assert isinstance(source, PairImages)
    return fine_grained.evaluate(source.pairs, context.features("pairs"), context.captions("pairs")[0])


def _grounding(context: EvalContext) -> PerExampleScores:
    from diffclip.evaluation.tasks import grounding  # which itself imports this package

    settings = context.settings
    return grounding.evaluate(
        context.model, cast(Any, context.data.test), limit=settings.sample, on_progress=context.on_sample
    )


def _noise(context: EvalContext) -> PerExampleScores:
    from diffclip.evaluation.tasks import noise

    source, settings = context.data.test, context.settings
    if isinstance(source, noise.ClutteredSource):
        return noise.evaluate(
            context.model, source, limit=settings.sample, seed=settings.seed, on_progress=context.on_sample
        )
    # Drawn, because the first images of a folder of classes are all of one class.
    drawn = np.array(chosen(source, settings.sample, settings.seed))
    sample = Subset(source, drawn, "sample")
    found = noise.evaluate(context.model, sample, seed=settings.seed, on_progress=context.on_sample)
    return replace(found, indices=torch.from_numpy(drawn)[found.indices])


def _robustness(context: EvalContext) -> PerExampleScores:
    settings = context.settings
    return robustness.evaluate(
        context.model,
        context.tokenizer,
        context.data.test,
        seed=settings.seed,
        limit=settings.sample,
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        on_progress=context.on_sample,
    )


def _corruptions(context: EvalContext) -> PerExampleScores:
    settings = context.settings
    return corruptions.evaluate(
        context.model,
        context.tokenizer,
        context.data.test,
        seed=settings.seed,
        limit=settings.sample,
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        on_progress=context.on_sample,
    )


@dataclass(frozen=True)
class Spec:
    """A task."""

    result: str
    """Its name in results."""
    needs: str
    splits: tuple[Split, ...]
    """The splits whose features it reads."""
    measure: Callable[[EvalContext], PerExampleScores]
    passes: float = 0
    """How many times it encodes each image of its sample; with a gradient counts thrice, with attention maps twice."""


# In results, the LAION CLIP benchmark's names where it has the task.
SPECS: Mapping[Task, Spec] = {
    "zero_shot": Spec("zeroshot_classification", "labels and class names", ("test",), _zero_shot),
    "retrieval": Spec("zeroshot_retrieval", "captions", ("test",), _retrieval),
    "linear_probe": Spec(
        "linear_probe", "labels, class names and a train split", ("train", "val", "test"), _linear_probe
    ),
    "few_shot": Spec("few_shot", "labels, class names and a train split", ("train", "test"), _few_shot),
    "fine_grained": Spec("fine_grained", "pairs of images", ("pairs",), _fine_grained),
    "robustness": Spec("robustness", "labels and class names", (), _robustness, passes=ATTACK_PASSES),
    "corruptions": Spec("corruptions", "labels and class names", (), _corruptions, passes=CORRUPTED_PASSES),
    "grounding": Spec("grounding", "masks of what captions name", (), _grounding, passes=GROUNDING_PASSES),
    "noise": Spec("noise", "images", (), _noise, passes=3 * 2),
}


def served(data: DataSet) -> tuple[Task, ...]:
    """The tasks that a data set can serve, judged by its first readable example; none if there is none."""
    source = data.test
    if isinstance(source, PairImages):
        return ("fine_grained",)
    first = first_readable(source)
    if first is None:
        return ()
    classes = first.label is not None and bool(source.classnames)
    able: dict[Task, bool] = {
        "zero_shot": classes,
        "linear_probe": classes and data.has("train"),
        "few_shot": classes and data.has("train"),
        "noise": True,
        "robustness": classes,
        "corruptions": classes,
        "retrieval": bool(first.captions),
        "fine_grained": data.has("pairs"),
        "grounding": hasattr(source, "masks"),
    }
    return tuple(task for task in TASKS if able[task])


def texts_of(data: DataSet, task: Task) -> int:
    """About how many texts a task encodes: prompts, or captions if all images have as many as the first."""
    source = data.test
    if task == "zero_shot":
        return len(source.classnames or ()) * len(source.templates or TEMPLATES)
    if task == "retrieval":
        first = first_readable(source)
        return len(source) * len(first.captions) if first else 0
    return len(data.split("pairs")) if task == "fine_grained" else 0


def unable(data: DataSet) -> dict[Task, str]:
    """Those of its tasks that a data set cannot serve, each with what it lacks."""
    able = served(data)
    if not able:  # nothing can be read: each task says so when it tries
        return {}
    return {task: SPECS[task].needs for task in data.tasks if task not in able}


def settings_of(task: Task, settings: Settings) -> tuple[object, ...]:
    """Those that change a task's result."""
    if "train" in SPECS[task].splits:
        repeated = (settings.repeats,) if task == "few_shot" and settings.repeats > 1 else ()
        return (settings.features, settings.seed if task == "few_shot" else None, *repeated)
    return (settings.sample, settings.seed) if SPECS[task].passes else ()
