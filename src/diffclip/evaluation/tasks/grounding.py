"""How well relevance maps find the thing that the text names, where a mask says which pixels show it.

Three scores without a threshold; docs/analysis.md has their equations. The pointing game is that of Zhang et al. 2018
("Top-down Neural Attention by Excitation Backprop"). Energy is the share of relevance inside the mask. Average
precision takes relevance as a ranking of the pixels. All say where a map of relevance lies, which is not proof of what
made the model decide.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffclip.analysis.occlusion import CELLS, occlusion
from diffclip.analysis.relevance import relevance
from diffclip.data.images import BadImage, decode
from diffclip.data.sources import Example
from diffclip.data.transforms import normalise
from diffclip.errors import UserError
from diffclip.evaluation.features.context import EvalContext
from diffclip.evaluation.results import PerExampleScores
from diffclip.evaluation.task import Metric, Task
from diffclip.models.image_text import ImageTextModel

log = logging.getLogger(__name__)

METRICS = ("pointing_game", "energy_in_mask", "average_precision")
OTHER_QUERY = "average_precision_of_other_query"
BY_OCCLUSION = tuple(f"{metric}_by_occlusion" for metric in METRICS)


class MaskedSource(Protocol):
    """Images, and for each the phrases that name something in it, with the pixels that show it."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def masks(self, index: int) -> Sequence[tuple[str, NDArray[np.bool_]]]:
        """Phrases and masks; a mask is (H, W) bool, of the size of the image."""
        ...


def evaluate(
    model: ImageTextModel,
    source: MaskedSource,
    *,
    limit: int | None = None,
    batch_size: int = 64,
    on_progress: Callable[[int], None] = lambda done: None,
) -> PerExampleScores:
    """`METRICS`, `OTHER_QUERY` and `BY_OCCLUSION` on the first `limit` images of a source (None: all), by image.

    An image counts the mean over its phrases. Phrases of which the cropped image shows no pixel are left out, and so
    are images without phrases; images that cannot be read are too, with a warning. `OTHER_QUERY` is the average
    precision of the maps of the image's other phrases on this phrase's mask, NaN where there is no other. A map that
    finds objects whatever the text scores as high there as on its own. `BY_OCCLUSION` are `METRICS` of the maps of
    `occlusion`, for comparing models that differ in their attention, to which relevance is not neutral. Chance: see
    `chance`.

    batch_size: images at a time. Raises UserError where no image has a phrase, or a mask has not the size of its image.
    """
    config, device = model.config, next(model.parameters()).device
    if config.resize == "longest" or config.resize_to:
        raise UserError(f"masks follow no image that is resized as {config.resize} to {config.resize_to}: no grounding")
    transform, tokenizer = config.transform, model.tokenizer
    count = len(source) if limit is None else min(limit, len(source))
    owners: list[int] = []
    values: list[Tensor] = []
    skipped: Counter[str] = Counter()
    unseen = named = 0  # phrases
    # Few enough images at a time that their pixels are no burden; an image has about two phrases.
    for start in range(0, count, batch_size):
        pixels: list[Tensor] = []
        phrases: list[str] = []
        covers: list[Tensor] = []
        coarse: list[Tensor] = []
        of_image: dict[int, list[int]] = defaultdict(list)  # image → its phrases in this batch
        for index in range(start, min(start + batch_size, count)):
            try:
                image = decode(source[index].image)
            except BadImage as bad:
                skipped[bad.reason] += 1
                continue
            for phrase, mask in source.masks(index):
                if mask.shape != image.shape[:2]:
                    sizes = " but its image ".join("×".join(map(str, shape)) for shape in (mask.shape, image.shape[:2]))
                    raise UserError(f"{source.name}: the mask of {phrase!r} in example {index} is {sizes} pixels")
                named += 1
                unseen += not mask.any()
                seen = cover(mask, *model.grid, resize=config.resize)
                if seen.any():
                    if index not in of_image:
                        pixels.append(transform(image))
                    of_image[index].append(len(phrases))
                    phrases.append(phrase)
                    covers.append(seen)
                    coarse.append(cover(mask, CELLS, CELLS, resize=config.resize))
        if phrases:
            batch = normalise(torch.stack(pixels).to(device), config.image_mean, config.image_std)
            tokens = tokenizer(phrases).to(device)
            owner = torch.tensor([n for n, rows in enumerate(of_image.values()) for _ in rows], device=device)
            maps = relevance(model, batch[owner], tokens).cpu()
            occluded = occlusion(model, batch, tokens, owner).cpu()
            values.append(_values(maps, torch.stack(covers), occluded, torch.stack(coarse), of_image))
            owners += list(of_image)
        on_progress(min(start + batch_size, count))
    if skipped:
        log.warning("%s: %d of %d images could not be read and were left out", source.name, skipped.total(), count)
    if unseen:
        log.warning("%s: %d of %d masks show no pixel, and are left out", source.name, unseen, named)
    if not owners:
        raise UserError(f"{source.name} names nothing in its first {count} images, so there is nothing to find")
    columns = torch.cat(values).unbind(1)
    names = (*METRICS, OTHER_QUERY, *BY_OCCLUSION)
    measured = dict(zip(names, columns, strict=False))
    level = dict(zip(names, columns[len(names) :], strict=True))
    return PerExampleScores(
        torch.tensor(owners),
        {name: measured[name] for name in names if not measured[name].isnan().all()},
        {name: level[name][~measured[name].isnan()].mean().item() for name in names},
        skipped=skipped,
    )


def _values(maps: Tensor, covers: Tensor, occluded: Tensor, coarse: Tensor, of_image: dict[int, list[int]]) -> Tensor:
    """(images, 14): each of `METRICS`, `OTHER_QUERY` and `BY_OCCLUSION`, then the chance of each."""
    other = torch.full((len(maps), 1), torch.nan, dtype=torch.float64)
    for rows in of_image.values():
        for row in rows:
            others = [another for another in rows if another != row]
            if others:
                other[row] = scores(maps[others], covers[[row] * len(others)])[:, 2].mean()
    level, level_of_occlusion = chance(covers), chance(coarse)
    every = torch.cat(
        [scores(maps, covers), other, scores(occluded, coarse), level, level[:, 2:], level_of_occlusion], 1
    )
    return torch.stack([every[rows].mean(0) for rows in of_image.values()])


def scores(maps: Tensor, covers: Tensor) -> Tensor:
    """(N, 3) float64, the columns of `METRICS`, of N maps.

    maps (N, rows, columns) ≥ 0; covers of the same shape, the share of each patch that the mask covers, not all 0. A
    pixel has the relevance of its patch: a patch of cover c counts as c pixels in the mask and 1 − c outside. So each
    score is what counting pixels gives:

    - pointing game: how likely a random pixel of the most relevant patch lies in the mask (of equally relevant
      patches, their mean). No tolerance around the mask is granted.
    - energy: the share of all relevance that lies in the mask. A map of zeros is taken as even.
    - average precision: Σ (R_k − R_{k−1}) P_k over the distinct relevances from the highest down. P_k and R_k are
      precision and recall of the pixels that have at least the k-th, as scikit-learn defines it.
    """
    covers, maps = covers.double().flatten(1), maps.double().flatten(1)  # (N, patches)
    best = (maps == maps.amax(dim=1, keepdim=True)).double()
    energy = torch.where(maps.sum(dim=1, keepdim=True) > 0, maps, torch.ones_like(maps))
    shares = [(weights * covers).sum(1) / weights.sum(1) for weights in (best, energy)]
    return torch.stack([*shares, _average_precision(maps, covers)], 1)


def _average_precision(maps: Tensor, covers: Tensor) -> Tensor:
    ordered, order = maps.sort(dim=1, descending=True)
    covers = covers.gather(1, order)
    patches = ordered.shape[1]
    last = torch.ones_like(ordered, dtype=torch.bool)  # of the patches that are equally relevant
    last[:, :-1] = ordered[:, :-1] != ordered[:, 1:]
    place = torch.arange(patches).expand_as(ordered)
    end = place.masked_fill(~last, patches).flip(1).cummin(1).values.flip(1)  # where the equals of each patch end
    precision = covers.cumsum(1).gather(1, end) / (end + 1)
    return (covers * precision).sum(1) / covers.sum(1)


def chance(covers: Tensor) -> Tensor:
    """(N, 3) float64: what maps that know nothing score in `METRICS`, the mean over all orders of the patches.

    For the pointing game and the energy that is C/n, the mask's share of the image: C is the sum of the covers of n
    patches. For average precision it is more, since even a random order has some of the mask early: with S = Σ c²
    and H the n-th harmonic number, (S H + (C² − S)(n − H)/(n − 1)) / (C n).
    """
    covers = covers.double().flatten(1)
    n, total, squares = covers.shape[1], covers.sum(1), covers.square().sum(1)
    harmonic = sum(1 / k for k in range(1, n + 1))
    rest = (total.square() - squares) * (n - harmonic) / max(n - 1, 1)
    return torch.stack([total / n, total / n, (squares * harmonic + rest) / (total * n)], 1)


def cover(mask: NDArray[np.bool_], rows: int, columns: int, *, resize: Literal["shortest", "squash"]) -> Tensor:
    """The share of each patch that a mask (H, W) covers: (rows, columns) float64, exact by area.

    resize is the model's: "shortest" sees the central square, "squash" the whole image.
    """
    height, width = mask.shape
    side = min(height, width)
    seen = (height, width) if resize == "squash" else (side, side)
    down = _overlap(rows, height, seen[0])
    across = _overlap(columns, width, seen[1])
    return down @ torch.from_numpy(mask).double() @ across.T


def _overlap(cells: int, pixels: int, seen: int) -> Tensor:
    """(cells, pixels): the share of each cell's length in each pixel, for equal cells on the central `seen` pixels."""
    edges = (pixels - seen) / 2 + torch.arange(cells + 1, dtype=torch.float64) * seen / cells
    left = torch.arange(pixels, dtype=torch.float64)
    length = torch.minimum(edges[1:, None], left + 1) - torch.maximum(edges[:-1, None], left)
    return length.clamp(min=0) * cells / seen


def _measure(context: EvalContext) -> PerExampleScores:
    source = cast(Any, context.data.test)  # a MaskedSource, which `requires` has seen to
    return evaluate(context.model, source, limit=context.settings.sample, on_progress=context.on_sample)


TASK = Task(
    name="grounding",
    title="where the model looks",
    result="grounding",
    needs="masks of what captions name",
    requires=("masks",),
    settings=("sample", "seed"),
    # Relevance of about two phrases an image, and the image whole and with each cell of the grid covered.
    passes=2 * 3 + CELLS**2 + 1,
    headline="pointing_game",
    metrics=(
        # Relevance is not neutral between the two kinds of attention (docs/analysis.md): occlusion is what is judged.
        *(
            Metric(key, title, evidence=False, column=column)
            for key, title, column in (
                ("pointing_game", "most relevant patch in the mask", "Pointing game"),
                ("energy_in_mask", "relevance in the mask", "Energy in the mask"),
                ("average_precision", "average precision of the mask", "Average precision"),
                (OTHER_QUERY, "the same, by another query's map", "The same, another query's map"),
            )
        ),
        Metric("pointing_game_by_occlusion", "most missed cell in the mask", column="Pointing game, by occlusion"),
        Metric("energy_in_mask_by_occlusion", "what is missed in the mask", column="Energy in the mask, by occlusion"),
        Metric(
            "average_precision_by_occlusion",
            "average precision by what is missed",
            column="Average precision, by occlusion",
        ),
    ),
    measure=_measure,
)
