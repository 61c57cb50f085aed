"""How well relevance maps find the thing that the text names, where a mask says which pixels show it.

Two scores without a threshold, for which "how large is a mask" sets the level of chance: the pointing game (Zhang et
al. 2018, "Top-down Neural Attention by Excitation Backprop") and the share of relevance inside the mask. Both say where
a map of relevance lies, which is not proof of what made the model decide.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffclip.analysis.attention_maps import relevance
from diffclip.data.images import decode
from diffclip.data.sources import Example
from diffclip.data.tokenizer import get_tokenizer
from diffclip.data.transforms import EvalTransform, normalise
from diffclip.errors import UserError
from diffclip.evaluation.results import Examples
from diffclip.models.clip import CLIP

TASK = "grounding"


class MaskedSource(Protocol):
    """Square images, and for each the phrases that name something in it, with the pixels that show it."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def masks(self, index: int) -> Sequence[tuple[str, NDArray[np.bool_]]]: ...


def measure(
    model: CLIP,
    source: MaskedSource,
    *,
    images: int | None = None,
    batch_size: int = 64,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Examples:
    """`pointing_game` and `energy_in_mask` on the first `images` of a source (None: all), by image.

    An image counts the mean over its phrases, and one without phrases is left out. Chance is the masks' mean share of
    the image. Raises UserError where no image has a phrase.
    """
    config, device = model.config, next(model.parameters()).device
    transform, tokenizer = EvalTransform(config.image_size, config.resize), get_tokenizer(config.context_length)
    owners: list[int] = []
    values: list[Tensor] = []
    count = len(source) if images is None else min(images, len(source))
    # Few enough images at a time that their pixels are no burden; an image has about two phrases.
    for start in range(0, count, batch_size):
        batch = [(i, *named) for i in range(start, min(start + batch_size, count)) for named in source.masks(i)]
        if batch:
            decoded = {i: transform(decode(source[i].image)) for i, _, _ in batch}
            pixels = torch.stack([decoded[i] for i, _, _ in batch]).to(device)
            tokens = tokenizer([phrase for _, phrase, _ in batch]).to(device)
            maps = relevance(model, normalise(pixels, config.image_mean, config.image_std), tokens).cpu()
            masks = torch.stack([torch.from_numpy(mask) for _, _, mask in batch])
            values.append(scores(maps, masks))
            owners += [i for i, _, _ in batch]
        on_progress(min(start + batch_size, count))
    if not values:
        raise UserError(f"{source.name} names nothing in its first {count} images, so there is nothing to find")
    indices, place = torch.unique(torch.tensor(owners), return_inverse=True)
    sums = torch.zeros(len(indices), 3, dtype=torch.float64).index_add(0, place, torch.cat(values))
    pointing, energy, share = (sums / torch.bincount(place)[:, None]).unbind(1)
    level = share.mean().item()
    return Examples(
        indices,
        {"pointing_game": pointing, "energy_in_mask": energy},
        {"pointing_game": level, "energy_in_mask": level},
    )


def scores(maps: Tensor, masks: Tensor) -> Tensor:
    """(N, 3) float64: pointing game, energy inside the mask, share of the image that the mask covers.

    maps (N, rows, columns) ≥ 0; masks (N, H, W) bool, of the same square images. The pointing game asks how likely a
    random pixel of the most relevant patch lies in the mask; of several equally relevant patches, their mean. A map of
    zeros points nowhere and scores the mask's share in both.
    """
    rows, columns = maps.shape[1:]
    cover = torch.nn.functional.adaptive_avg_pool2d(masks[:, None].double(), (rows, columns))  # (N, 1, rows, columns)
    cover, maps = cover.flatten(1), maps.double().flatten(1)  # (N, patches)
    best = (maps == maps.amax(dim=1, keepdim=True)).double()
    total = maps.sum(dim=1, keepdim=True)
    energy = torch.where(total > 0, maps, torch.ones_like(maps))
    return torch.stack([(weights * cover).sum(1) / weights.sum(1) for weights in (best, energy)] + [cover.mean(1)], 1)
