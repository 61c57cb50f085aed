"""Patch dropout (Li et al. 2023, arXiv 2212.00794) that takes its random numbers, so that a choice can be repeated."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from timm.layers import PatchDropout as TimmPatchDropout
from torch import Tensor


class PatchDropout(TimmPatchDropout):  # type: ignore[misc]  # timm is untyped
    """timm's: in training only a random share of an image's patches goes on, in random order.

    The patches with the smallest `noise` (B, patches) are kept, for the images of the next forward passes. While
    `noise` is None it is drawn from torch's generator. A step that encodes its images in parts, twice, or on several
    machines gives each image the same row of `patch_noise` every time.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.noise: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, prefix + patches, width) → (B, prefix + kept, width), kept = max(1, ⌊(1 − prob)·patches⌋)."""
        if not self.training or not self.prob:
            return x
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        batch, count, width = patches.shape
        noise = torch.rand(batch, count, device=x.device) if self.noise is None else self.noise
        keep = noise.argsort(dim=1)[:, : max(1, int(count * (1 - self.prob)))]  # (B, kept)
        return torch.cat((prefix, patches.gather(1, keep[..., None].expand(-1, -1, width))), dim=1)


def patch_noise(seed: Sequence[int], first: int, rows: int, patches: int) -> Tensor:
    """Rows `first` to `first` + `rows` of an endless table of random int64 that belongs to the seed: (rows, patches).

    Philox counts, so that any row is drawn without those before it.
    """
    draws = -(-patches // 4) * 4  # an advance skips four numbers
    bits = np.random.Philox(np.random.SeedSequence(seed)).advance(first * draws // 4)
    return torch.from_numpy(bits.random_raw(rows * draws).view(np.int64).reshape(rows, draws)[:, :patches])
