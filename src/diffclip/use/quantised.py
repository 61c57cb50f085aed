"""The image tower in 8-bit integers: an ONNX graph, made once for a model and kept in the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import Tensor

from diffclip import durable
from diffclip.errors import UserError
from diffclip.models.clip import our_own
from diffclip.models.image_text import ImageTextModel

log = logging.getLogger(__name__)

VERSION = 2
"""Counts up when the graph comes to be made in another way."""


def quantised_encoder(model: ImageTextModel, fingerprint: str) -> Callable[[Tensor], Tensor]:
    """Normalised pixels (B, 3, S, S) float32 → features (B, embed_dim) float32, not normalised, on the CPU.

    The graph is that of `diffclip export --to onnx --int8`. It lies in the cache folder under the model's fingerprint.
    Raises UserError where the extra `onnx` lacks or the model is no `CLIP`.
    """
    clip = our_own(model, "--dtype int8")
    try:
        from diffclip.models.export import onnx as export
    except ModuleNotFoundError as error:
        raise UserError(f"--dtype int8 needs {error.name}: pip install 'diffclip[onnx]'") from None
    path = durable.cache_folder() / "int8" / f"{fingerprint[:32]}-{VERSION}.onnx"
    if not path.exists():
        log.warning("quantising the image tower, once for this model: about a minute")
        with durable.writing(path) as unfinished:
            export.write_image_tower(clip, unfinished)
            export.round_weights(unfinished)
    return export.runs(path)
