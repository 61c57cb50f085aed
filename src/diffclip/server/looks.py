"""Where a model looks in a picture for a text, as small images for a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diffclip.analysis.look import SHOWN, LayerMaps, look, visible
from diffclip.analysis.occlusion import occlusion
from diffclip.data.transforms import normalise
from diffclip.models.image_text import ImageTextModel

HEAT, SIGNED = "inferno", "RdBu_r"
GREY = 0.45
"""How much of the picture's light stays beneath the heat."""


@dataclass(frozen=True)
class Seen:
    """What the page shows of one model."""

    score: float
    """The cosine of picture and text."""
    how: str
    """How the map was made, in words."""
    overlay: str
    """The map over the picture, as a data URL."""
    layers: list[dict[str, Any]]
    """From the input on: λ or None, and by name ("A1", "A2", "A1 − λA2" or "A") a data URL: heads' mean."""


def seen(model: ImageTextModel, picture: NDArray[np.uint8], text: str) -> Seen:
    """Of a picture (H, W, 3) uint8. A model whose attention maps cannot be had is asked by covering parts."""
    if model.has_maps:
        found = look(model, picture, [text])
        layers = [{"lam": layer.lam, "maps": _layer(layer)} for layer in found.class_token]
        how = "relevance: what the attention of all layers adds up to for this text"
        return Seen(found.scores[0], how, _overlay(found.image, found.relevance[0]), layers)
    settings, like = model.config, next(model.parameters())
    pixels = normalise(settings.transform(picture)[None].to(like.device), settings.image_mean, settings.image_std)
    tokens = model.tokenizer([text]).to(like.device)
    falls = occlusion(model, pixels, tokens)[0].float().cpu().numpy()  # type: ignore[arg-type]
    with torch.no_grad():
        output = model(image=pixels, text=tokens)
    score = float((output["image_features"] @ output["text_features"].T)[0, 0])
    how = "covered parts: by how much the score falls; attention maps of this model cannot be had"
    return Seen(score, how, _overlay(visible(settings, picture, SHOWN), falls), [])  # type: ignore[arg-type]


def _overlay(picture: NDArray[np.uint8], relevance: NDArray[np.floating[Any]]) -> str:
    height, width = picture.shape[:2]
    scaled = relevance / max(float(relevance.max()), 1e-12)
    resized = Image.fromarray(scaled.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(resized), 0, 1)
    grey = picture.astype(np.float32).mean(2, keepdims=True) / 255
    colours = matplotlib.colormaps[HEAT](heat)[..., :3]
    mixed = GREY * grey * (1 - heat[..., None]) + heat[..., None] * (0.25 * grey + 0.75 * colours)
    return _url((255 * np.clip(mixed, 0, 1)).astype(np.uint8), "JPEG")


def _layer(layer: LayerMaps) -> dict[str, str]:
    means = {name: heads.mean(0) for name, heads in layer.maps.items()}
    most = max(float(np.abs(mean).max()) for mean in means.values()) or 1.0
    drawn = {}
    for name, mean in means.items():
        signed = "−" in name
        colours = matplotlib.colormaps[SIGNED if signed else HEAT](0.5 + mean / (2 * most) if signed else mean / most)
        drawn[name] = _url((255 * colours[..., :3]).astype(np.uint8), "PNG")
    return drawn


def _url(pixels: NDArray[np.uint8], kind: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
