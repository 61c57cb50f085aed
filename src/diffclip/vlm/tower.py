"""The image tower of a CLIP as a vision model of transformers', which LLaVA takes for its encoder."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from diffclip.errors import UserError
from diffclip.models.clip import CLIP
from diffclip.models.presets import ModelConfig
from diffclip.models.towers import VisionTower


class DiffCLIPVisionConfig(PreTrainedConfig):  # type: ignore[misc]
    """A CLIP's configuration, and how many patches are laid together.

    clip: the fields of `ModelConfig`. shuffle: n × n neighbouring patches become one of n² times the width (pixel
    shuffle; Shi et al. 2016, arXiv 1609.05158); 1: none.
    """

    model_type = "diffclip_vision"

    def __init__(self, clip: dict[str, Any] | None = None, shuffle: int = 1, **others: Any) -> None:
        settings = ModelConfig(**(clip or {}))
        self.clip, self.shuffle = dataclasses.asdict(settings), shuffle
        self.image_size, self.patch_size = settings.image_size, settings.patch_size * shuffle
        self.hidden_size = settings.vision_width * shuffle**2
        self.num_hidden_layers = settings.vision_depth
        super().__init__(**others)

    @property
    def tokens(self) -> int:
        """How many tokens an image has in the language model."""
        return int((self.image_size // self.patch_size) ** 2)


class DiffCLIPVisionModel(PreTrainedModel):  # type: ignore[misc]
    """The image tower: normalised pixels (B, 3, S, S) → the hidden states of all layers, class token first."""

    config_class = DiffCLIPVisionConfig
    base_model_prefix = "tower"
    main_input_name = "pixel_values"

    def __init__(self, config: DiffCLIPVisionConfig) -> None:
        super().__init__(config)
        settings = ModelConfig(**config.clip)
        if settings.image_size % config.patch_size:
            raise UserError(
                f"connector.shuffle = {config.shuffle}: {settings.image_size // settings.patch_size} patches a side "
                "cannot be divided by it"
            )
        self.visual = VisionTower(dataclasses.replace(settings, patch_dropout=0.0))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Weights come from a trained CLIP."""

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        """Hidden state 0 is what the first block reads, l what block l gives, before the final norm: timm's, as LLaVA
        counts them. Each (B, 1 + tokens, hidden_size)."""
        states = [self._laid_out(state) for state in self._states(pixel_values)]
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=tuple(states))

    def _states(self, pixels: Tensor) -> list[Tensor]:
        tower, states = self.visual, []
        hooks = [block.register_forward_hook(lambda _m, _i, out: states.append(out)) for block in tower.blocks]
        hooks.append(tower.blocks[0].register_forward_pre_hook(lambda _m, given: states.append(given[0])))
        try:
            tower.forward_features(pixels)
        finally:
            for hook in hooks:
                hook.remove()
        return states

    def _laid_out(self, state: Tensor) -> Tensor:
        """(B, prefix + patches, width) → (B, 1 + tokens, hidden_size): registers left out, patches laid together."""
        prefix = self.visual.num_prefix_tokens
        first, patches, n = state[:, :1], state[:, prefix:], self.config.shuffle
        side, width = self.visual.patch_embed.grid_size[0], state.shape[-1]
        grid = patches.reshape(len(state), side // n, n, side // n, n, width).transpose(2, 3)
        together = grid.reshape(len(state), (side // n) ** 2, n * n * width)
        return torch.cat([first.repeat(1, 1, n * n), together], dim=1)


def tower_of(model: CLIP, shuffle: int = 1) -> DiffCLIPVisionModel:
    """The image tower of a CLIP, with its weights, which are shared."""
    config = DiffCLIPVisionConfig(dataclasses.asdict(dataclasses.replace(model.config, patch_dropout=0.0)), shuffle)
    with torch.device("meta"):
        tower = DiffCLIPVisionModel(config)
    tower.visual = model.visual
    return tower


AutoConfig.register("diffclip_vision", DiffCLIPVisionConfig)
AutoModel.register(DiffCLIPVisionConfig, DiffCLIPVisionModel)
