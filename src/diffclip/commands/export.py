"""`diffclip export`: a model for other programs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from diffclip.errors import UserError

REPORT = "parity.json"
LARGEST = 1e-4  # of a difference of normalised features: several times what float32 rounds
LARGEST_OF_INT8 = 0.5  # beyond any rounding: something else is wrong; what is lost is for the reader to judge
LARGEST_OF_PIXELS = 0.06  # of a normalised pixel: three of 255 levels, as libraries round resized images apart


Target = Literal["transformers", "sentence-transformers", "open_clip", "timm", "onnx"]
EXTRAS = {"transformers": "vlm", "sentence-transformers": "sentence", "onnx": "onnx"}
"""What each needs beyond diffclip's own dependencies."""


def export(
    model: Positional[str],
    /,
    *,
    to: Target,
    out: Path,
    int8: bool = False,
    images: tuple[Path, ...] = (),
    texts: tuple[str, ...] = (),
) -> None:
    """Write a model for another program, and say how far its features are from ours.

    Args:
        model: What diffclip.load takes: a run, a folder, a file, hf:owner/name.
        to: transformers: AutoModel and AutoProcessor open it; sentence-transformers: SentenceTransformer too.
            open_clip: standard attention only. timm: the image tower. onnx: two encoders, any batch.
        out: The folder to write, which holds no model yet. The report is in its parity.json.
        int8: With --to onnx: round the weights to 8 bits, and say how often the best text of an image stays the same.
        images: With --int8: images to say it of; by default drawn scenes.
        texts: With --int8: texts to choose from, two or more; by default the names of the scenes' classes.
    """
    from importlib import import_module

    from PIL import Image

    from diffclip import durable
    from diffclip.data.images import decode_file
    from diffclip.models.weights.store import check_free, load_clip
    from diffclip.terminal import Terminal

    if int8 and to != "onnx":
        raise UserError(f"--int8 goes with --to onnx, not with --to {to}")
    if (images or texts) and not int8:
        raise UserError("--images and --texts go with --int8, whose agreement they measure")
    if len(texts) == 1:
        raise UserError("--texts: give two or more, of which the best is chosen")
    options: dict[str, Any] = {}
    if int8:
        options = {"int8": True, "images": [Image.fromarray(decode_file(path)) for path in images], "texts": texts}
    try:
        work = import_module(f"diffclip.models.export.{to.replace('-', '_')}").export
    except ModuleNotFoundError as error:
        if to not in EXTRAS:
            raise
        raise UserError(f"--to {to} needs {error.name}: pip install 'diffclip[{EXTRAS[to]}]'") from None
    check_free(out)
    loaded = load_clip(model, what="export")
    found = work(loaded, out, **options)
    durable.write_text(out / REPORT, json.dumps(dataclasses.asdict(found), indent=1) + "\n")
    largest = LARGEST_OF_INT8 if int8 else LARGEST
    if not (found.image <= largest and (found.text or 0.0) <= largest and (found.pixels or 0.0) <= LARGEST_OF_PIXELS):
        raise UserError(f"{out} does not compute what {model} does, so do not use it: {found}")
    Terminal().print(f"{out}: {found}.", highlight=False, soft_wrap=True)
