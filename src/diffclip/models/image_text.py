"""What evaluation asks of a model of images and texts, whoever wrote it: `CLIP` is one, `Wrapped` any other's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffclip.errors import UserError
from diffclip.models.attention.forms import AttentionMaps
from diffclip.models.image_settings import ImageSettings
from diffclip.models.precision import full_precision

Tokenize = Callable[[Sequence[str]], Tensor]
"""Texts → ids (B, L) int64, as the model reads them."""


class ImageTextModel(nn.Module):
    """Images and texts in one space.

    Attributes: config, what its images are; tokenizer; logit_scale, the logarithm of the inverse temperature, a scalar.
    """

    config: ImageSettings
    tokenizer: Tokenize
    logit_scale: Tensor
    tower_width: int
    """Of what `tower` gives."""
    tf32: bool = False
    """Whether float32 matrices are multiplied in TF32 inside `evaluation_mode`, on GPUs that have it."""

    def tower(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) → (B, width): what a linear probe learns from, before any projection."""
        raise NotImplementedError

    def project_image(self, features: Tensor, normalize: bool = False) -> Tensor:
        """What `tower` gives (B, width) → (B, embed_dim): the second half of encode_image."""
        raise NotImplementedError

    def encode_image(self, pixels: Tensor, normalize: bool = False) -> Tensor:
        """(B, 3, image_size, image_size) float, normalised by the config's mean and std → (B, embed_dim)."""
        raise NotImplementedError

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Ids (B, L) of the model's tokenizer → (B, embed_dim)."""
        raise NotImplementedError

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> dict[str, Tensor | None]:
        """Normalised features of images and texts, and the inverse temperature, under open_clip's keys.

        Returns "image_features" and "text_features" (B, embed_dim), None for what was not given; "logit_scale", a
        scalar, exp of the parameter; "logit_bias", a scalar, where the model has one.
        """
        bias = getattr(self, "logit_bias", None)
        return ({} if bias is None else {"logit_bias": bias}) | {
            "image_features": None if image is None else self.encode_image(image, normalize=True),
            "text_features": None if text is None else self.encode_text(text, normalize=True),
            "logit_scale": self.logit_scale.exp(),
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ImageTextModel:
        """`.half()`, `.to(torch.bfloat16)` and the like, which leave temperature and bias as exact as they are."""
        scalars = (self._parameters.get(name) for name in ("logit_scale", "logit_bias"))
        with full_precision(*(scalar for scalar in scalars if scalar is not None)):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def has_maps(self) -> bool:
        """Whether image_maps, text_maps, on_patches and grid give something."""
        return False

    def image_maps(self, pixels: Tensor) -> tuple[Tensor, list[AttentionMaps]]:
        """Normalised pixels (B, 3, S, S) → encode_image's features, and the maps of the layers that made them.

        Maps are in the features' graph, from the input on. Raises UserError for a model whose maps cannot be had.
        """
        raise self._without_maps()

    def text_maps(self, tokens: Tensor) -> list[AttentionMaps]:
        """Ids (B, L) → the maps of the text tower's layers, from the input on. Raises UserError as image_maps does."""
        raise self._without_maps()

    def on_patches(self, maps: Tensor) -> Tensor:
        """Image maps (…, N, N) → (…, rows, columns): the rows of which the feature is read, without the class token.

        That is the class token's row, or the mean of the patches' rows where features are their mean.
        """
        raise self._without_maps()

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of what `on_patches` gives. Raises UserError as image_maps does."""
        raise self._without_maps()

    def _without_maps(self) -> UserError:
        facts = self.describe()
        return UserError(
            f"{facts['model']} shows no attention maps of its layers: it is used as it is ({facts['why']})"
        )

    def check_pixels(self, pixels: Tensor) -> None:
        """Raises UserError for other pixels than floats (B, 3, image_size, image_size)."""
        size = self.config.image_size
        if pixels.shape[1:] != (3, size, size) or not pixels.is_floating_point():
            raise UserError(f"pixels {tuple(pixels.shape)} {pixels.dtype}: give floats (batch, 3, {size}, {size})")

    def work(self) -> tuple[float, float]:
        """Roughly what an image takes, and a usual text: parameters, once for each token.

        Of layers that are not known: as if half of the parameters were for 197 tokens of an image, half for 16 of a
        text.
        """
        half = sum(parameter.numel() for parameter in self.parameters()) / 2
        return 197 * half, 16 * half

    def describe(self) -> dict[str, str]:
        """What `diffclip info` shows of it."""
        raise NotImplementedError


def normalized(features: Tensor) -> Tensor:
    """(B, embed_dim) of length 1, in float32 at least."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
