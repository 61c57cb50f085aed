"""Weights of other libraries under this one's names: the released DiffCLIP, SLIP's and open_clip's CLIP.

The names of the tensors show the library. Their shapes give the sizes. What shapes cannot give (activations, λ_init,
eps, image statistics) is set to what that library uses, and can be overridden.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffclip.errors import UserError
from diffclip.models.image_settings import OPENAI_MEAN, OPENAI_STD
from diffclip.models.presets import ModelConfig, override

log = logging.getLogger(__name__)

# Applied in this order, to every name.
RENAMES = (
    (r"^visual\.class_embedding$", "visual.cls_token"),
    (r"^visual\.positional_embedding$", "visual.pos_embed"),
    (r"^visual\.conv1\.", "visual.patch_embed.proj."),
    (r"^visual\.ln_pre\.", "visual.norm_pre."),
    (r"^visual\.ln_post\.", "visual.norm."),
    (r"^visual\.proj$", "image_projection"),
    (r"^visual\.transformer\.resblocks\.", "visual.blocks."),
    (r"^transformer\.resblocks\.", "text.blocks."),
    (r"^(positional_embedding|token_embedding\.weight)$", r"text.\1"),
    (r"^ln_final\.", "text.norm."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.attn\.diff_norm\.", ".attn.norm."),
)
# Not weights: OpenAI's archives keep these numbers as tensors, older open_clip the causal mask.
NOT_WEIGHTS = {"input_resolution", "context_length", "vocab_size", "attn_mask"}
# Widths of open_clip's towers whose heads are not 64 wide: ViT-H, ViT-g, ViT-bigG.
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
# What the configuration is read from, and its number of dimensions.
NEEDED = {
    "image_projection": 2,
    "visual.patch_embed.proj.weight": 4,
    "visual.pos_embed": 3,
    "visual.blocks.0.mlp.fc1.weight": 2,
    "text.positional_embedding": 2,
    "text.token_embedding.weight": 2,
    "text.blocks.0.mlp.fc1.weight": 2,
}


def convert(
    tensors: Mapping[str, Tensor], where: str, overrides: Mapping[str, Any]
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The configuration and the renamed tensors of another library's state dict.

    tensors: without "module." before their names. where: what messages call it. overrides: fields of
    ModelConfig that the weights cannot tell, or tell wrongly. Raises UserError if the names are of no known
    library, or if a tensor from which the configuration is read is missing.
    """
    is_open_clip = "visual.class_embedding" in tensors
    if is_open_clip and "text.token_embedding.weight" in tensors:  # CustomTextCLIP keeps them apart
        tensors = {name.removeprefix("text."): tensor for name, tensor in tensors.items()}
    if "text.token_embedding.weight" in tensors:
        raise UserError(f"{where} lacks the configuration it was saved with: put its config.json beside it")
    if not is_open_clip and "visual.cls_token" not in tensors:
        first = ", ".join(list(tensors)[:4]) or "none"
        raise UserError(
            f"{where}: these {len(tensors)} tensors ({first}, …) are neither a diffclip model's, nor "
            "those of the released DiffCLIP, SLIP's CLIP or open_clip's CLIP"
        )
    named = {_rename(name): tensor for name, tensor in tensors.items() if name not in NOT_WEIGHTS}
    named = fuse_projections(named, where)
    if is_open_clip:
        named["visual.cls_token"] = named["visual.cls_token"].view(1, 1, -1)
        if "visual.pos_embed" in named:
            named["visual.pos_embed"] = named["visual.pos_embed"].unsqueeze(0)
    faults = [f"{name} is missing" for name in NEEDED if name not in named]
    faults += [
        f"{name} is {tuple(named[name].shape)}, which should have {dimensions} dimensions"
        for name, dimensions in NEEDED.items()
        if name in named and named[name].ndim != dimensions
    ]
    faults += [f"{name} is {tuple(named[name].shape)}" for name in NEEDED if name in named and not named[name].numel()]
    if faults:
        raise UserError(f"{where} (named as in diffclip): {'; '.join(faults)}; sizes cannot be read without")
    settings = _read_shapes(named, where)
    if is_open_clip:
        settings |= _open_clip_settings(overrides, is_openais="input_resolution" in tensors)
    else:
        settings |= _slip_settings(named, overrides)
    return override(ModelConfig(), settings | dict(overrides)), named


def _rename(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def fuse_projections(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """q_proj, k_proj and v_proj of each layer → qkv."""
    fused = {}
    faults = []
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.*\.attn)\.([qkv])_proj\.(weight|bias)", name)
        if not match:
            fused[name] = tensor
            continue
        parts = [f"{match[1]}.{letter}_proj.{match[3]}" for letter in "qkv"]
        absent = [part for part in parts if part not in tensors]
        if absent:
            faults += [f"{part} is missing" for part in absent]
        elif len({tensors[part].shape for part in parts}) > 1:
            faults.append(" and ".join(f"{part} is {tuple(tensors[part].shape)}" for part in parts))
        elif match[2] == "q":
            fused[f"{match[1]}.qkv.{match[3]}"] = torch.cat([tensors[part] for part in parts])
    if faults:
        raise UserError(f"{where}: {'; '.join(dict.fromkeys(faults))}")
    return fused


def _read_shapes(tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    patch_size = tensors["visual.patch_embed.proj.weight"].shape[-1]
    _, positions, width = tensors["visual.pos_embed"].shape
    grid = round((positions - 1) ** 0.5)
    context_length, text_width = tensors["text.positional_embedding"].shape
    settings: dict[str, Any] = {
        "embed_dim": tensors["image_projection"].shape[1],
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "vision_width": width,
        "vision_pre_norm": "visual.norm_pre.weight" in tensors,
        "text_width": text_width,
        "context_length": context_length,
        "vocab_size": len(tensors["text.token_embedding.weight"]),
        "mlp_ratio": len(tensors["visual.blocks.0.mlp.fc1.weight"]) / width,
        "text_mlp_ratio": len(tensors["text.blocks.0.mlp.fc1.weight"]) / text_width,
        "logit_bias": 0.0 if "logit_bias" in tensors else None,
    }
    for tower, prefix in (("vision", "visual"), ("text", "text")):
        layers = {int(m[1]) for name in tensors if (m := re.match(rf"{prefix}\.blocks\.(\d{{1,9}})\.", name))}
        if not layers:
            raise UserError(f"{where} holds no blocks of the {tower} tower")
        settings[f"{tower}_depth"] = max(layers) + 1
        lambda_q1 = tensors.get(f"{prefix}.blocks.0.attn.lambda_q1")
        tower_width = settings[f"{tower}_width"]
        head_width = HEAD_WIDTHS.get(tower_width, 64) if lambda_q1 is None else max(1, lambda_q1.numel())
        settings[f"{tower}_attention"] = "standard" if lambda_q1 is None else "differential"
        settings[f"{tower}_heads"] = max(1, tower_width // head_width)
    return settings


def _slip_settings(tensors: Mapping[str, Tensor], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Of the released DiffCLIP and of SLIP's CLIP, from which it was made."""
    differential = any(".attn.lambda_q1" in name for name in tensors)
    if differential and not overrides.keys() & {"lambda_init", "lambda_schedule"}:
        log.warning(
            "the weights do not say what λ_init they were trained with: 0.8 in every layer is taken; "
            'give lambda_schedule="depth" for a DiffCLIP* model'
        )
    is_vision_differential = "visual.blocks.0.attn.lambda_q1" in tensors
    return {"init": "released", "vision_norm_eps": 1e-5 if is_vision_differential else 1e-6}


def _open_clip_settings(overrides: Mapping[str, Any], is_openais: bool) -> dict[str, Any]:
    if not is_openais and not overrides.keys() & {"vision_activation", "text_activation"}:
        log.warning(
            "open_clip's weights do not say which activation they were trained with: exact GELU is taken; "
            'give vision_activation="quick_gelu", text_activation="quick_gelu" for OpenAI\'s own'
        )
    return {
        "vision_norm_eps": 1e-5,
        "vision_activation": "quick_gelu" if is_openais else "gelu",
        "text_activation": "quick_gelu" if is_openais else "gelu",
        "resizer": "pillow",
        "image_mean": OPENAI_MEAN,
        "image_std": OPENAI_STD,
    }
