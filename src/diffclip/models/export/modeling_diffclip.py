"""DiffCLIP in transformers: AutoModel.from_pretrained(FOLDER, trust_remote_code=True), with diffclip installed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchFeature, PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import to_pil_image
from transformers.image_utils import make_flat_list_of_images
from transformers.models.clip.modeling_clip import CLIPOutput

from diffclip.models.clip import CLIP
from diffclip.models.image_settings import ImageSettings
from diffclip.models.presets import ModelConfig
from diffclip.models.weights.store import Preprocess


class DiffCLIPConfig(PreTrainedConfig):  # type: ignore[misc]
    """model: the fields of diffclip's ModelConfig."""

    model_type = "diffclip"

    def __init__(self, model: dict[str, Any] | None = None, **others: Any) -> None:
        self.model = model or {}
        super().__init__(**others)

    @property
    def projection_dim(self) -> int:
        """Width of the joint space, by the name that transformers' CLIP has for it."""
        return int(self.model["embed_dim"])


class DiffCLIPImageProcessor(BaseImageProcessor):  # type: ignore[misc]
    """Images as diffclip prepares them. settings: the fields of diffclip's ImageSettings."""

    model_input_names = ("pixel_values",)

    def __init__(self, settings: dict[str, Any] | None = None, **others: Any) -> None:
        self.settings = settings or {}
        super().__init__(**others)

    def preprocess(self, images: Any, return_tensors: str | None = None, **_: Any) -> BatchFeature:
        """One image or several, of any mode and size → pixel_values (B, 3, S, S) float32."""
        several = [to_pil_image(image) for image in make_flat_list_of_images(images)]
        prepare = Preprocess(ImageSettings(**self.settings))
        pixels = torch.stack([prepare(image) for image in several])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)


class DiffCLIPModel(PreTrainedModel):  # type: ignore[misc]
    """A CLIP with the inputs and outputs of transformers' CLIPModel; `clip` is diffclip's own."""

    config_class = DiffCLIPConfig
    base_model_prefix = "clip"  # files name the weights without it, as diffclip does
    main_input_name = "pixel_values"

    def __init__(self, config: DiffCLIPConfig) -> None:
        super().__init__(config)
        self.clip = CLIP(ModelConfig(**config.model))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """A CLIP draws its own."""

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> Tensor:
        """(B, 3, S, S) → (B, embed_dim), not normalised."""
        return self.clip.encode_image(pixel_values)

    def get_text_features(self, input_ids: Tensor, **_: Any) -> Tensor:
        """(B, L) → (B, embed_dim), not normalised. Each text is read at its first end, so no mask is needed."""
        return self.clip.encode_text(input_ids)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, **_: Any) -> CLIPOutput:
        """logits_per_image (images, texts), logits_per_text, and normalised image_embeds and text_embeds."""
        found = self.clip(pixel_values, input_ids)
        logits = found["logit_scale"] * found["image_features"] @ found["text_features"].T
        logits = logits + found.get("logit_bias", 0.0)
        return CLIPOutput(
            logits_per_image=logits,
            logits_per_text=logits.T,
            image_embeds=found["image_features"],
            text_embeds=found["text_features"],
        )

    def save_pretrained(self, save_directory: str, **options: Any) -> None:
        """As transformers does; diffclip.load reads the folder too."""
        state: dict[str, Tensor] = options.pop("state_dict", None) or self.clip.state_dict()
        named = {name.removeprefix("clip."): tensor for name, tensor in state.items()}
        super().save_pretrained(save_directory, state_dict=named, **options)
