"""The tasks: what each needs of a data set, and how it is measured on one model."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from diffclip.data.sources import TEMPLATES, Subset
from diffclip.data.tokenizer import Tokenizer, get_tokenizer
from diffclip.errors import UserError
from diffclip.evaluation import corruptions, few_shot, fine_grained, linear_probe, retrieval, robustness, zero_shot
from diffclip.evaluation.feature_cache import FeatureCache
from diffclip.evaluation.features import ImageFeatures, image_features, text_features
from diffclip.evaluation.fine_grained import PairImages
from diffclip.evaluation.labelled import chosen
from diffclip.evaluation.results import Examples
from diffclip.evaluation.seeds import spread
from diffclip.evaluation.splits import DataSet, Split, Task, first_readable
from diffclip.models.clip import CLIP

TASKS: tuple[Task, ...] = get_args(Task)

RETRIEVAL_KS = (1, 5, 10)
ATTACK_PASSES = 1 + 3 + len(robustness.EPSILONS) * (1 + 10 * 3)
"""Clean, FGSM's gradient, and for each ε FGSM's image and ten steps of PGD; fewer where images are broken early."""
GROUNDING_PASSES = 2 * 3 + 8**2 + 1
"""Relevance of about two phrases an image, and the image whole and with each of 8 × 8 cells covered."""
CORRUPTED_PASSES = 1 + len(corruptions.KINDS) * len(corruptions.SEVERITIES)


@dataclass(frozen=True)
class Settings:
    """How images are read, and the choices that a protocol leaves."""

    batch_size: int = 256
    num_workers: int = 0
    features: Literal["tower", "joint"] = "tower"
    """What is learned from: the image tower's features before the joint projection, or those after it."""
    sample: int | None = 500
    """How many images the tasks that encode changed images look at; None: all."""
    seed: int = 0
    """Of what is drawn: that sample, few-shot episodes, attacks, corruptions, noise."""
    repeats: int = 1
    """How often few-shot draws its episodes anew, with this seed and those after it."""

    def of(self, task: Task) -> tuple[object, ...]:
        """Those that change a task's result."""
        if "train" in SPECS[task].splits:
            repeated = (self.repeats,) if task == "few_shot" and self.repeats > 1 else ()
            return (self.features, self.seed if task == "few_shot" else None, *repeated)
        return (self.sample, self.seed) if SPECS[task].passes else ()


class Subject:
    """One model on one data set: what tasks read, each made when it is first asked for, and once."""

    def __init__(
        self,
        model: CLIP,
        data: DataSet,
        settings: Settings,
        *,
        cache: FeatureCache | None = None,
        weights: str | None = None,
        on_images: Callable[[Split, int], None] = lambda split, done: None,
        on_sample: Callable[[int], None] = lambda done: None,
    ) -> None:
        self.model, self.data, self.settings = model, data, settings
        self.on_sample = on_sample  # is given how many images of the sample a task is done with
        self._cache, self._weights, self._on_images = cache, weights, on_images
        self._features: dict[Split, ImageFeatures] = {}

    def has(self, split: Split) -> bool:
        """Whether the features of a split are at hand."""
        return split in self._features

    def features(self, split: Split = "test") -> ImageFeatures:
        """The image features of a split."""
        if split not in self._features:
            self._features[split] = image_features(
                self.model,
                self.data.split(split),
                batch_size=self.settings.batch_size,
                num_workers=self.settings.num_workers,
                on_progress=lambda done: self._on_images(split, done),
                cache=self._cache,
                weights=self._weights,
            )
        return self._features[split]

    @property
    def skipped(self) -> Counter[str]:
        """Images that could not be read, by reason, of all splits that were read."""
        return sum((found.skipped for found in self._features.values()), Counter[str]())

    @cached_property
    def class_embeddings(self) -> Tensor:
        """(classes, embed_dim), normalised: of the data set's own classes, in its own templates."""
        source = self.data.test
        return zero_shot.class_embeddings(
            self.model, self.tokenizer, source.classnames or (), source.templates or TEMPLATES
        )

    @property
    def tokenizer(self) -> Tokenizer:
        return get_tokenizer(self.model.config.context_length)

    def captions(self, split: Split = "test") -> tuple[Tensor, Tensor]:
        """Features of all captions (T, embed_dim), and the row of each one's image (T,)."""
        images = self.features(split)
        captions = [caption for of_image in images.captions for caption in of_image]
        owner = torch.tensor([row for row, of_image in enumerate(images.captions) for _ in of_image])
        return text_features(self.model, self.tokenizer, captions), owner

    def labelled(self, split: Split = "test") -> tuple[ImageFeatures, Tensor]:
        """The features of a split, and which of its images have a label (N,) bool.

        Raises UserError where a label has no class name, or no image has a label.
        """
        source, images = self.data.split(split), self.features(split)
        own, tested = source.classnames, self.data.test.classnames
        if own and tested and own != tested:
            raise UserError(f"{source.name} has other classes than {self.data.test.name}: the same folders are needed")
        classes = len(own or tested or ())
        if int(images.labels.max()) >= classes:
            raise UserError(f"{source.name} has the label {int(images.labels.max())}, but only {classes} class names")
        labelled = images.labels >= 0
        if not labelled.any():
            raise UserError(f"no image of {source.name} has a label")
        return images, labelled


def _zero_shot(subject: Subject) -> Examples:
    images, labelled = subject.labelled()
    values = zero_shot.scores(images.features[labelled], images.labels[labelled], subject.class_embeddings)
    return Examples(images.indices[labelled], values, zero_shot.chance(len(subject.class_embeddings)))


def _retrieval(subject: Subject) -> Examples:
    """By image, which is what was sampled: the captions of one image are not independent of each other."""
    images, (features, owner) = subject.features(), subject.captions()
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


def _linear_probe(subject: Subject) -> Examples:
    train_x, train_y, _ = _learned(subject, "train")
    val_x, val_y, _ = _learned(subject, "val") if subject.data.has("val") else (None, None, None)
    test_x, test_y, indices = _learned(subject, "test")
    by_class = subject.data.mean_per_class
    probe = linear_probe.fit_and_predict(train_x, train_y, val_x, val_y, test_x, mean_per_class=by_class)
    return replace(linear_probe.examples(probe, test_y, indices, by_class), facts={"C": probe.C})


def _few_shot(subject: Subject) -> Examples:
    train_x, train_y, _ = _learned(subject, "train")
    test_x, test_y, _ = _learned(subject, "test")
    first, count = subject.settings.seed, subject.settings.repeats
    repeats = [
        few_shot.episode_accuracies(train_x, train_y, test_x, test_y, seed=seed) for seed in range(first, first + count)
    ]
    accuracies = torch.cat(repeats)
    facts = {"std": accuracies.std().item()}
    if (sd := spread([one.mean().item() for one in repeats]).sd) is not None:
        facts["acc1_sd"] = sd
    return replace(few_shot.examples(accuracies), facts=facts)


def _learned(subject: Subject, split: Split) -> tuple[Tensor, Tensor, Tensor]:
    """Features on the model's device, labels, places in the source, of a split's labelled images."""
    images, labelled = subject.labelled(split)
    x = images.tower if subject.settings.features == "tower" else images.features
    device = next(subject.model.parameters()).device
    return x[labelled].to(device), images.labels[labelled], images.indices[labelled]


def _fine_grained(subject: Subject) -> Examples:
    source = subject.data.split("pairs")
    assert isinstance(source, PairImages)
    return fine_grained.examples(source.pairs, subject.features("pairs"), subject.captions("pairs")[0])


def _grounding(subject: Subject) -> Examples:
    from diffclip.analysis import grounding  # which itself imports this package

    settings = subject.settings
    return grounding.examples(
        subject.model, cast(Any, subject.data.test), limit=settings.sample, on_progress=subject.on_sample
    )


def _noise(subject: Subject) -> Examples:
    from diffclip.analysis import noise

    source, settings = subject.data.test, subject.settings
    if isinstance(source, noise.ClutteredSource):
        return noise.examples(
            subject.model, source, limit=settings.sample, seed=settings.seed, on_progress=subject.on_sample
        )
    # Drawn, because the first images of a folder of classes are all of one class.
    drawn = np.array(chosen(source, settings.sample, settings.seed))
    sample = Subset(source, drawn, "sample")
    found = noise.examples(subject.model, sample, seed=settings.seed, on_progress=subject.on_sample)
    return replace(found, indices=torch.from_numpy(drawn)[found.indices])


def _robustness(subject: Subject) -> Examples:
    settings = subject.settings
    return robustness.examples(
        subject.model,
        subject.tokenizer,
        subject.data.test,
        seed=settings.seed,
        limit=settings.sample,
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        on_progress=subject.on_sample,
    )


def _corruptions(subject: Subject) -> Examples:
    settings = subject.settings
    return corruptions.examples(
        subject.model,
        subject.tokenizer,
        subject.data.test,
        seed=settings.seed,
        limit=settings.sample,
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        on_progress=subject.on_sample,
    )


@dataclass(frozen=True)
class Spec:
    """A task."""

    result: str
    """Its name in results."""
    needs: str
    splits: tuple[Split, ...]
    """The splits whose features it reads."""
    measure: Callable[[Subject], Examples]
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


def unable(data: DataSet) -> dict[Task, str]:
    """Those of its tasks that a data set cannot serve, each with what it lacks."""
    able = served(data)
    if not able:  # nothing can be read: each task says so when it tries
        return {}
    return {task: SPECS[task].needs for task in data.tasks if task not in able}
