"""Which of some labels a picture has: zero-shot classification of any pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diffclip.data.images import BadImage
from diffclip.data.sources import Source, place_of
from diffclip.errors import UserError
from diffclip.evaluation.features.encode import class_embeddings
from diffclip.models.image_text import ImageTextModel
from diffclip.use.encoder import Encoder, Precision, encoder_of
from diffclip.use.pictures import open_pictures, read
from diffclip.use.upright import of_pillow

AS_THEY_ARE = ("{c}",)
NONE = "none of these"

Given = str | Path | Image.Image | NDArray[np.uint8]


@dataclass(frozen=True)
class Classified:
    """A picture and what each label has of it."""

    picture: str
    """Its path, or where it lies; "image N" where it was given as pixels."""
    labels: tuple[str, ...]
    probabilities: NDArray[np.float32]
    """(labels,). Of a softmax model they add up to 1, however little any label fits; a sigmoid model, such as SigLIP,
    judges each label by itself. Not-a-number where the picture could not be read."""
    cosines: NDArray[np.float32]
    """(labels,): of the picture's feature and the label's."""
    problem: str | None = None
    """Why the picture could not be read."""

    def top(self, count: int = 1, threshold: float = 0.0) -> list[tuple[str, float]]:
        """The most probable labels with their probabilities; of these, none below the threshold."""
        if self.problem is not None:
            return []
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        found = [(self.labels[i], float(self.probabilities[i])) for i in order]
        return [(label, probability) for label, probability in found if probability >= threshold]


class Classifier:
    """Labels as a model reads them, ready for any number of pictures."""

    def __init__(self, encoder: Encoder, labels: Sequence[str], templates: Sequence[str] = AS_THEY_ARE) -> None:
        """Raises UserError for no label, an empty one or one that is given twice, and for a template without {c}."""
        self.labels = checked_labels(labels)
        self.encoder = encoder
        model = encoder.model
        with torch.inference_mode():
            self._weights = class_embeddings(model, model.tokenizer, self.labels, templates).numpy()
            self._scale = float(model.logit_scale.exp())
            bias = getattr(model, "logit_bias", None)
            self._bias = None if bias is None else float(bias)

    def scores(self, features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Features (N, embed_dim), normalised → probabilities and cosines, (N, labels) each."""
        cosines = features @ self._weights.T
        logits = self._scale * cosines.astype(np.float64)
        if self._bias is not None:
            probabilities = 1 / (1 + np.exp(-(logits + self._bias)))
        else:
            exponentials = np.exp(logits - logits.max(1, keepdims=True))
            probabilities = exponentials / exponentials.sum(1, keepdims=True)
        return probabilities.astype(np.float32), cosines

    def of(self, source: Source) -> Iterator[Classified]:
        """Every picture of a source, in its order, those that cannot be read too."""
        problems: dict[int, str] = {}

        def pixels(index: int) -> torch.Tensor | None:
            try:
                return self.encoder.pixels(read(source, index).image)
            except BadImage as error:
                problems[index] = error.reason
                return None

        for batch in self.encoder.stream(range(len(source)), pixels):
            probabilities, cosines = self.scores(batch.features)
            for index, row in zip(batch.items, batch.rows, strict=True):
                name = place_of(source, index)
                if row is None:
                    unknown = np.full(len(self.labels), np.nan, np.float32)
                    yield Classified(name, self.labels, unknown, unknown, problems.pop(index))
                else:
                    yield Classified(name, self.labels, probabilities[row], cosines[row])


def checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels without the white space around them. Raises UserError for none, an empty or a repeated one."""
    stripped = tuple(label.strip() for label in labels)
    if not stripped:
        raise UserError('no labels: give --labels "a cat" "a dog", or --labels-file FILE with one a line')
    if not all(stripped):
        raise UserError(f"label {stripped.index('') + 1} is empty: leave it out")
    repeated = next((label for label in stripped if stripped.count(label) > 1), None) if _repeats(stripped) else None
    if repeated is not None:
        raise UserError(f"the label {repeated!r} is given twice: give it once")
    return stripped


def _repeats(labels: Sequence[str]) -> bool:
    return len(set(labels)) != len(labels)


def classify(
    model: str | Path | ImageTextModel,
    images: Given | Iterable[Given],
    labels: Sequence[str],
    *,
    templates: Sequence[str] = AS_THEY_ARE,
    precision: Precision = "float32",
) -> list[Classified]:
    """Which of some labels each picture has, by a model that has not been trained on them.

    Args:
        model: What `diffclip.load` takes, or a model that it gave.
        images: Paths, folders, patterns, shards, as `diffclip classify` takes them; Pillow's images; arrays (H, W, 3)
            uint8. One or several.
        labels: What to choose from, each once.
        templates: `{c}` stands for the label. With several, a label's feature is the normalised mean of theirs.
        precision: "float32", "bfloat16" or "int8", of a model that is still to be loaded.

    Returns: one `Classified` a picture, in their order. Raises UserError for what is not there, for no label, for
        labels that are empty or repeated, and for a precision of a model that is loaded.
    """
    given = [images] if isinstance(images, (str, Path, Image.Image, np.ndarray)) else list(images)
    classifier = Classifier(encoder_of(model, precision), labels, templates)
    found: list[Classified] = []
    for number, image in enumerate(given, start=1):
        if isinstance(image, (str, Path)):
            found += classifier.of(open_pictures([str(image)]))
        else:
            found.append(_of_pixels(classifier, image, f"image {number}"))
    if not found:
        raise UserError("no pictures to classify")
    return found


def _of_pixels(classifier: Classifier, image: Image.Image | NDArray[np.uint8], name: str) -> Classified:
    try:
        array = of_pillow(image) if isinstance(image, Image.Image) else image
        features = classifier.encoder.images([classifier.encoder.pixels(array)])
    except BadImage as error:
        unknown = np.full(len(classifier.labels), np.nan, np.float32)
        return Classified(name, classifier.labels, unknown, unknown, error.reason)
    probabilities, cosines = classifier.scores(features)
    return Classified(name, classifier.labels, probabilities[0], cosines[0])
