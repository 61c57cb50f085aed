"""What a model makes of one image and some texts: scores, relevance, and the attention maps behind them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffclip import durable
from diffclip.analysis.attention_maps import image_attention, text_attention
from diffclip.analysis.relevance import relevance
from diffclip.data.transforms import normalise
from diffclip.models.attention.forms import AttentionMaps
from diffclip.models.clip import check_finite
from diffclip.models.image_settings import ImageSettings
from diffclip.models.image_text import ImageTextModel

SHOWN = 448
"""Pixels a side of an image in figures, at most; a smaller image keeps its own."""


@dataclass(frozen=True)
class LayerMaps:
    """What the class token gives to each patch in one layer, in multiples of the even share 1/N.

    Of a model whose feature is the mean of its patches: what they give in the mean.
    """

    maps: dict[str, NDArray[np.float64]]
    """Name ("A1", "A2", "A1 − λA2", or "A") → (heads, rows, columns)."""
    lam: float | None


@dataclass(frozen=True)
class Look:
    """One image and some texts, as one model sees them. Layers come from the input on."""

    image: NDArray[np.uint8]
    """(H, W, 3): the part that the model sees."""
    relevance: tuple[NDArray[np.floating], ...]
    """(rows, columns) ≥ 0 for each text."""
    scores: tuple[float, ...]
    """The cosine of image and text."""
    class_token: tuple[LayerMaps, ...]
    """What the class token gives to each patch, in each layer of the image tower."""
    image_layers: tuple[AttentionMaps, ...]
    """The image tower's layers; maps (1, heads, N, N)."""
    text_layers: tuple[tuple[AttentionMaps, ...], ...]
    """The text tower's layers for each text."""


def inputs(model: ImageTextModel, picture: NDArray[np.uint8], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Pixels (1, 3, S, S) of a picture (H, W, 3) uint8 and tokens (T, L) of texts, on the model's device."""
    config, device = model.config, next(model.parameters()).device
    pixels = config.transform(picture).to(device)  # (3, S, S) uint8
    tokens = model.tokenizer(list(texts)).to(device)
    return normalise(pixels[None], config.image_mean, config.image_std), tokens


def visible(config: ImageSettings, picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The part of a picture (H, W, 3) that a model sees, at most `size` pixels a side: (h, w, 3) uint8."""
    transform, size = config.transform, min(size, *picture.shape[:2])
    resize_to = transform.resize_to and round(transform.resize_to * size / transform.size)
    part = replace(transform, size=size, resize_to=resize_to)(picture)  # (3, h, w)
    return np.ascontiguousarray(part.permute(1, 2, 0).numpy())


def look(model: ImageTextModel, picture: NDArray[np.uint8], texts: Sequence[str]) -> Look:
    """Maps and scores of one model on one image (H, W, 3) uint8. Raises UserError where a feature is not finite."""
    pixels, tokens = inputs(model, picture, texts)
    with torch.no_grad():
        output = model(image=pixels, text=tokens)
    check_finite("image features", output["image_features"])
    check_finite("text features", output["text_features"])
    layers = image_attention(model, pixels)
    return Look(
        visible(model.config, picture, SHOWN),
        tuple(relevance(model, pixels.expand(len(texts), -1, -1, -1), tokens).cpu().numpy()),
        tuple((output["image_features"] @ output["text_features"].T)[0].tolist()),
        tuple(_class_token(model, layer) for layer in layers),
        layers,
        tuple(text_attention(model, tokens[row : row + 1]) for row in range(len(texts))),
    )


def _class_token(model: ImageTextModel, layer: AttentionMaps) -> LayerMaps:
    def rows(attention: Tensor) -> NDArray[np.float64]:
        shares: NDArray[np.float64] = model.on_patches(attention)[0].double().numpy()
        return shares * layer.a1.shape[-1]

    if layer.a2 is None or layer.lam is None:
        return LayerMaps({"A": rows(layer.a1)}, None)
    maps = {"A1": rows(layer.a1), "A2": rows(layer.a2), "A1 − λA2": rows(layer.combined)}
    return LayerMaps(maps, float(layer.lam))


def arrays(looks: Iterable[Look]) -> dict[str, NDArray[np.generic]]:
    """Everything by name, for a file; models, layers and texts are counted from 1, in the order given.

    `model_1/image` (S, S, 3) uint8 is the part of the image that the model sees, `model_1/relevance`
    (texts, rows, columns); `model_1/layer_01/a1`, `a2` and `combined` (heads, N, N), and `lambda` (), are the image
    tower's, and the same below `model_1/text_1/` the text tower's. Standard attention has `a1` alone.
    """
    by_name: dict[str, NDArray[np.generic]] = {}
    for number, of_model in enumerate(looks, start=1):
        model = f"model_{number}"
        by_name[f"{model}/image"] = of_model.image
        by_name[f"{model}/relevance"] = np.stack(of_model.relevance)
        towers = {model: of_model.image_layers}
        towers |= {f"{model}/text_{n}": layers for n, layers in enumerate(of_model.text_layers, start=1)}
        for prefix, layers in towers.items():
            for place, layer in enumerate(layers, start=1):
                tensors = {"a1": layer.a1}
                if layer.a2 is not None and layer.lam is not None:
                    tensors |= {"a2": layer.a2, "combined": layer.combined, "lambda": torch.tensor([float(layer.lam)])}
                for name, tensor in tensors.items():
                    by_name[f"{prefix}/layer_{place:02d}/{name}"] = np.ascontiguousarray(tensor[0].numpy())
    return by_name


def save_arrays(path: Path, looks: Iterable[Look]) -> None:
    """Write `arrays`, as .npz or .safetensors. Raises OSError."""
    with durable.writing(path) as unfinished, unfinished.open("wb") as file:
        if path.suffix.lower() == ".npz":
            np.savez(file, allow_pickle=False, **arrays(looks))
        else:
            file.write(safetensors.numpy.save(arrays(looks)))
