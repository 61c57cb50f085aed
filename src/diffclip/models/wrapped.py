"""Models of other libraries that `CLIP` cannot express: used as they are, by the same few methods."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffclip.models.attention.forms import AttentionMaps
from diffclip.models.image_settings import ImageSettings
from diffclip.models.image_text import ImageTextModel, Tokenize, normalized

Encode = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Recorder:
    """How the attention maps of a model are had, of its image tower with one class token first, and its text tower.

    image: of the inner model and its pixels, features and maps (B, heads, N, N), in one graph; text: of its ids, maps.
    """

    image: Callable[[Any, Tensor], tuple[Tensor, list[Tensor]]]
    text: Callable[[Any, Tensor], list[Tensor]]
    patch_size: int
    mean: bool = False
    """Whether features are the mean of the patches, rather than the class token."""


class Wrapped(ImageTextModel):
    """Another library's model. Its image features before the projection are not told apart: `tower` gives those after.

    It is evaluated, and not trained or saved. Its maps are shown where there is a recorder.
    """

    def __init__(
        self,
        inner: nn.Module,
        config: ImageSettings,
        tokenizer: Tokenize,
        *,
        image: Encode,
        text: Encode,
        logit_scale: nn.Parameter,
        logit_bias: nn.Parameter | None,
        facts: Mapping[str, str],
        recorder: Recorder | None = None,
    ) -> None:
        """
        Args:
            image, text: of the inner model and its pixels or ids, features (B, embed_dim), not normalised.
            facts: what `describe` gives; "model" and "why" it is wrapped among them.
            recorder: None where its maps cannot be had.
        """
        super().__init__()
        self.inner, self.config, self.tokenizer, self.facts = inner, config, tokenizer, dict(facts)
        self._image, self._text, self._recorder = image, text, recorder
        self.logit_scale = logit_scale
        self.register_parameter("logit_bias", logit_bias)
        with torch.no_grad():
            self.tower_width = image(inner, torch.zeros(1, 3, config.image_size, config.image_size)).shape[1]

    def tower(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) → (B, embed_dim)."""
        self.check_pixels(pixels)
        if not len(pixels):
            return pixels.new_empty(0, self.tower_width)
        return self._image(self.inner, pixels.to(next(self.inner.parameters()).dtype))

    def project_image(self, features: Tensor, normalize: bool = False) -> Tensor:
        """The same features, maybe normalised."""
        return normalized(features) if normalize else features

    def encode_image(self, pixels: Tensor, normalize: bool = False) -> Tensor:
        """Normalised pixels (B, 3, S, S) → (B, embed_dim)."""
        return self.project_image(self.tower(pixels), normalize)

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Ids (B, L) of `tokenizer` → (B, embed_dim)."""
        if not len(tokens):
            return torch.empty(0, self.tower_width, device=tokens.device)
        features = self._text(self.inner, tokens)
        return normalized(features) if normalize else features

    @property
    def has_maps(self) -> bool:
        """Whether there is a recorder."""
        return self._recorder is not None

    def image_maps(self, pixels: Tensor) -> tuple[Tensor, list[AttentionMaps]]:
        """Normalised pixels (B, 3, S, S) → (B, embed_dim), and the maps of the layers."""
        self.check_pixels(pixels)
        features, maps = self._recorded().image(self.inner, pixels.to(next(self.inner.parameters()).dtype))
        return features, [AttentionMaps(each, each) for each in maps]

    def text_maps(self, tokens: Tensor) -> list[AttentionMaps]:
        """Ids (B, L) of `tokenizer` → the maps of the layers. N is L: texts are not cut at the longest."""
        return [AttentionMaps(each, each) for each in self._recorded().text(self.inner, tokens)]

    def on_patches(self, maps: Tensor) -> Tensor:
        """Image maps (…, N, N) → (…, rows, columns)."""
        rows = maps[..., 1:, 1:].mean(-2) if self._recorded().mean else maps[..., 0, 1:]
        return rows.reshape(*rows.shape[:-1], *self.grid)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.config.image_size // self._recorded().patch_size
        return side, side

    def _recorded(self) -> Recorder:
        if self._recorder is None:
            raise self._without_maps()
        return self._recorder

    def describe(self) -> dict[str, str]:
        """What it is, and why it is used as it is."""
        return self.facts
