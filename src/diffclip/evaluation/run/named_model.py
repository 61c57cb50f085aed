"""A model and what results call it."""

from dataclasses import dataclass

from diffclip.distributed import default_device
from diffclip.models.clip import CLIP
from diffclip.models.image_text import ImageTextModel
from diffclip.models.library import LibraryModel
from diffclip.models.presets import list_models, model_config
from diffclip.models.weights.store import load


@dataclass(frozen=True)
class NamedModel:
    """A model and what results call it: its preset, and where its weights come from."""

    name: str
    pretrained: str
    model: ImageTextModel


def named_model(source: str) -> NamedModel:
    """A model by where it lies, and its preset."""
    model = load(source, device=default_device())[0]
    return NamedModel(_preset_of(model), source, model)


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
