"""A model and what results call it."""

from dataclasses import dataclass

import torch

from diffclip.distributed import default_device
from diffclip.errors import UserError
from diffclip.models.clip import CLIP
from diffclip.models.image_text import ImageTextModel
from diffclip.models.library import LibraryModel
from diffclip.models.presets import list_models, model_config
from diffclip.models.weights.store import load

AMPERE = (8, 0)
"""The compute capability of the first GPUs with TF32."""


@dataclass(frozen=True)
class NamedModel:
    """A model and what results call it: its preset, and where its weights come from."""

    name: str
    pretrained: str
    model: ImageTextModel


def named_model(source: str, dtype: str = "float32") -> NamedModel:
    """A model by where it lies, and what it computes in where that is not float32; and its preset.

    Raises UserError for tf32 on a machine that has none.
    """
    device, tf32 = default_device(), dtype == "tf32"
    if tf32 and not has_tf32(device):
        raise UserError(
            "--dtype tf32: no GPU here multiplies in TF32, which NVIDIA's do from Ampere on: take float32 or bfloat16"
        )
    model = load(source, device=device, dtype=torch.float32 if tf32 else getattr(torch, dtype))[0]
    model.tf32 = tf32
    return NamedModel(_preset_of(model), source if dtype == "float32" else f"{source} in {dtype}", model)


def has_tf32(device: torch.device) -> bool:
    """Whether a device multiplies float32 matrices in TF32 when it is allowed to."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= AMPERE


def _preset_of(model: ImageTextModel) -> str:
    """The preset that has the model's config; for a config of its own, what it is; for another library's, its class."""
    if isinstance(model, LibraryModel):
        form = model.config.attention
        return f"{model.config.family}model" + ("" if form == "standard" else f"_{form}")
    if not isinstance(model, CLIP):
        return model.describe()["model"].rpartition(" ")[2].lower()
    for name in list_models():
        if model_config(name) == model.config:
            return name
    kind = "diffclip" if model.config.is_differential else "clip"
    return f"{kind}_{model.config.vision_width}x{model.config.vision_depth}_patch{model.config.patch_size}"
