"""Do the two maps of differential attention share noise? Correlation and entropy of A1 and A2, layer by layer.

The subtraction A1 − λA2 can cancel only what both maps hold. If what they share is noise, they should be more alike on
cluttered and noisy inputs than on clean ones; this measures it on the same images in three conditions, for the image
tower. docs/analysis.md has the equations and how the numbers can mislead.
"""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffclip.data.images import BadImage, decode
from diffclip.data.sources import Example, Subset
from diffclip.data.transforms import EvalTransform, normalise
from diffclip.errors import UserError
from diffclip.evaluation.features.context import EvalContext
from diffclip.evaluation.features.pixels import sample_indices
from diffclip.evaluation.results import PerExampleScores
from diffclip.evaluation.stats.bootstrap import Interval, mean_interval
from diffclip.evaluation.task import Metric, Task
from diffclip.models.attention.forms import AttentionMaps
from diffclip.models.clip import CLIP, evaluation_mode, our_own
from diffclip.models.maps import forward_with_maps

log = logging.getLogger(__name__)

CONDITIONS = ("clean", "cluttered", "noisy")
METRICS = ("a1_a2_correlation", "a1_entropy", "a2_entropy")
SIGMA = 0.2
# A row of a map whose standard deviation is this share of its mean, or less, is flat: it correlates with nothing.
FLAT = 1e-5


class ImageSource(Protocol):
    """What is needed of a data set: images, without captions or labels."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@runtime_checkable
class ClutteredSource(Protocol):
    """A source that can put more into its own images, as drawn scenes can."""

    def cluttered(self, index: int) -> NDArray[np.uint8]: ...


def evaluate(
    model: CLIP,
    source: ImageSource,
    *,
    limit: int | None = None,
    sigma: float = SIGMA,
    seed: int = 0,
    batch_size: int = 16,
    on_progress: Callable[[int], None] = lambda done: None,
) -> PerExampleScores:
    """`METRICS` on the first `limit` images of a source (None: all), by image, for each of `CONDITIONS`.

    Named `a1_a2_correlation/layer_01/noisy`, with layers counted from 1 at the input, and `a1_a2_correlation_noisy` for
    the mean of the layers. In a layer of standard attention A1 and A2 are the heads 2i and 2i + 1, which differential
    attention would pair; a last odd head is left out, and with a single head there is nothing to measure.

    The conditions: the image as the model sees it; with clutter (the source's own where it is a `ClutteredSource`, else
    `paste_distractors`); with Gaussian noise of standard deviation `sigma` in units of the full range of a pixel,
    rounded and clipped to what an image can hold. They depend on (seed, index) alone, so both models see the same
    pixels. Images that cannot be read are left out, with a warning.

    Raises UserError where no image can be read, for a single image, which has no others to paste, and for a sigma
    of 0 or less. So it does for a model whose image tower has no two heads in any layer.
    """
    if not sigma > 0:
        raise UserError(f"sigma = {sigma}: the noise needs a standard deviation above 0, such as {SIGMA}")
    if len(source) < 2 and not isinstance(source, ClutteredSource):
        raise UserError(f"{source.name} holds {len(source)} images: clutter is made of others, so give two or more")
    config, device = model.config, next(model.parameters()).device
    views = _Views(source, config.transform, sigma, seed)
    count = len(source) if limit is None else min(limit, len(source))
    indices: list[int] = []
    parts_of: dict[str, list[Tensor]] = defaultdict(list)
    for start in range(0, count, batch_size):
        batch = {index: seen for index in range(start, min(start + batch_size, count)) if (seen := views(index))}
        indices += list(batch)
        for place, condition in enumerate(CONDITIONS if batch else ()):
            pixels = torch.stack([seen[place] for seen in batch.values()]).to(device)
            measured = _measure_batch(model, normalise(pixels, config.image_mean, config.image_std))
            for name, of_batch in measured.items():
                parts_of[f"{name}/{condition}"].append(of_batch)
        on_progress(min(start + batch_size, count))
    if len(indices) < count:
        log.warning("%s: %d of %d images could not be read and were left out", source.name, count - len(indices), count)
    if not indices:
        raise UserError(f"{source.name}: none of its first {count} images can be read")
    if not parts_of:
        raise UserError("this model's image tower has no two heads in a layer, so there are no maps to compare")
    values = {name: torch.cat(parts) for name, parts in parts_of.items()}
    for metric in METRICS:
        for condition in CONDITIONS:
            layers = [v for name, v in values.items() if name.startswith(metric) and name.endswith(f"/{condition}")]
            values[f"{metric}_{condition}"] = torch.stack(layers).nanmean(0)
    skipped = Counter(reason for index, reason in views.unreadable.items() if index < count)
    measured = {name: v for name, v in values.items() if not v.isnan().all()}
    return PerExampleScores(torch.tensor(indices), measured, {}, skipped=skipped)


def _measure_batch(model: CLIP, pixels: Tensor) -> dict[str, Tensor]:
    """`METRICS` by layer of a batch (B, 3, S, S): name → (B,) float64 on the CPU."""
    with evaluation_mode(model), torch.no_grad():
        _, maps = forward_with_maps(model.visual, pixels)
    measured = {}
    for layer, recorded in enumerate(maps, start=1):
        pair = pairs(recorded)
        if pair is not None:
            a1, a2 = (attention.double() for attention in pair)  # (B, pairs, N, N)
            for name, values in zip(METRICS, (correlation(a1, a2), entropy(a1), entropy(a2)), strict=True):
                measured[f"{name}/layer_{layer:02d}"] = values.cpu()
    return measured


def pairs(maps: AttentionMaps) -> tuple[Tensor, Tensor] | None:
    """A1 and A2, (B, pairs, N, N) each; of standard attention its heads 2i and 2i + 1; None if there are not two."""
    if maps.a2 is not None:
        return maps.a1, maps.a2
    even = maps.a1.shape[1] // 2 * 2
    return (maps.a1[:, 0:even:2], maps.a1[:, 1:even:2]) if even else None


def correlation(a1: Tensor, a2: Tensor) -> Tensor:
    """(B,): Pearson's correlation of A1 and A2 over the keys of one row, averaged over rows and heads.

    a1, a2: (B, pairs, N, N), rows summing to 1. A row is one query's weights, which both maps spend on the same N keys;
    rows of patches and of the class token count alike. Rows that are flat in either map (`FLAT`) are left out; NaN
    where all are.
    """
    keys = a1.shape[-1]
    c1, c2 = (a - a.mean(-1, keepdim=True) for a in (a1, a2))
    s1, s2 = (c.square().mean(-1).sqrt() for c in (c1, c2))  # (B, pairs, N)
    flat = torch.minimum(s1, s2) <= FLAT / keys
    rows: Tensor = (c1 * c2).mean(-1) / (s1 * s2).masked_fill(flat, torch.nan)
    return rows.flatten(1).nanmean(1)


def entropy(attention: Tensor) -> Tensor:
    """(B,): entropy of rows as a share of the largest possible, log N, averaged over rows and heads: in [0, 1].

    attention: (B, heads, N, N), rows summing to 1. 1 is a query that sees all keys alike, 0 one that sees one key.
    """
    keys = attention.shape[-1]
    rows: Tensor = torch.special.entr(attention).sum(-1)  # (B, heads, N)
    return rows.flatten(1).mean(1) / math.log(max(keys, 2))


class _Views:
    """An image in each of `CONDITIONS`, as the model would see it: (3, S, S) uint8 each; None if it is unreadable."""

    def __init__(self, source: ImageSource, transform: EvalTransform, sigma: float, seed: int) -> None:
        self._source, self._transform, self._sigma, self._seed = source, transform, sigma, seed
        self.unreadable: dict[int, str] = {}  # image → why

    def __call__(self, index: int) -> tuple[Tensor, Tensor, Tensor] | None:
        clean = self._pixels(index)
        if clean is None:
            return None
        if isinstance(self._source, ClutteredSource):
            cluttered = self._transform(self._source.cluttered(index))
        else:
            cluttered = paste_distractors(
                clean, self._distractors(index), np.random.default_rng((self._seed, index, 0))
            )
        noise = np.random.default_rng((self._seed, index, 1)).standard_normal(clean.shape)
        noisy = (clean + 255 * self._sigma * torch.from_numpy(noise)).round().clamp(0, 255).to(torch.uint8)
        return clean, cluttered, noisy

    def _pixels(self, index: int) -> Tensor | None:
        try:
            return self._transform(decode(self._source[index].image))
        except BadImage as bad:
            self.unreadable[index] = bad.reason
            return None

    def _distractors(self, index: int) -> Iterator[Tensor]:
        """The other images of the source, in a random order, from the seed."""
        others = np.random.default_rng((self._seed, index, 2)).permutation(len(self._source) - 1)
        return (seen for other in others if (seen := self._pixels(int(other) + (other >= index))) is not None)


def paste_distractors(image: Tensor, distractors: Iterator[Tensor], rng: np.random.Generator) -> Tensor:
    """An image (3, S, S) uint8 with up to four others, each shrunk to a quarter of its side, pasted near its corners.

    Each lies at random within 3/8 of the side from a corner, so that the middle of the image stays free.
    """
    side = image.shape[-1]
    small, room = side // 4, side // 8
    shrink = EvalTransform(small)
    image = image.clone()
    for corner, other in zip(range(4), distractors, strict=False):
        down, across = (int(rng.integers(room + 1)) for _ in range(2))
        top = down if corner < 2 else side - small - down
        left = across if corner % 2 == 0 else side - small - across
        image[:, top : top + small, left : left + small] = shrink(np.ascontiguousarray(other.permute(1, 2, 0).numpy()))
    return image


@dataclass(frozen=True)
class Row:
    """One layer in one condition, of one of `METRICS`."""

    metric: str
    layer: int
    """Counted from 1 at the input."""
    condition: str
    value: Interval
    change: Interval | None
    """By how much it is more than on the same images clean; None for "clean"."""


def table(measured: PerExampleScores) -> list[Row]:
    """What `examples` measured, by metric, layer and condition, with 95 % bootstrap intervals over the images."""
    rows = []
    for name, values in measured.values.items():
        metric, *place = name.split("/")
        if len(place) == 2 and not values.isnan().all():
            layer, condition = place
            change = None
            if condition != CONDITIONS[0]:
                change = _interval(values - measured.values[f"{metric}/{layer}/{CONDITIONS[0]}"])
            number = int(layer.removeprefix("layer_"))
            rows.append(Row(metric, number, condition, _interval(values), change))
    return sorted(rows, key=lambda row: (METRICS.index(row.metric), row.layer, CONDITIONS.index(row.condition)))


def _interval(values: Tensor) -> Interval:
    return mean_interval(values[~values.isnan()].double().numpy())


def _measure(context: EvalContext) -> PerExampleScores:
    model, source, settings = our_own(context.model, "noise"), context.data.test, context.settings
    if isinstance(source, ClutteredSource):
        return evaluate(model, source, limit=settings.sample, seed=settings.seed, on_progress=context.on_sample)
    # Drawn, because the first images of a folder of classes are all of one class.
    drawn = np.array(sample_indices(source, settings.sample, settings.seed))
    sample = Subset(source, drawn, "sample")
    scores = evaluate(model, sample, seed=settings.seed, on_progress=context.on_sample)
    return replace(scores, indices=torch.from_numpy(drawn)[scores.indices])


TASK = Task(
    name="noise",
    title="noise",
    result="noise",
    needs="images",
    requires=("images",),
    settings=("sample", "seed"),
    passes=3 * 2,
    metrics=tuple(
        Metric(pattern, title, unit="", better=None)
        for metric, title in zip(METRICS, ("a1 a2 correlation", "a1 entropy", "a2 entropy"), strict=True)
        for pattern, title in (
            *((f"{metric}_{condition}", f"{title} {condition}") for condition in CONDITIONS),
            (f"{metric}/*/*", f"{title}/{{}}/{{}}"),
        )
    ),
    measure=_measure,
)
