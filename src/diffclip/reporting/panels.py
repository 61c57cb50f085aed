"""Relevance maps of two models on images, ready to be drawn."""

from collections.abc import Sequence

import numpy as np
import torch

from diffclip.analysis.attention_maps import relevance
from diffclip.analysis.grounding import MaskedSource
from diffclip.data.images import decode
from diffclip.data.tokenizer import get_tokenizer
from diffclip.data.transforms import EvalTransform, normalise
from diffclip.models.clip import CLIP
from diffclip.reporting.figures import AttentionPanel, Map, Pixels


def attention_panel(baseline: CLIP, candidate: CLIP, image: bytes | Pixels, queries: Sequence[str]) -> AttentionPanel:
    """Where both models look in an image, for each query. Shows the part of the image that the models see.

    image: an image file's bytes, or (H, W, 3) uint8. Raises `images.BadImage` for bytes that are no usable image.
    """
    pixels = decode(image)
    maps = [_maps(model, pixels, queries) for model in (baseline, candidate)]
    seen = EvalTransform(min(pixels.shape[:2]), baseline.config.resize)(pixels)  # (3, S, S) uint8
    return AttentionPanel(np.ascontiguousarray(seen.permute(1, 2, 0).numpy()), tuple(queries), maps[0], maps[1])


def scene_panels(
    baseline: CLIP, candidate: CLIP, source: MaskedSource, *, count: int = 4, queries: int = 2
) -> list[AttentionPanel]:
    """Panels of the first `count` images of a source that name at least `queries` things: not chosen by the outcome."""
    panels: list[AttentionPanel] = []
    for index in range(len(source)):
        if len(panels) == count:
            break
        phrases = [phrase for phrase, _ in source.masks(index)]
        if len(phrases) >= queries:
            panels.append(attention_panel(baseline, candidate, source[index].image, phrases[:queries]))
    return panels


def _maps(model: CLIP, image: Pixels, queries: Sequence[str]) -> tuple[Map, ...]:
    config, device = model.config, next(model.parameters()).device
    pixels = EvalTransform(config.image_size, config.resize)(image).to(device)  # (3, S, S) uint8
    batch = normalise(pixels.expand(len(queries), -1, -1, -1), config.image_mean, config.image_std)
    tokens = get_tokenizer(config.context_length)(list(queries)).to(device)
    found: torch.Tensor = relevance(model, batch, tokens).cpu()
    return tuple(found.numpy())
