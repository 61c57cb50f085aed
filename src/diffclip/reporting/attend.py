"""`diffclip attend`: where models look in one image for some texts, and the attention maps behind it."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from rich.console import Console

from diffclip.analysis.attention_maps import class_token_rows, image_attention, relevance, text_attention
from diffclip.data.images import BadImage, decode
from diffclip.data.tokenizer import get_tokenizer
from diffclip.data.transforms import EvalTransform, normalise
from diffclip.distributed import default_device
from diffclip.errors import UserError
from diffclip.evaluation.features.encode import check_finite
from diffclip.models.attention.ops import AttentionMaps
from diffclip.models.clip import CLIP
from diffclip.models.weights.store import load
from diffclip.reporting.figures import attention as attend_figures
from diffclip.reporting.figures.attention import LayerMaps, Looked

FIGURES, ARRAYS = (".png", ".pdf", ".svg"), (".safetensors", ".npz")
SHOWN = 448  # an image smaller than this is drawn from its own pixels, a larger one from so many a side


@dataclass(frozen=True)
class Seen:
    """What one model makes of one image and some texts."""

    looked: Looked
    image: tuple[AttentionMaps, ...]
    """The image tower's layers; maps (1, heads, N, N)."""
    rows: tuple[LayerMaps, ...]
    """Of the same layers what the class token gives to each patch."""
    texts: tuple[tuple[AttentionMaps, ...], ...]
    """The text tower's layers for each text."""


def run(
    models: Sequence[str],
    image: Path,
    texts: Sequence[str],
    out: Path,
    *,
    layers: Path | None,
    heads: Path | None,
    maps: Path | None,
) -> None:
    """Write the figure of relevance maps to `out`, and what else is asked for; each file under a temporary name first.

    Raises UserError for no text, an image that cannot be read, or a file name whose ending is not known.
    """
    if not texts or not all(text.strip() for text in texts):
        raise UserError('no text to look for: give --text "a red star", once for each text')
    for path, endings in ((out, FIGURES), (layers, FIGURES), (heads, FIGURES), (maps, ARRAYS)):
        if path is not None and path.suffix.lower() not in endings:
            raise UserError(f"{path}: its name must end in one of {', '.join(endings)}")
    picture = _read(image)
    labels = _labels(models)
    seen = {
        label: look(load(source, device=default_device())[0], picture, texts)
        for label, source in zip(labels, models, strict=True)
    }
    console = Console()
    for label, one in seen.items():
        for text, score in zip(texts, one.looked.scores, strict=True):
            console.print(f"{label}  {text}:  cosine {score:.3f}", highlight=False, soft_wrap=True)
    looked = {label: one.looked for label, one in seen.items()}
    rows = {label: (one.looked.image, one.rows) for label, one in seen.items()}
    _write(out, lambda path: attend_figures.save(attend_figures.relevance_figure(looked, texts), path))
    if layers is not None:
        _write(layers, lambda path: attend_figures.save(attend_figures.layer_figure(rows), path))
    if heads is not None:
        _write(heads, lambda path: attend_figures.save(attend_figures.head_figure(rows), path))
    if maps is not None:
        _write(maps, lambda path: _save_arrays(path, arrays(seen)))
    written = ", ".join(str(path) for path in (out, layers, heads, maps) if path is not None)
    console.print(f"Written to {written}", highlight=False, soft_wrap=True)


def look(model: CLIP, picture: NDArray[np.uint8], texts: Sequence[str]) -> Seen:
    """Maps and scores of one model on one image (H, W, 3) uint8. Raises UserError where a feature is not finite."""
    config, device = model.config, next(model.parameters()).device
    pixels = EvalTransform(config.image_size, config.resize)(picture).to(device)  # (3, S, S) uint8
    batch = normalise(pixels[None], config.image_mean, config.image_std)
    tokens = get_tokenizer(config.context_length)(list(texts)).to(device)
    with torch.no_grad():
        output = model(image=batch, text=tokens)
    check_finite("image features", output["image_features"])
    check_finite("text features", output["text_features"])
    found = relevance(model, batch.expand(len(texts), -1, -1, -1), tokens).cpu()
    shown = EvalTransform(min(SHOWN, *picture.shape[:2]), config.resize)(picture)
    layers = image_attention(model, batch)
    return Seen(
        Looked(
            np.ascontiguousarray(shown.permute(1, 2, 0).numpy()),
            tuple(found.numpy()),
            tuple((output["image_features"] @ output["text_features"].T)[0].tolist()),
        ),
        layers,
        tuple(_class_token(model, layer) for layer in layers),
        tuple(text_attention(model, tokens[row : row + 1]) for row in range(len(texts))),
    )


def _class_token(model: CLIP, layer: AttentionMaps) -> LayerMaps:
    keys = layer.a1.shape[-1]

    def rows(attention: torch.Tensor) -> NDArray[np.float64]:
        found: NDArray[np.float64] = class_token_rows(model, attention)[0].double().numpy() * keys
        return found

    if layer.a2 is None or layer.lam is None:
        return LayerMaps({"A": rows(layer.a1)}, None)
    named = {"A1": rows(layer.a1), "A2": rows(layer.a2), "A1 − λA2": rows(layer.combined)}
    return LayerMaps(named, float(layer.lam))


def arrays(seen: Mapping[str, Seen]) -> dict[str, NDArray[np.generic]]:
    """Everything by name, for a file; models, layers and texts are counted from 1, in the order given.

    `model_1/image` (S, S, 3) uint8 is the part of the image that was seen, `model_1/relevance` (texts, rows, columns);
    `model_1/layer_01/a1`, `a2` and `combined` (heads, N, N), and `lambda` (), are the image tower's, and the same below
    `model_1/text_1/` the text tower's. Standard attention has `a1` alone.
    """
    found: dict[str, NDArray[np.generic]] = {}
    for number, one in enumerate(seen.values(), start=1):
        model = f"model_{number}"
        found[f"{model}/image"] = one.looked.image
        found[f"{model}/relevance"] = np.stack(one.looked.relevance)
        towers = {model: one.image} | {f"{model}/text_{n}": layers for n, layers in enumerate(one.texts, start=1)}
        for prefix, layers in towers.items():
            for place, layer in enumerate(layers, start=1):
                named = {"a1": layer.a1}
                if layer.a2 is not None and layer.lam is not None:
                    named |= {"a2": layer.a2, "combined": layer.combined, "lambda": torch.tensor([float(layer.lam)])}
                for name, tensor in named.items():
                    found[f"{prefix}/layer_{place:02d}/{name}"] = np.ascontiguousarray(tensor[0].numpy())
    return found


def _save_arrays(path: Path, named: Mapping[str, NDArray[np.generic]]) -> None:
    if path.suffix.lower() == ".npz":
        np.savez(path, allow_pickle=False, **named)
    else:
        safetensors.numpy.save_file(dict(named), path)


def _write(path: Path, write: Callable[[Path], None]) -> None:
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def _read(image: Path) -> NDArray[np.uint8]:
    try:
        return decode(image.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {image}: {error.strerror}") from None
    except BadImage as error:
        raise UserError(f"{image} cannot be used as an image: {error.reason.replace('_', ' ')}") from None


def _labels(models: Sequence[str]) -> list[str]:
    """The last part of each name, or the whole where two models share it; the same model twice is counted."""
    last = [Path(model).name or model for model in models]
    labels = last if len(set(last)) == len(last) else list(models)
    return [label if labels.count(label) == 1 else f"{label} ({i + 1})" for i, label in enumerate(labels)]
