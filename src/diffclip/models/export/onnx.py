"""Two ONNX graphs, one a tower, for any batch; onnxruntime says how far they are from the model."""

import json
from dataclasses import fields
from pathlib import Path

import onnxruntime
import onnxscript  # noqa: F401  torch.onnx needs it, and says so less clearly
import torch
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


def export(model: CLIP, out: Path) -> Parity:
    """image.onnx: pixels (B, 3, S, S) float32 → features; text.onnx: tokens (B, context_length) int64 → features.

    Features are (B, embed_dim), not normalised. preprocess.json says what pixels and tokens are, and how logits are
    made. Raises OSError.
    """
    out.mkdir(parents=True, exist_ok=True)
    _, tokens = parity.inputs(model.config)
    write_image_tower(model, out / IMAGE)
    _write(_Tower(model, model.encode_full_text), tokens, "tokens", out / TEXT)
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
    return parity.compare(model, runs(out / IMAGE), runs(out / TEXT))


def write_image_tower(model: CLIP, path: Path) -> None:
    """The graph of encode_image alone, as `export` writes it. Raises OSError."""
    _write(_Tower(model, model.encode_image), parity.inputs(model.config)[0], "pixels", path)


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
    """A graph on disk as a function of tensors, computed by onnxruntime on the CPU."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])

    return run
