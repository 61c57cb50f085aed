"""Two ONNX graphs, one a tower, for any batch; onnxruntime says how far they are from the model, and how fast.

In int8 the matrices of the weights are rounded to 7 bits a channel, and what they are multiplied with to 8 bits, by
its range in each call. The products of attention stay in float32, as do embeddings and convolutions.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import onnxruntime
import onnxscript  # noqa: F401  torch.onnx needs it, and says so less clearly
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image
from torch import Tensor, nn

from diffclip import durable
from diffclip.models import parity
from diffclip.models.clip import CLIP
from diffclip.models.image_settings import ImageSettings
from diffclip.models.parity import Encode, Parity

IMAGE, TEXT, PREPROCESS = "image.onnx", "text.onnx", "preprocess.json"


class _Tower(nn.Module):
    def __init__(self, model: CLIP, encode: Encode) -> None:
        super().__init__()
        self.model, self.encode = model, encode

    def forward(self, given: Tensor) -> Tensor:
        return self.encode(given)


def export(
    model: CLIP, out: Path, *, int8: bool = False, images: Sequence[Image.Image] = (), texts: Sequence[str] = ()
) -> Parity:
    """image.onnx: pixels (B, 3, S, S) float32 → features; text.onnx: tokens (B, context_length) int64 → features.

    Features are (B, embed_dim), not normalised. preprocess.json says what pixels and tokens are, and how logits are
    made. int8: round the matrices of the weights; then the report has how often the best text of an image is the
    model's, of the images and texts given, or of drawn scenes and the names of their classes. Raises OSError.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_image_tower(model, out / IMAGE)
    _write(_Tower(model, model.encode_full_text), parity.inputs(model.config)[1], "tokens", out / TEXT)
    for graph in (out / IMAGE, out / TEXT) if int8 else ():
        round_weights(graph)
    bias = float(model.logit_bias.detach()) if model.config.logit_bias is not None else None
    how = {
        "pixels": {
            **{field.name: getattr(model.config, field.name) for field in fields(ImageSettings)},
            "antialiased": True,
            "values": "0 to 1, less the mean, over the standard deviation, channel by channel",
        },
        "tokens": {
            "tokenizer": "CLIP's byte-pair encoding of lower-cased text",
            "context_length": model.config.context_length,
            "end_of_text": model.config.vocab_size - 1,
        },
        "logits": {
            "scale": float(model.logit_scale.detach().exp()),
            "bias": bias,
            "of": "features normalised to length 1",
        },
    }
    durable.write_text(out / PREPROCESS, json.dumps(how, indent=1) + "\n")
    encode_image, encode_text = runs(out / IMAGE), runs(out / TEXT)
    found = parity.compare(model, encode_image, encode_text)
    agreement = parity.agreement(model, encode_image, encode_text, images, texts) if int8 else None
    return replace(found, agreement=agreement, milliseconds=parity.speed(model, encode_image, encode_text))


def write_image_tower(model: CLIP, path: Path) -> None:
    """The graph of encode_image alone, as `export` writes it. Raises OSError."""
    _write(_Tower(model, model.encode_image), parity.inputs(model.config)[0], "pixels", path)


def round_weights(graph: Path) -> None:
    """Round the weights of a graph on disk to int8, in its place. Raises OSError."""
    with tempfile.TemporaryDirectory() as made, durable.writing(graph) as rounded:
        shaped = Path(made) / "shaped.onnx"
        quant_pre_process(str(graph), str(shaped), skip_symbolic_shape=True)
        quantize_dynamic(
            shaped,
            rounded,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            # 7 bits: without VNNI a processor adds pairs of 8-bit products in 16 bits, which overflow unseen.
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )


def _write(tower: _Tower, example: Tensor, name: str, path: Path) -> None:
    program = torch.onnx.export(
        tower.eval(),
        (example,),
        dynamo=True,
        input_names=[name],
        output_names=["features"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None
    program.save(str(path))


def runs(path: Path) -> Encode:
    """A graph on disk as a function of tensors, computed by onnxruntime on the CPU, on as many threads as torch."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])

    return run
