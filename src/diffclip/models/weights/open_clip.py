"""open_clip's own configuration beside its weights: obeyed in full, by a `CLIP` or by open_clip's class."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from diffclip.data.tokenizer import get_tokenizer
from diffclip.errors import UserError
from diffclip.models.image_settings import OPENAI_MEAN, OPENAI_STD, ImageSettings
from diffclip.models.weights.convert import NOT_WEIGHTS
from diffclip.models.weights.files import OPEN_CLIP_CONFIG_NAME, read_json
from diffclip.models.weights.open_clip_maps import recorder_of
from diffclip.models.wrapped import Wrapped
from diffclip.text import listed

# The settings of a tower that `CLIP` has too; every other must be at open_clip's default, or open_clip's class is used.
VISION = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout"}
TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
MODEL = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias"}
NO_DIFFERENCE = {"output_tokens", "timm_model_pretrained", "hf_model_pretrained"}  # to features


def beside(path: Path) -> dict[str, Any] | None:
    """What open_clip_config.json beside some weights holds, or None. Raises UserError where it is none."""
    file = path.with_name(OPEN_CLIP_CONFIG_NAME)
    if not file.is_file():
        return None
    content = read_json(file)
    parts = [content.get("model_cfg"), content.get("preprocess_cfg", {})]
    parts += [parts[0].get("vision_cfg"), parts[0].get("text_cfg")] if isinstance(parts[0], dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{file}: model_cfg, vision_cfg and text_cfg in it, and preprocess_cfg must be objects")
    return content


def image_settings(content: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The fields of ImageSettings that preprocess_cfg and the size of the model state. Raises UserError."""
    stated = {key: value for key, value in content.get("preprocess_cfg", {}).items() if value is not None}
    size = _square(content["model_cfg"]["vision_cfg"].get("image_size", 224), where)
    given = _square(stated.pop("size", size), where)
    mode = stated.pop("mode", "RGB")
    if given != size or mode != "RGB":
        raise UserError(f"{where}: preprocess_cfg says size {given} and mode {mode}; the model takes {size} and RGB")
    interpolation = stated.pop("interpolation", "bicubic")
    settings = {
        "image_size": size,
        "image_mean": _colours(stated.pop("mean", OPENAI_MEAN)),
        "image_std": _colours(stated.pop("std", OPENAI_STD)),
        "interpolation": "bicubic" if interpolation == "random" else interpolation,  # drawn in training alone
        "resize": stated.pop("resize_mode", "shortest"),
        "fill": stated.pop("fill_color", 0),
        "resizer": "pillow",
    }
    if stated:
        raise UserError(f"{where}: preprocess_cfg states {listed(sorted(stated))}, which nothing here obeys")
    return settings


def model_settings(content: Mapping[str, Any], where: Path) -> tuple[dict[str, Any], str]:
    """The fields of ModelConfig that model_cfg states, and what of it no `CLIP` has: empty where it can be one.

    Raises UserError for what open_clip does not know either.
    """
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    model = content["model_cfg"]
    try:
        vision, text = CLIPVisionCfg(**model["vision_cfg"]), CLIPTextCfg(**model["text_cfg"])
    except TypeError as error:
        raise UserError(f"{where}: open_clip knows no such setting: {str(error).partition('argument ')[2]}") from None
    others = sorted(key for key in model if key not in MODEL and model[key] not in (None, False))
    others += _others(vision, VISION) + _others(text, TEXT)
    if others or not isinstance(vision.layers, int) or not isinstance(vision.patch_size, int):
        return {}, listed(others or ["a ResNet"])
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return {
        "embed_dim": model["embed_dim"],
        "patch_size": vision.patch_size,
        "vision_width": vision.width,
        "vision_depth": vision.layers,
        "vision_heads": vision.width // vision.head_width,
        "vision_activation": activation,
        "vision_pre_norm": True,
        "text_width": text.width,
        "text_depth": text.layers,
        "text_heads": text.heads,
        "text_activation": activation,
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "mlp_ratio": vision.mlp_ratio,
        "text_mlp_ratio": text.mlp_ratio,
        "patch_dropout": vision.patch_dropout,
        "logit_bias": model.get("init_logit_bias"),
    }, ""


def _others(config: Any, known: set[str]) -> list[str]:
    changed = {f.name: value for f in fields(config) if (value := getattr(config, f.name)) != f.default}
    return [f"{name} = {value}" for name, value in changed.items() if name not in known | NO_DIFFERENCE]


def _square(size: Any, where: Path) -> int:
    edges = size if isinstance(size, list | tuple) else [size]
    if not edges or len(set(edges)) > 1 or not isinstance(edges[0], int):
        raise UserError(f"{where}: images of {size} pixels are not square")
    return edges[0]


def _colours(value: Any) -> Any:
    return (float(value),) * 3 if isinstance(value, int | float) else tuple(map(float, value))


def wrap(
    content: Mapping[str, Any], path: Path, tensors: Mapping[str, Tensor], settings: ImageSettings, why: str
) -> Wrapped:
    """open_clip's own model with some weights, none of which may be missing. Raises UserError."""
    import open_clip

    folder, before = f"local-dir:{path.parent}", logging.root.manager.disable
    logging.disable(logging.WARNING)  # of weights that are drawn: those that were read take their place
    try:
        inner = open_clip.create_model(folder, load_weights=False, pretrained_text=False)
        tokenizer = open_clip.get_tokenizer(folder)
    except Exception as error:  # of several libraries' types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path.with_name(OPEN_CLIP_CONFIG_NAME)}: open_clip cannot build it: {reason[:300]}") from None
    finally:
        logging.disable(before)
    return _wrapped(inner, tensors, settings, tokenizer, why, str(path))


def resnet(tensors: Mapping[str, Tensor], where: str) -> Wrapped:
    """One of OpenAI's ResNets, whose sizes its shapes tell."""
    from open_clip.model import build_model_from_openai_state_dict

    tensors = {name: tensor for name, tensor in tensors.items() if name not in NOT_WEIGHTS}
    try:
        inner = build_model_from_openai_state_dict(tensors, quick_gelu=True)
    except (KeyError, RuntimeError, AssertionError, IndexError) as error:
        raise UserError(f"{where} is no ResNet of OpenAI's: {' '.join(str(error).split())[:300]}") from None
    size = inner.visual.image_size
    settings = ImageSettings(image_size=size, image_mean=OPENAI_MEAN, image_std=OPENAI_STD, resizer="pillow")
    return _wrapped(inner, tensors, settings, get_tokenizer(), "a ResNet", where)


def _wrapped(
    inner: Any,
    tensors: Mapping[str, Tensor],
    settings: ImageSettings,
    tokenizer: Callable[..., Tensor],
    why: str,
    where: str,
) -> Wrapped:
    """An open_clip model, its weights filled in. Raises UserError where they do not fit."""
    try:
        inner.float().load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise UserError(f"{where} does not fit its configuration: {' '.join(str(error).split())[:500]}") from None
    facts = {
        "model": f"open_clip's {type(inner).__name__}",
        "why": f"no CLIP of ours has {why}",
        "tokenizer": type(tokenizer).__name__,
    }
    return Wrapped(
        inner.eval(),
        settings,
        tokenizer,
        image=lambda model, pixels: model.encode_image(pixels, normalize=False),
        text=lambda model, tokens: model.encode_text(tokens, normalize=False),
        logit_scale=inner.logit_scale,
        logit_bias=getattr(inner, "logit_bias", None),
        facts=facts,
        recorder=recorder_of(inner),
    )
