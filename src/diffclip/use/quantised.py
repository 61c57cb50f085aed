"""The image tower in 8-bit integers: an ONNX graph, made once for a model and kept in the cache."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout

import torch
from torch import Tensor

from diffclip import durable
from diffclip.errors import UserError
from diffclip.models.clip import our_own
from diffclip.models.image_text import ImageTextModel

log = logging.getLogger(__name__)

VERSION = 1
"""Counts up when the graph comes to be made in another way."""


def quantised_encoder(model: ImageTextModel, fingerprint: str) -> Callable[[Tensor], Tensor]:
    """Normalised pixels (B, 3, S, S) float32 → features (B, embed_dim) float32, not normalised, on the CPU.

    Matrices have 7 of 8 bits, scaled by each column's largest value; what they multiply is quantised as it comes. The
    graph lies in the cache folder under the model's fingerprint. Raises UserError where the extra `onnx` lacks or
    the model is no `CLIP`.
    """
    clip = our_own(model, "--dtype int8")
    try:
        import onnxruntime
        from onnxruntime.quantization import QuantType, quantize_dynamic

        from diffclip.models.export import onnx as export
    except ModuleNotFoundError as error:
        raise UserError(f"--dtype int8 needs {error.name}: pip install 'diffclip[onnx]'") from None
    path = durable.cache_folder() / "int8" / f"{fingerprint[:32]}-{VERSION}.onnx"
    if not path.exists():
        log.warning("quantising the image tower, once for this model: about a minute")
        with durable.writing(path) as unfinished:
            whole = unfinished.with_name(f"{unfinished.name}.whole{durable.UNFINISHED}")
            try:
                with _quiet():
                    export.write_image_tower(clip, whole)
                    quantize_dynamic(
                        whole,
                        unfinished,
                        per_channel=True,
                        reduce_range=True,  # 7 bits: the products of 8 overflow where AVX2 adds them, without VNNI
                        weight_type=QuantType.QInt8,
                        op_types_to_quantize=["MatMul"],
                    )
            finally:
                for part in whole.parent.glob(f"{whole.name}*"):
                    durable.remove(part)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def encode(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {given.name: pixels.numpy()})[0])

    return encode


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx tells each of its steps, and the quantiser recommends what changes nothing here."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(before)
