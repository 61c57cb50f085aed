"""Named model configurations. Importing this does not import torch.

CLIP and DiffCLIP of one size differ in `vision_attention` and `text_attention`, and in nothing else.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, create_model

from diffclip.errors import UserError, describe
from diffclip.models.image_settings import ImageSettings, Number, Size
from diffclip.text import did_you_mean

Attention = Literal[
    "standard",
    "differential",
    "differential_v2",
    "differential_gated",
    "differential_unnormed",
    "differential_clamped",
    "dint",
    "mdgsa",
    "gated",
    "no_second_map",
    "standard_normed",
    "standard_wide",
]
"""docs/variants.md has them in one table."""
CONTROLS = ("standard", "gated", "no_second_map", "standard_normed", "standard_wide")
"""Those with one map a head."""
PAIRED = ("differential", "differential_unnormed", "differential_clamped", "dint", "mdgsa", "standard_normed")
"""Those that join two heads into one."""
Activation = Literal["gelu", "quick_gelu"]

SIZES = (
    "embed_dim",
    "image_size",
    "patch_size",
    "vision_width",
    "vision_depth",
    "vision_heads",
    "text_width",
    "text_depth",
    "text_heads",
    "context_length",
    "vocab_size",
)
# Far beyond any model, as MAX_SIZE is.
MAX_DEPTH = 1000
MAX_RATIO = 100

Depth = Annotated[int, Field(strict=True, ge=1, le=MAX_DEPTH)]
Ratio = Annotated[float, Field(strict=True, gt=0, le=MAX_RATIO)]
Layers = tuple[Annotated[int, Field(strict=True, ge=0)], ...]
"""Counted from 0 at the input."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ImageSettings):
    """Everything that decides what a CLIP computes, apart from its weights. The defaults are CLIP ViT-B/16.

    `vision_heads` and `text_heads` count as in standard attention, for both kinds: differential attention
    joins two of them into one differential head, so the number must be even, and the head width stays width /
    heads. Raises UserError if the numbers do not fit together.
    """

    embed_dim: Size = 512
    """Width of the joint space of images and texts."""
    patch_size: Size = 16
    vision_width: Size = 768
    vision_depth: Depth = 12
    vision_heads: Size = 12
    vision_attention: Attention = "standard"
    """differential: that of the paper. differential_v2 and differential_gated: a second query a head, and a λ for each
    token and head. The others are variants and controls (docs/variants.md)."""
    vision_attention_layers: Layers | None = None
    """Which layers have it, while the others are standard; None: all."""
    vision_activation: Activation = "gelu"
    vision_stem: Literal["patches", "convolutions"] = "patches"
    """How pixels become tokens: one linear map of each patch, or 3×3 convolutions of stride 2, which learn from far
    fewer images (Xiao et al. 2021, arXiv 2106.14881); patch_size is then a power of two."""
    vision_pre_norm: StrictBool = False
    """A LayerNorm before the first block and no bias in the patch embedding, as in open_clip."""
    vision_norm_eps: Ratio | None = None
    """None: 1e-6, but 1e-5 for a differential tower with init = "released" (the published pairing)."""
    text_width: Size = 512
    text_depth: Depth = 12
    text_heads: Size = 8
    text_attention: Attention = "standard"
    text_attention_layers: Layers | None = None
    text_activation: Activation = "quick_gelu"
    text_norm_eps: Ratio = 1e-5
    context_length: Size = 77
    vocab_size: Size = 49408
    """The last id is the end of a text: the text feature is read there."""
    mlp_ratio: Ratio = 4.0
    text_mlp_ratio: Ratio | None = None
    """Of the text tower, where it is not mlp_ratio."""
    lambda_init: Number = 0.8
    """λ_init of every layer of attention "differential", its variants and "standard_normed", in [0, 1); not used with
    lambda_schedule = "depth"."""
    lambda_schedule: Literal["constant", "depth"] = "constant"
    """depth: limit − drop·exp(−rate·l) for layer l, counted from 0 at the input: published as 0.8 − 0.6·exp(−0.3·l)."""
    lambda_depth_limit: Number = 0.8
    """What λ_init comes near to in deep layers; this and the next two are used with lambda_schedule = "depth" alone."""
    lambda_depth_drop: Number = 0.6
    """How far below its limit λ_init starts, in the first layer."""
    lambda_depth_rate: Number = 0.3
    """How fast it rises, by layer."""
    init: Literal["matched", "released"] = "matched"
    """How weights start; see diffclip.models.initialise."""
    patch_dropout: Number = 0.0
    """Share of the image patches left out in training."""
    logit_bias: Number | None = None
    """Where a learned bias of the logits starts, as in SigLIP, which starts at −10; None: there is none."""

    def __post_init__(self) -> None:
        try:
            _fields().model_validate(vars(self))
        except ValidationError as error:
            raise UserError(describe(error)) from None
        super().__post_init__()
        if self.image_size % self.patch_size:
            raise UserError(
                f"image_size = {self.image_size} is not a multiple of patch_size = {self.patch_size} "
                f"(remainder {self.image_size % self.patch_size})"
            )
        if self.vision_stem == "convolutions" and (self.patch_size < 2 or self.patch_size & (self.patch_size - 1)):
            raise UserError(f"patch_size = {self.patch_size}: a stem of convolutions needs a power of two")
        for tower in ("vision", "text"):
            width, heads = getattr(self, f"{tower}_width"), getattr(self, f"{tower}_heads")
            check_heads(width, heads, getattr(self, f"{tower}_attention") in PAIRED, tower)
            self._check_layers(tower)
        if not 0 <= self.lambda_init < 1:
            raise UserError(f"lambda_init = {self.lambda_init}: give a number in [0, 1); 1 would multiply heads by 0")
        if self.lambda_schedule == "depth":
            self._check_depth_schedule()
        if not 0 <= self.patch_dropout < 1:
            raise UserError(f"patch_dropout = {self.patch_dropout}: give a number in [0, 1)")

    def _check_layers(self, tower: str) -> None:
        name, depth = f"{tower}_attention_layers", getattr(self, f"{tower}_depth")
        layers = getattr(self, name)
        if layers is None:
            return
        object.__setattr__(self, name, tuple(layers))
        attention = getattr(self, f"{tower}_attention")
        if attention == "standard" or not layers or sorted({*layers}) != [*layers] or layers[-1] >= depth:
            raise UserError(
                f"{name} = {list(layers)}: expected ascending numbers from 0 to {depth - 1}, of the layers with an "
                f"attention other than standard, and {tower}_attention is {attention!r}"
            )

    def _check_depth_schedule(self) -> None:
        if not self.lambda_depth_rate >= 0:
            raise UserError(f"lambda_depth_rate = {self.lambda_depth_rate}: give a number of at least 0")
        for layer in range(max(self.vision_depth, self.text_depth)):
            value = self.lambda_init_at(layer)
            if not 0 <= value < 1:
                raise UserError(
                    f"the depth schedule {self.lambda_depth_limit:g} − {self.lambda_depth_drop:g}·"
                    f"exp(−{self.lambda_depth_rate:g}·l) gives λ_init = {value:g} in layer {layer}: "
                    "it must stay in [0, 1)"
                )

    @property
    def is_differential(self) -> bool:
        """Whether a tower has differential attention, of any form: two maps a head."""
        return not {self.vision_attention, self.text_attention} <= {*CONTROLS}

    @property
    def resolved_vision_norm_eps(self) -> float:
        """eps of every LayerNorm of the vision tower."""
        if self.vision_norm_eps is not None:
            return self.vision_norm_eps
        return 1e-5 if self.vision_attention == "differential" and self.init == "released" else 1e-6

    def lambda_init_at(self, layer: int) -> float:
        """λ_init of layer `layer`, counted from 0 at the input of a tower."""
        if self.lambda_schedule == "depth":
            return self.lambda_depth_limit - self.lambda_depth_drop * math.exp(-self.lambda_depth_rate * layer)
        return self.lambda_init


@cache
def _fields() -> type[BaseModel]:
    """What each field may hold, from its annotation."""
    hints: dict[str, Any] = get_type_hints(ModelConfig, include_extras=True)
    settings = ConfigDict(allow_inf_nan=False)
    fields: dict[str, Any] = {name: (hint, ...) for name, hint in hints.items()}
    return create_model("ModelConfig", __config__=settings, **fields)


def check_heads(width: int, heads: int, differential: bool, where: str) -> None:
    """Raise UserError, with the numbers, if `heads` attention heads cannot share `width` channels."""
    if width % heads:
        raise UserError(f"{where}: width {width} is not a multiple of its {heads} heads (remainder {width % heads})")
    if differential and heads % 2:
        raise UserError(
            f"{where}: differential attention pairs its heads, so their number must be even, not {heads}; "
            f"they count as in standard attention: {heads + 1} make {(heads + 1) // 2} differential heads"
        )


def _sizes() -> dict[str, ModelConfig]:
    base = ModelConfig()
    return {
        # 6 heads of 32 instead of the usual 3 of 64: differential attention needs an even number.
        "t16": replace(base, embed_dim=256, vision_width=192, vision_heads=6, text_width=256, text_heads=4),
        "s16": replace(base, embed_dim=384, vision_width=384, vision_heads=6, text_width=384, text_heads=6),
        "b32": replace(base, patch_size=32),
        "b16": base,
        "l14": replace(
            base,
            embed_dim=768,
            patch_size=14,
            vision_width=1024,
            vision_depth=24,
            vision_heads=16,
            text_width=768,
            text_heads=12,
        ),
        "h14": replace(
            base,
            embed_dim=1024,
            patch_size=14,
            vision_width=1280,
            vision_depth=32,
            vision_heads=16,
            text_width=1024,
            text_depth=24,
            text_heads=16,
        ),
        # Small enough to train on two CPU cores in minutes.
        "quickstart": replace(
            base,
            embed_dim=128,
            image_size=64,
            patch_size=8,
            vision_stem="convolutions",
            vision_width=128,
            vision_depth=4,
            vision_heads=4,
            text_width=128,
            text_depth=2,
            text_heads=4,
        ),
    }


VARIANTS: Mapping[str, Attention] = {
    "diffclip_v2": "differential_v2",
    "diffclip_gated": "differential_gated",
    "diffclip_unnormed": "differential_unnormed",
    "diffclip_clamped": "differential_clamped",
    "dint": "dint",
    "mdgsa": "mdgsa",
    "gated": "gated",
    "no_second_map": "no_second_map",
    "clip_normed": "standard_normed",
    "clip_wide": "standard_wide",
}
"""First part of a preset's name → the attention of both towers."""
VARIED = ("s16", "b16", "quickstart")
"""The sizes that have every variant."""


def _presets() -> dict[str, ModelConfig]:
    # The paper's DiffCLIP* is `_dynamic`, its DiffCLIP† `_vision`.
    presets = {}
    for size, config in _sizes().items():
        both = replace(config, vision_attention="differential", text_attention="differential")
        presets[f"clip_vit_{size}"] = config
        presets[f"diffclip_vit_{size}"] = both
        presets[f"diffclip_vit_{size}_dynamic"] = replace(both, lambda_schedule="depth")
        presets[f"diffclip_vit_{size}_vision"] = replace(both, text_attention="standard")
        presets[f"diffclip_vit_{size}_text"] = replace(both, vision_attention="standard")
    for size in VARIED:
        config = presets[f"clip_vit_{size}"]
        for name, attention in VARIANTS.items():
            presets[f"{name}_vit_{size}"] = replace(config, vision_attention=attention, text_attention=attention)
        second = presets[f"diffclip_v2_vit_{size}"]
        # An MLP of 3.5 instead of 4 widths gives back the C² of the second query; C·(H + 1) for λ remains.
        presets[f"diffclip_v2_even_vit_{size}"] = replace(second, mlp_ratio=3.5)
    return presets


PRESETS: Mapping[str, ModelConfig] = _presets()


def list_models() -> list[str]:
    """The names that `create_model` takes."""
    return list(PRESETS)


def model_config(name: str, **overrides: Any) -> ModelConfig:
    """The configuration of a preset with some fields replaced.

    Raises UserError for a name that is no preset, a field that does not exist, or numbers that do not fit.
    """
    if name not in PRESETS:
        raise UserError(
            f"there is no model {name!r}{did_you_mean(name, PRESETS)}; diffclip.list_models() has all names"
        )
    return override(PRESETS[name], overrides)


def override(config: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
    """`config` with the fields in `changes` replaced. Raises UserError for a field that does not exist."""
    for key in changes:
        if key not in ModelConfig.__dataclass_fields__:
            raise UserError(
                f"there is no model setting {key!r}{did_you_mean(key, ModelConfig.__dataclass_fields__)}; "
                f"there are {', '.join(ModelConfig.__dataclass_fields__)}"
            )
    return replace(config, **changes)
