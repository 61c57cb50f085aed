"""A folder that open_clip takes as local-dir:FOLDER, or from the hub: standard attention in both towers.

open_clip has two places for an image tower. Its own has a norm before the first block; timm's has the sizes of the
models that timm names. What fits into neither is refused.
"""

import json
import re
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from torch import Tensor

from diffclip import durable
from diffclip.errors import UserError
from diffclip.models import parity
from diffclip.models.clip import CLIP
from diffclip.models.parity import Parity
from diffclip.models.presets import ModelConfig
from diffclip.models.weights.files import OPEN_CLIP_CONFIG_NAME, OPEN_CLIP_WEIGHTS_NAME

# Width, depth and heads of timm's vision transformers.
TIMM_SIZES = {
    (192, 12, 3): "tiny",
    (384, 12, 6): "small",
    (768, 12, 12): "base",
    (1024, 24, 16): "large",
    (1280, 32, 16): "huge",
}
BLOCKS = (
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.attn\.qkv\.", ".attn.in_proj_"),
    (r"\.attn\.proj\.", ".attn.out_proj."),
)
TEXT = (
    (r"^text\.blocks\.", "transformer.resblocks."),
    (r"^text\.norm\.", "ln_final."),
    (r"^text\.", ""),
    *BLOCKS,
)
OWN_TOWER = (
    (r"^image_projection$", "visual.proj"),
    (r"^visual\.cls_token$", "visual.class_embedding"),
    (r"^visual\.pos_embed$", "visual.positional_embedding"),
    (r"^visual\.patch_embed\.proj\.", "visual.conv1."),
    (r"^visual\.norm_pre\.", "visual.ln_pre."),
    (r"^visual\.norm\.", "visual.ln_post."),
    (r"^visual\.blocks\.", "visual.transformer.resblocks."),
    *BLOCKS,
)
TIMM_TOWER = ((r"^image_projection$", "visual.head.proj.weight"), (r"^visual\.(?!head)", "visual.trunk."))


def export(model: CLIP, out: Path) -> Parity:
    """Write the folder, open it with open_clip, and compare from images and texts on.

    Raises UserError where open_clip has no place for the model, with the fields of its configuration.
    """
    config = model.config
    vision = _own_tower(config) if config.vision_pre_norm else _timm_tower(config)
    faults = [
        f"{name} = {getattr(config, name)!r}"
        for name, needed in (
            ("vision_attention", "standard"),
            ("text_attention", "standard"),
            ("vision_stem", "patches"),
            ("text_norm_eps", 1e-5),
            ("resize_to", None),
            ("crop", "round"),
            ("fill", 0),
        )
        if getattr(config, name) != needed
    ] + vision.pop("faults")
    if faults:
        raise UserError(f"open_clip has no place for {', '.join(faults)}: export --to transformers, or --to onnx")
    content = {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": config.text_activation == "quick_gelu",
            "vision_cfg": {"image_size": config.image_size, **vision},
            "text_cfg": {
                "context_length": config.context_length,
                "vocab_size": config.vocab_size,
                "width": config.text_width,
                "heads": config.text_heads,
                "layers": config.text_depth,
                "mlp_ratio": config.text_mlp_ratio or config.mlp_ratio,
            },
            **({} if config.logit_bias is None else {"init_logit_bias": config.logit_bias}),
        },
        "preprocess_cfg": {
            "mean": config.image_mean,
            "std": config.image_std,
            "interpolation": config.interpolation,
            "resize_mode": config.resize,
        },
    }
    tensors = dict(_renamed(name, tensor, config.vision_pre_norm) for name, tensor in model.state_dict().items())
    durable.write_tensors(out / OPEN_CLIP_WEIGHTS_NAME, tensors, {"format": "pt"})
    durable.write_text(out / OPEN_CLIP_CONFIG_NAME, json.dumps(content, indent=1) + "\n")
    return _compare(model, out)


def _own_tower(config: ModelConfig) -> dict[str, Any]:
    faults = [] if config.resolved_vision_norm_eps == 1e-5 else [f"eps = {config.resolved_vision_norm_eps:g}"]
    if config.vision_activation != config.text_activation:
        faults.append("two activations")
    return {
        "faults": faults,
        "layers": config.vision_depth,
        "width": config.vision_width,
        "head_width": config.vision_width // config.vision_heads,
        "patch_size": config.patch_size,
        "mlp_ratio": config.mlp_ratio,
    }


def _timm_tower(config: ModelConfig) -> dict[str, Any]:
    sizes = config.vision_width, config.vision_depth, config.vision_heads
    name = f"vit_{TIMM_SIZES.get(sizes)}_patch{config.patch_size}_{config.image_size}"
    faults = []
    if not timm.is_model(name) or config.mlp_ratio != 4:
        size = f"{config.image_size} pixels in patches of {config.patch_size}, width, depth and heads {sizes}"
        faults.append(f"an image tower of {size}, which timm has no name for")
    if config.resolved_vision_norm_eps != 1e-6 or config.vision_activation != "gelu":
        faults.append(f"eps = {config.resolved_vision_norm_eps:g} and {config.vision_activation} in a tower of timm's")
    return {"faults": faults, "timm_model_name": name, "timm_pool": "token", "timm_proj": "linear"}


def _renamed(name: str, tensor: Tensor, own: bool) -> tuple[str, Tensor]:
    if name.startswith("text."):
        renames: tuple[tuple[str, str], ...] = TEXT
    else:
        renames = OWN_TOWER if own else TIMM_TOWER
        if own and name in ("visual.cls_token", "visual.pos_embed"):
            tensor = tensor.view(-1, tensor.shape[-1]).squeeze(0)
        elif not own and name == "image_projection":
            tensor = tensor.T
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name, tensor.contiguous()


@torch.no_grad()
def _compare(model: CLIP, out: Path) -> Parity:
    double, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{out}")
    images, texts = parity.examples()
    pixels, tokens = torch.stack([preprocess(image) for image in images]), tokenize(texts)
    double.eval()
    return parity.compare(model, double.encode_image, lambda _: double.encode_text(tokens), pixels)
