"""`diffclip export`: a model for other programs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from diffclip.errors import UserError

REPORT = "parity.json"
LARGEST = 1e-4  # of a difference of normalised features: several times what float32 rounds
LARGEST_OF_PIXELS = 0.06  # of a normalised pixel: three of 255 levels, as libraries round resized images apart


Target = Literal["transformers", "sentence-transformers", "open_clip", "timm", "onnx"]
# The module of each, and the extra that it needs.
MODULES = {
    "transformers": ("huggingface", "vlm"),
    "sentence-transformers": ("sentence_transformers", "sentence"),
    "open_clip": ("open_clip", ""),
    "timm": ("timm", ""),
    "onnx": ("onnx", "onnx"),
}


def export(model: Positional[str], /, *, to: Target, out: Path) -> None:
    """Write a model for another program, and say how far its features are from ours.

    Args:
        model: What diffclip.load takes: a run, a folder, a file, hf:owner/name.
        to: transformers: AutoModel and AutoProcessor open it; sentence-transformers: SentenceTransformer too.
            open_clip: standard attention only. timm: the image tower. onnx: two encoders, any batch.
        out: The folder to write, which holds no model yet. The report is in its parity.json.
    """
    from importlib import import_module

    from diffclip import durable
    from diffclip.models.weights.store import check_free, load_clip
    from diffclip.terminal import Terminal

    module, extra = MODULES[to]
    try:
        work = import_module(f"diffclip.models.export.{module}").export
    except ModuleNotFoundError as error:
        if not extra:
            raise
        raise UserError(f"--to {to} needs {error.name}: pip install 'diffclip[{extra}]'") from None
    check_free(out)
    loaded = load_clip(model, what="export")
    found = work(loaded, out)
    durable.write_text(out / REPORT, json.dumps(dataclasses.asdict(found), indent=1) + "\n")
    if not (found.image <= LARGEST and (found.text or 0.0) <= LARGEST and (found.pixels or 0.0) <= LARGEST_OF_PIXELS):
        raise UserError(f"{out} does not compute what {model} does, so do not use it: {found}")
    Terminal().print(f"{out}: {found}.", highlight=False, soft_wrap=True)
