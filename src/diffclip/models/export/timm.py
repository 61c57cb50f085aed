"""A folder that timm takes as local-dir:FOLDER, or from the hub: the image tower, with its projection as the head.

timm has no text towers. Its differential attention is the paper's with a λ_init that grows with depth; a layer with
another λ_init computes the same by other vectors of λ:

    λ = exp(λq1·λk1) − exp(λq2·λk2) + λ_init,    heads = (1 − λ_init) · w · RMSNorm(O)

so λ_init' in place of λ_init needs λ unchanged, and w' = w (1 − λ_init) / (1 − λ_init').
"""

import json
import math
from pathlib import Path
from typing import Any

import timm
import timm.data
import torch
from torch import Tensor

from diffclip import durable
from diffclip.errors import UserError
from diffclip.models import parity
from diffclip.models.clip import CLIP
from diffclip.models.parity import Parity
from diffclip.models.presets import ModelConfig
from diffclip.models.weights.files import CONFIG_NAME, WEIGHTS_NAME

# eps of the norms → an architecture of timm that has it; every size is among its arguments.
ARCHITECTURE = {1e-5: "vit_base_patch16_clip_224", 1e-6: "vit_base_patch16_224"}
CROP_MODE = {"shortest": "center", "squash": "squash"}


def export(model: CLIP, out: Path) -> Parity:
    """Write the folder, open it with timm, and compare from images on.

    Raises UserError where timm has no place for the tower, with the fields of its configuration.
    """
    config = model.config
    faults = [
        f"{name} = {getattr(config, name)!r}"
        for name, known in (
            ("vision_attention", ("standard", "differential")),
            ("vision_attention_layers", (None,)),
            ("vision_stem", ("patches",)),
            ("resolved_vision_norm_eps", ARCHITECTURE),
            ("resize", CROP_MODE),
            ("crop", ("round",)),
        )
        if getattr(config, name) not in known
    ]
    if faults:
        raise UserError(f"timm has no place for {', '.join(faults)}: export --to transformers, or --to onnx")
    durable.write_tensors(out / WEIGHTS_NAME, _tensors(model), {"format": "pt"})
    durable.write_text(out / CONFIG_NAME, json.dumps(_config(config), indent=1) + "\n")
    return _compare(model, out)


def _config(config: ModelConfig) -> dict[str, Any]:
    differential = config.vision_attention == "differential"
    return {
        "architecture": ARCHITECTURE[config.resolved_vision_norm_eps],
        "num_classes": config.embed_dim,
        "num_features": config.vision_width,
        "model_args": {
            "img_size": config.image_size,
            "patch_size": config.patch_size,
            "embed_dim": config.vision_width,
            "depth": config.vision_depth,
            "num_heads": config.vision_heads // 2 if differential else config.vision_heads,
            "mlp_ratio": config.mlp_ratio,
            "pre_norm": config.vision_pre_norm,
            "act_layer": config.vision_activation,
            **({"attn_layer": "diff"} if differential else {}),
        },
        "pretrained_cfg": {
            "input_size": [3, config.image_size, config.image_size],
            "fixed_input_size": True,
            "mean": config.image_mean,
            "std": config.image_std,
            "interpolation": config.interpolation,
            "crop_pct": config.image_size / (config.resize_to or config.image_size),
            "crop_mode": CROP_MODE[config.resize],
            "num_classes": config.embed_dim,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def _tensors(model: CLIP) -> dict[str, Tensor]:
    """The image tower's tensors by timm's names."""
    tensors = {name: tensor.detach().cpu() for name, tensor in model.visual.state_dict().items()}
    if model.config.vision_attention == "differential":
        for layer in range(model.config.vision_depth):
            _with_timms_lambda_init(tensors, f"blocks.{layer}.attn.", model.config.lambda_init_at(layer), layer)
    tensors["head.weight"] = model.image_projection.detach().cpu().T
    tensors["head.bias"] = tensors["head.weight"].new_zeros(model.config.embed_dim)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _with_timms_lambda_init(tensors: dict[str, Tensor], prefix: str, lambda_init: float, layer: int) -> None:
    """Replace a layer's vectors of λ and its head norm by those that compute the same with timm's λ_init."""
    given = 0.8 - 0.6 * math.exp(-0.3 * layer)
    norm = tensors.pop(f"{prefix}norm.weight")
    tensors[f"{prefix}sub_norm.weight"] = norm * ((1 - lambda_init) / (1 - given))
    vectors = {name: tensors[f"{prefix}lambda_{name}"] for name in ("q1", "k1", "q2", "k2")}
    moved = lambda_init - given
    number = 1 if moved >= 0 else 2  # the exponential that grows, so that its logarithm is there
    query, key = (vectors[f"{letter}{number}"].double() for letter in "qk")
    product = float(query @ key)
    wanted = math.log(math.exp(product) + abs(moved))
    if float(key @ key) < 1e-6:  # no direction along which the query could change the product
        key = torch.ones_like(key)
        tensors[f"{prefix}lambda_k{number}"] = key.float()
        product = float(query @ key)
    tensors[f"{prefix}lambda_q{number}"] = (query + (wanted - product) / (key @ key) * key).float()


@torch.no_grad()
def _compare(model: CLIP, out: Path) -> Parity:
    double = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(double))
    pixels = torch.stack([prepare(image) for image in parity.examples()[0]])
    return parity.compare(model, double, None, pixels)
