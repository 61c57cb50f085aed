"""How far the features of one model are from those of another, on drawn scenes and their captions; which is faster."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from diffclip.data.images import decode
from diffclip.data.scenes import SceneSource
from diffclip.data.scenes.vocabulary import CLASSNAMES, TEMPLATES
from diffclip.data.tokenizer import get_tokenizer
from diffclip.models.clip import CLIP, evaluation_mode
from diffclip.models.library import Trainable
from diffclip.models.library_config import VOCABULARY, LibraryConfig
from diffclip.models.presets import ModelConfig
from diffclip.models.weights.store import Preprocess
from diffclip.text import percent

EXAMPLES, SCENES = 16, 128
Encode = Callable[[Tensor], Tensor]
"""Pixels (B, 3, S, S) or tokens (B, L) → features (B, embed_dim)."""


@dataclass(frozen=True)
class Parity:
    """Of normalised features of images and of texts: the largest difference of a number, and the lowest cosine.

    pixels: the largest difference of a normalised pixel, where the double has preprocessing of its own.
    text and text_cosine are None of a double that reads no texts. agreement: `agreement`; milliseconds: `speed`.
    """

    image: float
    text: float | None
    image_cosine: float
    text_cosine: float | None
    pixels: float | None = None
    agreement: float | None = None
    milliseconds: Mapping[str, float] | None = None

    def __str__(self) -> str:
        told = (
            f"on {EXAMPLES} drawn scenes and their captions the features of images differ by at most {self.image:.1e} "
            f"(lowest cosine {self.image_cosine:.4f})"
        )
        if self.text is not None:
            told += f", of texts by {self.text:.1e} ({self.text_cosine:.4f})"
        if self.pixels is not None:
            told += f"; its own preprocessing moves a pixel by at most {self.pixels:.1e}"
        if self.agreement is not None:
            told += f"; the best text of an image is the same for {percent(self.agreement)} % of images"
        if self.milliseconds is not None:
            told += "; ms, of a batch of 16, each: " + ", ".join(f"{k} {ms:.2f}" for k, ms in self.milliseconds.items())
        return told


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
def compare(model: Trainable, encode_image: Encode, encode_text: Encode | None, pixels: Tensor | None = None) -> Parity:
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


@torch.no_grad()
def agreement(
    model: CLIP,
    encode_image: Encode,
    encode_text: Encode,
    images: Sequence[Image.Image] = (),
    texts: Sequence[str] = (),
) -> float:
    """The share of images whose best text is the same by a model and by its double, that of `compare`.

    images, texts: by default drawn scenes and the names of their classes, one of which is right.
    """
    if not images:
        scenes = SceneSource("test", max(64, model.config.image_size), SCENES)
        images = [Image.fromarray(decode(scenes[i].image)) for i in range(SCENES)]
    if not texts:
        template, *_ = TEMPLATES
        texts = [template.replace("{c}", name) for name in CLASSNAMES]
    tokens, preprocess = model.tokenizer(texts), Preprocess(model.config)
    with evaluation_mode(model):
        ours, double = (F.normalize(encode(tokens), dim=-1) for encode in (model.encode_text, encode_text))
        same = 0
        for start in range(0, len(images), EXAMPLES):
            pixels = torch.stack([preprocess(image) for image in images[start : start + EXAMPLES]])
            best = (model.encode_image(pixels) @ ours.T).argmax(1)
            same += int((best == (encode_image(pixels) @ double.T).argmax(1)).sum())
    return same / len(images)


@torch.no_grad()
def speed(model: CLIP, encode_image: Encode, encode_text: Encode) -> dict[str, float]:
    """Milliseconds for an image and for a text, in batches of 16, by the model and by its double, on torch's threads.

    Each is the median of three, taken in turns, after one that is not counted.
    """
    images, texts = inputs(model.config)
    with evaluation_mode(model):
        calls: dict[str, tuple[Encode, Tensor]] = {
            "torch, image": (model.encode_image, images),
            "double, image": (encode_image, images),
            "torch, text": (model.encode_text, texts),
            "double, text": (encode_text, texts),
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(4):
            for name, (encode, given) in calls.items():
                began = time.perf_counter()
                encode(given)
                seconds[name].append(time.perf_counter() - began)
    return {name: round(1000 * statistics.median(times[1:]) / EXAMPLES, 3) for name, times in seconds.items()}
