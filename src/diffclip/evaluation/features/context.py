"""One model on one data set: the features that tasks read, each made when it is first asked for, and once."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from diffclip.data.classes import class_difference
from diffclip.data.sources import TEMPLATES
from diffclip.errors import UserError
from diffclip.evaluation.datasets.dataset import DataSet
from diffclip.evaluation.features.cache import FeatureCache
from diffclip.evaluation.features.encode import ImageFeatures, class_embeddings, image_features, text_features
from diffclip.evaluation.results import ImagesRead
from diffclip.models.image_text import ImageTextModel, Tokenize

log = logging.getLogger(__name__)


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

    def values_of(self, names: Sequence[str | None]) -> tuple[object, ...]:
        """The values of some fields, as fingerprints of results have them; None has None.

        `repeats` came later than the first results did, so it counts only where it is not 1.
        """
        return tuple(name and getattr(self, name) for name in names if name != "repeats" or self.repeats > 1)


class EvalContext:
    """One model on one data set: what tasks read, each made when it is first asked for, and once."""

    def __init__(
        self,
        model: ImageTextModel,
        data: DataSet,
        settings: Settings,
        *,
        cache: FeatureCache | None = None,
        weights: str | None = None,
        on_images: Callable[[str, int], None] = lambda split, done: None,
        on_sample: Callable[[int], None] = lambda done: None,
        on_texts: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.model, self.data, self.settings = model, data, settings
        # Are given how many images of the sample a task is done with, and how many of how many texts.
        self.on_sample, self._on_texts = on_sample, on_texts
        self._cache, self._weights, self._on_images = cache, weights, on_images
        self._features: dict[str, ImageFeatures] = {}
        self._told: set[str] = set()  # splits of whose labels something was said

    def has(self, split: str) -> bool:
        """Whether the features of a split are at hand."""
        return split in self._features

    def features(self, split: str = "test") -> ImageFeatures:
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

    def images_read(self, splits: Sequence[str]) -> dict[str, ImagesRead]:
        """How many images of each of some splits were read, of those whose features are at hand."""
        return {
            split: ImagesRead(
                n=len(features.indices),
                n_expected=len(features.indices) + features.skipped.total(),
                skipped=dict(sorted(features.skipped.items())),
            )
            for split in splits
            if (features := self._features.get(split)) is not None
        }

    @property
    def skipped(self) -> Counter[str]:
        """Images that could not be read, by reason, of all splits that were read."""
        return sum((features.skipped for features in self._features.values()), Counter[str]())

    @cached_property
    def class_embeddings(self) -> Tensor:
        """(classes, embed_dim), normalised: of the data set's own classes, in its own templates."""
        source = self.data.test
        return class_embeddings(
            self.model,
            self.tokenizer,
            source.classnames or (),
            source.templates or TEMPLATES,
            on_progress=self._on_texts,
        )

    @property
    def tokenizer(self) -> Tokenize:
        return self.model.tokenizer

    def captions(self, split: str = "test") -> tuple[Tensor, Tensor]:
        """Features of all captions (T, embed_dim), and the row of each one's image (T,).

        Raises UserError where no image has a caption.
        """
        images = self.features(split)
        name, without = self.data.split(split).name, sum(not of_image for of_image in images.captions)
        if without == len(images.captions):
            raise UserError(f"no image of {name} has a caption")
        if without:
            log.warning(
                "%s: %d of %d images have no caption: they are only candidates",
                name,
                without,
                len(images.captions),
            )
        captions = [caption for of_image in images.captions for caption in of_image]
        owner = torch.tensor([row for row, of_image in enumerate(images.captions) for _ in of_image])
        return text_features(self.model, self.tokenizer, captions, on_progress=self._on_texts), owner

    def with_labels(self, split: str = "test") -> tuple[ImageFeatures, Tensor]:
        """The features of a split, and which of its images have a label (N,) bool.

        Class names may lack, but not some of them. Raises UserError for that, or where no image has a label.
        """
        source, images = self.data.split(split), self.features(split)
        own, tested = source.classnames, self.data.test.classnames
        if own and tested and own != tested:
            difference = class_difference(split, own, "test", tested) if set(own) != set(tested) else ""
            raise UserError(
                f"{source.name} has other classes than {self.data.test.name}: the same folders are needed"
                + (f" ({difference})" if difference else "")
            )
        classes = len(own or tested or ())
        if classes and int(images.labels.max()) >= classes:
            raise UserError(f"{source.name} has the label {int(images.labels.max())}, but only {classes} class names")
        has_label = images.labels >= 0
        if not has_label.any():
            raise UserError(f"no image of {source.name} has a label")
        if split not in self._told:
            self._told.add(split)
            if unlabelled := int((~has_label).sum()):
                log.warning(
                    "%s: %d of %d images have no label, and are left out", source.name, unlabelled, len(has_label)
                )
            # Every class but the first has images: of few images by chance one class would be missing, or several.
            if classes > 2 and torch.equal(torch.unique(images.labels[has_label]), torch.arange(1, classes)):
                log.warning("%s: no image has the label 0: do its labels count from 1?", source.name)
        return images, has_label

    def features_and_labels(self, split: str) -> tuple[Tensor, Tensor, Tensor]:
        """What a classifier learns from or is tested on: of the images of a split that have a label.

        Returns features (N, width or embed_dim by `Settings.features`) on the model's device, labels (N,) int64, and
        the place (N,) of each image in the source.
        """
        images, has_label = self.with_labels(split)
        x = images.tower if self.settings.features == "tower" else images.features
        device = next(self.model.parameters()).device
        return x[has_label].to(device), images.labels[has_label], images.indices[has_label]

    @property
    def on_changed_images(self) -> dict[str, Any]:
        """Arguments of the tasks that encode changed images of a sample: how many, by which seed, how at a time."""
        settings = self.settings
        return {
            "seed": settings.seed,
            "limit": settings.sample,
            "batch_size": settings.batch_size,
            "num_workers": settings.num_workers,
            "on_progress": self.on_sample,
        }
