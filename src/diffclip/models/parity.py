"""How far the features of one model are from those of another, on drawn scenes and their captions."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from diffclip.data.images import decode
from diffclip.data.scenes import SceneSource
from diffclip.data.tokenizer import get_tokenizer
from diffclip.models.clip import CLIP, evaluation_mode
from diffclip.models.presets import ModelConfig
from diffclip.models.weights.store import Preprocess

EXAMPLES = 16
Encode = Callable[[Tensor], Tensor]
"""Pixels (B, 3, S, S) or tokens (B, L) → features (B, embed_dim)."""


@dataclass(frozen=True)
class Parity:
    """Of normalised features of images and of texts: the largest difference of a number, and the lowest cosine.

    pixels: the largest difference of a normalised pixel, where the double has preprocessing of its own.
    text and text_cosine are None of a double that reads no texts.
    """

    image: float
    text: float | None
    image_cosine: float
    text_cosine: float | None
    pixels: float | None = None

    def __str__(self) -> str:
        told = (
            f"on {EXAMPLES} drawn scenes and their captions the features of images differ by at most {self.image:.1e} "
            f"(lowest cosine {self.image_cosine:.4f})"
        )
        if self.text is not None:
            told += f", of texts by {self.text:.1e} ({self.text_cosine:.4f})"
        if self.pixels is not None:
            told += f"; its own preprocessing moves a pixel by at most {self.pixels:.1e}"
        return told


def examples() -> tuple[list[Image.Image], list[str]]:
    """The drawn scenes, wide and tall ones among them, and a caption of each."""
    scenes = SceneSource("test", 64, EXAMPLES)
    drawn = [scenes[i] for i in range(EXAMPLES)]
    images = [Image.fromarray(decode(one.image)[3 * i % 20 :, 5 * i % 19 :]) for i, one in enumerate(drawn)]
    return images, [one.captions[0] for one in drawn]


def inputs(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """The examples as a model takes them: pixels (16, 3, S, S), tokens (16, context_length).

    Of a vocabulary that is not CLIP's no id is beyond the last, the end of a text.
    """
    images, texts = examples()
    tokens = get_tokenizer(config.context_length)(texts)
    return torch.stack([Preprocess(config)(image) for image in images]), tokens.clamp(max=config.vocab_size - 1)


@torch.no_grad()
def compare(
    model: CLIP, encode_image: Encode, encode_text: Encode | None, pixels: Tensor | None = None
) -> Parity:
    """A model's features beside those of its double, which `encode_image` and `encode_text` give.

    encode_text: None of a double without a text tower. pixels: what the double's own preprocessing makes of the
    examples' images.
    """
    images, texts = (x.to(model.logit_scale.device) for x in inputs(model.config))
    with evaluation_mode(model):
        image, image_cosine = _apart(model.encode_image(images), encode_image(images))
        text = None if encode_text is None else _apart(model.encode_text(texts), encode_text(texts))
    moved = None if pixels is None else float((pixels - images.cpu()).abs().max())
    return Parity(image, text and text[0], image_cosine, text and text[1], moved)


def _apart(wanted: Tensor, found: Tensor) -> tuple[float, float]:
    """The largest difference of a number, and the lowest cosine, of normalised features (B, embed_dim)."""
    a, b = (F.normalize(features.double(), dim=-1) for features in (wanted, found))
    return float((a - b).abs().max()), float((a * b).sum(-1).min())
