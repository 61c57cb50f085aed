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
from diffclip.models.clip import evaluation_mode
from diffclip.models.library import Trainable
from diffclip.models.library_config import VOCABULARY, LibraryConfig
from diffclip.models.presets import ModelConfig
from diffclip.models.weights.store import Preprocess

EXAMPLES = 16
Encode = Callable[[Tensor], Tensor]
"""Pixels (B, 3, S, S) or tokens (B, L) → features (B, embed_dim)."""


@dataclass(frozen=True)
class Parity:
    """Of normalised features of images and of texts: the largest difference of a number, and the lowest cosine.

    pixels: the largest difference of a normalised pixel, where the double has preprocessing of its own.
    """

    image: float
    text: float
    image_cosine: float
    text_cosine: float
    pixels: float | None = None

    def __str__(self) -> str:
        told = (
            f"on {EXAMPLES} drawn scenes and their captions the features of images differ by at most {self.image:.1e} "
            f"(lowest cosine {self.image_cosine:.4f}), of texts by {self.text:.1e} ({self.text_cosine:.4f})"
        )
        return (
            told if self.pixels is None else f"{told}; its own preprocessing moves a pixel by at most {self.pixels:.1e}"
        )


def examples() -> tuple[list[Image.Image], list[str]]:
    """The drawn scenes, wide and tall ones among them, and a caption of each."""
    scenes = SceneSource("test", 64, EXAMPLES)
    drawn = [scenes[i] for i in range(EXAMPLES)]
    images = [Image.fromarray(decode(one.image)[3 * i % 20 :, 5 * i % 19 :]) for i, one in enumerate(drawn)]
    return images, [one.captions[0] for one in drawn]


def inputs(config: ModelConfig | LibraryConfig) -> tuple[Tensor, Tensor]:
    """The examples as a model takes them: pixels (16, 3, S, S), tokens (16, context_length).

    Of a vocabulary that is not CLIP's no id is beyond the last, the end of a text.
    """
    images, texts = examples()
    tokens = get_tokenizer(config.context_length)(texts)
    return torch.stack([Preprocess(config)(image) for image in images]), tokens.clamp(max=_last_id(config))


def _last_id(config: ModelConfig | LibraryConfig) -> int:
    return (config.vocab_size if isinstance(config, ModelConfig) else VOCABULARY) - 1


@torch.no_grad()
def compare(model: Trainable, encode_image: Encode, encode_text: Encode, pixels: Tensor | None = None) -> Parity:
    """A model's features beside those of its double, which `encode_image` and `encode_text` give.

    pixels: what the double's own preprocessing makes of the examples' images.
    """
    given = [x.to(model.logit_scale.device) for x in inputs(model.config)]
    with evaluation_mode(model):
        wanted = [encode(x) for encode, x in zip((model.encode_image, model.encode_text), given, strict=True)]
    found = [encode(x) for encode, x in zip((encode_image, encode_text), given, strict=True)]
    pairs = [[F.normalize(y.double(), dim=-1) for y in pair] for pair in zip(wanted, found, strict=True)]
    image, text = (float((a - b).abs().max()) for a, b in pairs)
    image_cosine, text_cosine = (float((a * b).sum(-1).min()) for a, b in pairs)
    moved = None if pixels is None else float((pixels - given[0].cpu()).abs().max())
    return Parity(image, text, image_cosine, text_cosine, moved)
