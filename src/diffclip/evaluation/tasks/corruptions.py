"""Zero-shot accuracy and error on images with common corruptions: noise, blur, weather, compression (ImageNet-C).

As there, an image is resized and cropped first and corrupted at the size that the model sees. The corrupted image
depends on the seed, the image's place in the source, the kind and the severity alone: all models of one size see the
same. How the numbers can mislead is in docs/robustness.md.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffclip.data.sources import TEMPLATES, Source
from diffclip.data.transforms import normalise
from diffclip.errors import UserError
from diffclip.evaluation.corruption.kinds import FUNCTIONS, corrupt
from diffclip.evaluation.corruption.strengths import SEVERITIES
from diffclip.evaluation.features.context import EvalContext
from diffclip.evaluation.features.decode import Decoded, DecodedImage, DecodedImages
from diffclip.evaluation.features.encode import Tokenize, class_embeddings
from diffclip.evaluation.features.pixels import batches, classnames_of, sample_indices
from diffclip.evaluation.results import PerExampleScores
from diffclip.evaluation.stats.ratio import ratio_values
from diffclip.evaluation.task import Metric, Task
from diffclip.evaluation.tasks import zero_shot
from diffclip.models.clip import evaluation_mode
from diffclip.models.image_text import ImageTextModel

KINDS = tuple(FUNCTIONS)
# AlexNet's mean error over the five severities of each kind of ImageNet-C, to which the authors scale errors (Hendrycks
# & Dietterich 2019, whose Table 1 has it rounded: 88.6, 89.4, 92.3, …).
ALEXNET_ERROR = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def evaluate(
    model: ImageTextModel,
    tokenizer: Tokenize,
    source: Source,
    *,
    kinds: Sequence[str] = KINDS,
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    limit: int | None = 500,
    batch_size: int = 256,
    num_workers: int = 0,
    on_progress: Callable[[int], None] = lambda done: None,
) -> PerExampleScores:
    """`acc1`, the mean over kinds and severities; `acc1/clean`; `acc1/<kind>/<severity>` and the mean `acc1/<kind>`.

    `relative_acc1` is `acc1` as a share of `acc1/clean`, a ratio of two means over the same images (`ratio_values`). It
    is left out where no clean image is right.

    `mce`, of all kinds and severities only, is the mean corruption error of Hendrycks & Dietterich 2019, as a fraction:
    the mean over kinds c of Σ_s E(c, s) / Σ_s A(c, s), with E the model's error at severity s and A AlexNet's. Lower is
    better, and more than 1 is worse than AlexNet. A is of ImageNet's 1,000 classes in 224 pixels: on other data `mce`
    only weighs the kinds as ImageNet-C does, and is not to be set beside published scores. Nor is frost, which is drawn
    here, the authors'.

    limit: this many images, drawn by `seed`. batch_size: how many images, clean and corrupted, are encoded at a time.
    Raises UserError for an unknown kind or severity, and for a data set without class names or labels.
    """
    _check(kinds, severities)
    config = model.config
    device = next(model.parameters()).device
    variants = [(kind, severity) for kind in dict.fromkeys(kinds) for severity in sorted(set(severities))]
    images = CorruptedImages(DecodedImages(source, config.transform), variants, seed)
    indices = sample_indices(source, limit, seed)
    skipped: Counter[str] = Counter()
    embeddings = class_embeddings(model, tokenizer, classnames_of(source), source.templates or TEMPLATES)
    hits: list[Tensor] = []
    rows: list[Tensor] = []
    together = max(1, batch_size // (1 + len(variants)))
    with evaluation_mode(model), torch.no_grad():
        for batch in batches(source, images, indices, together, num_workers, skipped):
            views = torch.split(batch.pixels.flatten(0, 1), batch_size)  # B (1 + V) images
            features = torch.cat(
                [
                    model.encode_image(
                        normalise(view.to(device), config.image_mean, config.image_std), normalize=True
                    ).float()
                    for view in views
                ]
            ).cpu()
            labels = batch.labels.repeat_interleave(1 + len(variants))
            right = zero_shot.scores(features, labels, embeddings)["acc1"]
            hits.append(right.view(len(batch.labels), 1 + len(variants)))
            rows.append(batch.indices)
            on_progress(sum(map(len, rows)))
    values = summarise(torch.cat(hits), variants)
    guess = 1 / len(classnames_of(source))
    chance = dict.fromkeys(values, guess)
    if "relative_acc1" in values:
        chance["relative_acc1"] /= values["acc1/clean"].mean().item()
    if "mce" in values:
        chance["mce"] = sum((1 - guess) / error for error in ALEXNET_ERROR.values()) / len(ALEXNET_ERROR)
    return PerExampleScores(torch.cat(rows), values, chance, skipped=skipped)


def summarise(hits: Tensor, variants: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
    """Metrics by image, (N,) float64, from hits (N, 1 + variants): clean, then each kind and severity."""
    clean, corrupted = hits[:, 0], hits[:, 1:]
    values = {"acc1": corrupted.mean(1), "acc1/clean": clean}
    if clean.any():
        values["relative_acc1"] = ratio_values(values["acc1"], clean)
    for kind in dict.fromkeys(kind for kind, _ in variants):
        columns = [column for column, variant in enumerate(variants) if variant[0] == kind]
        values[f"acc1/{kind}"] = corrupted[:, columns].mean(1)
    for column, (kind, severity) in enumerate(variants):
        values[f"acc1/{kind}/{severity}"] = corrupted[:, column]
    if len(variants) == len(KINDS) * len(SEVERITIES):
        errors = [(1 - values[f"acc1/{kind}"]) / error for kind, error in ALEXNET_ERROR.items()]
        values["mce"] = torch.stack(errors).mean(0)
    return values


class CorruptedImages(Dataset[Decoded]):
    """Each image clean, and after it corrupted in each way: (1 + variants, 3, S, S) uint8."""

    def __init__(self, images: DecodedImages, variants: Sequence[tuple[str, int]], seed: int) -> None:
        self._images, self._variants, self._seed = images, variants, seed

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Decoded:
        item = self._images[index]
        if not isinstance(item, DecodedImage):
            return item
        image = item.pixels.permute(1, 2, 0).numpy()  # (S, S, 3)
        views = [image] + [
            corrupt(image, kind, severity, generator(self._seed, item.index, kind, severity))
            for kind, severity in self._variants
        ]
        pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
        return DecodedImage(item.index, pixels, item.label, item.captions)


def generator(seed: int, index: int, kind: str, severity: int) -> np.random.Generator:
    """Of one corrupted image; it does not depend on which other kinds there are."""
    return np.random.default_rng((seed, index, zlib.crc32(kind.encode()), severity))


def _check(kinds: Sequence[str], severities: Sequence[int]) -> None:
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"unknown corruption {kind!r}: choose among {', '.join(KINDS)}")
    for severity in severities:
        if severity not in SEVERITIES:
            raise UserError(f"severity {severity} must be one of {', '.join(map(str, SEVERITIES))}")
    if not kinds or not severities:
        raise UserError("no corruption to measure: give at least one kind and one severity")


def _measure(context: EvalContext) -> PerExampleScores:
    return evaluate(context.model, context.tokenizer, context.data.test, **context.on_changed_images)


TASK = Task(
    name="corruptions",
    title="corruptions",
    result="corruptions",
    needs="labels and class names",
    requires=("labels",),
    settings=("sample", "seed"),
    passes=1 + len(KINDS) * len(SEVERITIES),
    metrics=(
        Metric("acc1", "top-1 accuracy"),
        Metric("relative_acc1", "share of the clean accuracy"),
        Metric("mce", "mean corruption error, AlexNet's = 100", better="down"),
        Metric("acc1/*", "acc1/{}", compared=False),
        Metric("acc1/*/*", "acc1/{}/{}", compared=False),
    ),
    measure=_measure,
    version=2,
)
