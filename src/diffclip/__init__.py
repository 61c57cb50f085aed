"""CLIP with differential attention: models, training, evaluation, analysis.

Importing this does not import torch: each public name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffclip import analysis, data, evaluation, models, reporting, training
    from diffclip.data.tokenizer import get_tokenizer
    from diffclip.errors import UserError
    from diffclip.models.attention.layer import DifferentialAttention
    from diffclip.models.attention.ops import differential_attention
    from diffclip.models.attention.variants import (
        ClampedDifferentialAttention,
        DintAttention,
        GatedAttention,
        GatedMapsAttention,
        NormedAttention,
        UnnormedDifferentialAttention,
        WideAttention,
    )
    from diffclip.models.attention.version2 import DifferentialAttentionV2, GatedDifferentialAttention, NoSecondMap
    from diffclip.models.clip import CLIP, create_model
    from diffclip.models.convert import convert
    from diffclip.models.presets import ModelConfig, list_models
    from diffclip.models.weights.store import load, save
    from diffclip.use.classify import classify

__version__ = "0.1.0"

_HOME = {
    "CLIP": "diffclip.models.clip",
    "ClampedDifferentialAttention": "diffclip.models.attention.variants",
    "DifferentialAttention": "diffclip.models.attention.layer",
    "DifferentialAttentionV2": "diffclip.models.attention.version2",
    "DintAttention": "diffclip.models.attention.variants",
    "GatedAttention": "diffclip.models.attention.variants",
    "GatedDifferentialAttention": "diffclip.models.attention.version2",
    "GatedMapsAttention": "diffclip.models.attention.variants",
    "ModelConfig": "diffclip.models.presets",
    "NoSecondMap": "diffclip.models.attention.version2",
    "NormedAttention": "diffclip.models.attention.variants",
    "UnnormedDifferentialAttention": "diffclip.models.attention.variants",
    "UserError": "diffclip.errors",
    "WideAttention": "diffclip.models.attention.variants",
    "classify": "diffclip.use.classify",
    "convert": "diffclip.models.convert",
    "create_model": "diffclip.models.clip",
    "differential_attention": "diffclip.models.attention.ops",
    "get_tokenizer": "diffclip.data.tokenizer",
    "list_models": "diffclip.models.presets",
    "load": "diffclip.models.weights.store",
    "save": "diffclip.models.weights.store",
}
_PACKAGES = ("analysis", "data", "evaluation", "models", "reporting", "training")

__all__ = [
    "CLIP",
    "ClampedDifferentialAttention",
    "DifferentialAttention",
    "DifferentialAttentionV2",
    "DintAttention",
    "GatedAttention",
    "GatedDifferentialAttention",
    "GatedMapsAttention",
    "ModelConfig",
    "NoSecondMap",
    "NormedAttention",
    "UnnormedDifferentialAttention",
    "UserError",
    "WideAttention",
    "analysis",
    "classify",
    "convert",
    "create_model",
    "data",
    "differential_attention",
    "evaluation",
    "get_tokenizer",
    "list_models",
    "load",
    "models",
    "reporting",
    "save",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"diffclip.{name}")
    raise AttributeError(f"module 'diffclip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
