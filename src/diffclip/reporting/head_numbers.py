"""What heads of models do on some pairs of a data set: measured, drawn, written with what each figure shows"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffclip import durable
from diffclip.analysis.heads import LayerNumbers, head_numbers
from diffclip.data.images import BadImage, decode
from diffclip.data.sources import Source, captions_of
from diffclip.data.transforms import normalise
from diffclip.distributed import default_device
from diffclip.errors import UserError
from diffclip.evaluation.features.pixels import sample_indices
from diffclip.models.weights.store import load_clip
from diffclip.reporting.figures import heads as figures
from diffclip.reporting.figures.bars import Palette
from diffclip.reporting.figures.style import PRINT, save, style

log = logging.getLogger(__name__)


def measure(name: str, source: Source, sample: int) -> tuple[LayerNumbers, ...]:
    """Of a model on a random choice of pairs, each image with its first caption. Raises UserError."""
    model = load_clip(name, default_device(), what="heads")
    device, config = next(model.parameters()).device, model.config
    pixels, texts = list[Tensor](), list[str]()
    indices = sample_indices(source, sample, 0)
    for index in indices:
        try:
            example = source[index]
            said = captions_of(source, example)
            seen = config.transform(decode(example.image)) if said else None
        except BadImage:
            seen = None
        if seen is not None:
            pixels.append(seen)
            texts.append(said[0])
    if len(pixels) < len(indices):
        log.warning("%s: %d images cannot be read or have no text", source.name, len(indices) - len(pixels))
    if not pixels:
        raise UserError(f"{source.name}: none of {len(indices)} examples has both an image and a text")
    seen_by_model = normalise(torch.stack(pixels).to(device), config.image_mean, config.image_std)
    return head_numbers(model, seen_by_model, model.tokenizer(texts).to(device))


def write(measured: Mapping[str, Sequence[LayerNumbers]], out: Path, data: str, sample: int) -> None:
    """Four figures, their numbers and what they show. Raises UserError where `out` cannot be written."""
    palette = Palette.of(list(measured))
    with durable.cannot_write(out), style(PRINT):
        out.mkdir(parents=True, exist_ok=True)
        for name in figures.TEXTS:
            save(getattr(figures, name)(measured, palette), out / f"{name}.png")
        numbers = {label: [_plain(layer) for layer in layers] for label, layers in measured.items()}
        durable.write_text(out / "heads.json", json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
        parts = [f"## {name}\n\n![{name}]({name}.png)\n\n{text}\n" for name, text in figures.TEXTS.items()]
        head = f"# Heads\n\n{', '.join(measured)} on {sample} pairs of {data}. One run each: another seed may differ.\n"
        durable.write_text(out / "README.md", "\n".join([head, *parts]))


def _plain(layer: LayerNumbers) -> dict[str, object]:
    """For JSON, which has no NaN."""
    return {key: _value(value) for key, value in vars(layer).items()}


def _value(value: object) -> object:
    if isinstance(value, Tensor):
        return [None if math.isnan(number) else round(number, 6) for number in value.tolist()]
    return {key: _value(inner) for key, inner in value.items()} if isinstance(value, dict) else value
