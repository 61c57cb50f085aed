"""CLIP: a vision tower, a text tower, one projection each into the joint space, and a temperature."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from diffclip.data.tokenizer import get_tokenizer
from diffclip.errors import UserError
from diffclip.models.attention.forms import AttentionMaps
from diffclip.models.attention.kinds import DIFFERENTIAL
from diffclip.models.image_text import ImageTextModel, Tokenize, normalized
from diffclip.models.initialise import initialise
from diffclip.models.maps import forward_with_maps
from diffclip.models.presets import ModelConfig, model_config
from diffclip.models.towers import TextTower, VisionTower

USUAL_TOKENS = 16
"""Of a caption or prompt with its begin and end; batches are cut at their longest."""
MAX_LOGIT_SCALE = math.log(100)  # 4.6052: logits are at most 100 times a cosine


class CLIP(ImageTextModel):
    """Two towers and a joint space; with differential attention in a tower or both, DiffCLIP.

    Attributes: config; visual and text, the towers; image_projection (vision_width, embed_dim) and
    text_projection (text_width, embed_dim), without bias; logit_scale, the logarithm of the inverse
    temperature; logit_bias, with config.logit_bias. Under `torch.device("meta")` it is built without values, to
    be counted or filled.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config: ModelConfig = config
        self.tower_width = config.vision_width
        self.tokenizer: Tokenize = get_tokenizer(config.context_length)
        device = torch.get_default_device()
        with torch.device("meta"):  # shapes only: initialise() gives every parameter its value, once
            self.visual = VisionTower(config)
            self.text = TextTower(config)
            self.image_projection = nn.Parameter(torch.empty(config.vision_width, config.embed_dim))
            self.text_projection = nn.Parameter(torch.empty(config.text_width, config.embed_dim))
            self.logit_scale: nn.Parameter = nn.Parameter(torch.empty(()))
            if config.logit_bias is not None:
                self.logit_bias = nn.Parameter(torch.empty(()))
        if device.type != "meta":
            self.to_empty(device=device)
            initialise(self, config)

    def encode_image(self, pixels: Tensor, normalize: bool = False) -> Tensor:
        """(B, 3, image_size, image_size) float, normalised by the config's mean and std → (B, embed_dim).

        Pixels are cast to the dtype of the weights. Normalised features are float32 (float64 for a float64 model),
        others have the model's dtype. In training mode images may be smaller, by whole patches: positions are
        resampled.
        Raises UserError for another shape or for integer pixels.
        """
        size = self.config.image_size
        given = pixels.shape[-1]
        smaller = self.training and 0 < given < size and given % self.config.patch_size == 0  # progressive resolution
        expected = (3, given, given) if smaller else (3, size, size)
        if pixels.shape[1:] != expected or not pixels.is_floating_point():
            raise UserError(
                f"pixels {tuple(pixels.shape)} {pixels.dtype}: this model takes normalised floats "
                f"(batch, 3, {size}, {size}); its preprocess makes them"
            )
        return self.project_image(self.visual(pixels), normalize)

    def tower(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) → (B, vision_width), before the projection."""
        features: Tensor = self.visual(pixels)
        return features

    def project_image(self, features: Tensor, normalize: bool = False) -> Tensor:
        """The vision tower's features (B, vision_width) → (B, embed_dim): the second half of encode_image."""
        features = features @ self.image_projection
        return normalized(features) if normalize else features

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """(B, L) int64, L ≤ context_length → (B, embed_dim).

        A batch is cut at its longest text, which changes no number. Normalised features are float32 (float64
        for a float64 model). Raises UserError, with the row, if a row has no end-of-text token.
        """
        features = self.text(tokens) @ self.text_projection
        return normalized(features) if normalize else features

    def encode_full_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """As encode_text, at the length given and without a look at the values: one graph, for export.

        A row without end-of-text token is read at its first token, unnoticed. Raises UserError for rows of no token.
        """
        features = self.text.full(tokens) @ self.text_projection
        return normalized(features) if normalize else features

    @property
    def has_maps(self) -> bool:
        """Of every layer."""
        return True

    def image_maps(self, pixels: Tensor) -> tuple[Tensor, list[AttentionMaps]]:
        """Normalised pixels (B, 3, S, S) → (B, embed_dim), and the maps of the layers; see diffclip.models.maps."""
        features, maps = forward_with_maps(self.visual, pixels)
        return features @ self.image_projection, maps

    def text_maps(self, tokens: Tensor) -> list[AttentionMaps]:
        """(B, L) int64 → the maps of the layers. N counts the tokens of the longest text."""
        return forward_with_maps(self.text, tokens)[1]

    def on_patches(self, maps: Tensor) -> Tensor:
        """Image maps (…, N, N) → (…, rows, columns): the class token's row, without itself."""
        rows = maps[..., 0, self.visual.num_prefix_tokens :]
        return rows.reshape(*rows.shape[:-1], *self.grid)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        rows, columns = self.visual.patch_embed.grid_size
        return rows, columns

    def compile(self, **options: Any) -> None:
        """Compile every block of both towers in place, so that encode_image, encode_text and forward run compiled.

        options: torch.compile's, such as backend or mode. Parameters keep their names. Blocks that are alike share one
        graph, so a deep tower compiles as fast as a flat one. A block is compiled at its first call, and once more when
        its shapes change from call to call, as the length of texts may.
        """
        for tower in (self.visual, self.text):
            for block in tower.blocks:
                block.compile(**options)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Activation checkpointing: keep only the input of every block, and run the block again for its gradients."""
        for tower in (self.visual, self.text):
            tower.set_grad_checkpointing(enable)

    def work(self) -> tuple[float, float]:
        """Roughly what an image takes, and a usual text: the parameters of tower or blocks, once for each token."""
        tokens = (self.config.image_size // self.config.patch_size) ** 2 + 1
        words = min(USUAL_TOKENS, self.config.context_length)
        image, text = (sum(p.numel() for p in part.parameters()) for part in (self.visual, self.text.blocks))
        return float(tokens * image), float(words * text)

    def describe(self) -> dict[str, str]:
        """Of `diffclip info`: model, attention and λ."""
        config = self.config
        facts = {
            "model": "DiffCLIP" if config.is_differential else "CLIP",
            "vision": f"{config.vision_depth} layers, {config.vision_width} wide, {config.vision_heads} heads, "
            f"{config.vision_attention} attention, patches of {config.patch_size}",
            "text": f"{config.text_depth} layers, {config.text_width} wide, {config.text_heads} heads, "
            f"{config.text_attention} attention",
        }
        lambdas = {tower: values.tolist() for tower, values in self.lambdas().items()}
        facts |= {f"λ, {tower}": " ".join(f"{value:.2f}" for value in values) for tower, values in lambdas.items()}
        return facts | {"tokenizer": f"{type(self.tokenizer).__name__}, at most {config.context_length} tokens"}

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the inverse temperature in [1, 100]; called after every optimizer step."""
        self.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)

    @torch.no_grad()
    def lambdas(self) -> dict[str, Tensor]:
        """λ of each layer from the input on: {"visual": (depth,), "text": (depth,)}, differential towers only.

        0 for a standard layer among them. Where λ differs by token and head: `DifferentialAttentionV2.lam`.
        """
        found = {}
        for name, tower in (("visual", self.visual), ("text", self.text)):
            layers = [block.attn.lam() if isinstance(block.attn, DIFFERENTIAL) else None for block in tower.blocks]
            if any(lam is not None for lam in layers):
                zero = torch.zeros_like(next(lam for lam in layers if lam is not None))
                found[name] = torch.stack([zero if lam is None else lam for lam in layers])
        return found


def our_own(model: ImageTextModel, what: str) -> CLIP:
    """The model, which must be a `CLIP`. Raises UserError for any other, whose layers `what` cannot use."""
    if not isinstance(model, CLIP):
        facts = model.describe()
        raise UserError(f"{what} needs a CLIP of ours: {facts['model']} is used as it is ({facts['why']})")
    return model


def create_model(name: str, **overrides: Any) -> CLIP:
    """A model with fresh weights, in training mode, by its preset; overrides are fields of ModelConfig.

    Raises UserError for an unknown name or field, and for numbers that do not fit.
    """
    return CLIP(model_config(name, **overrides))


def count_parameters(model: nn.Module, times: Mapping[str, int] = MappingProxyType({})) -> dict[str, int]:
    """{"total", "visual", "text", "lambda", "head_norm", "second_query", "gate"}: the last four are what other
    attention adds.

    The towers are counted with their projections; logit_scale is in the total only. times: how often parameters are
    counted whose names begin so.
    """
    counts = dict.fromkeys(("total", "visual", "text", "lambda", "head_norm", "second_query", "gate"), 0)
    for name, parameter in model.named_parameters():
        size = parameter.numel() * next((n for start, n in times.items() if name.startswith(start)), 1)
        counts["total"] += size
        if name.startswith(("visual.", "image_projection")):
            counts["visual"] += size
        elif name.startswith("text"):
            counts["text"] += size
        if ".attn.lambda_" in name:
            counts["lambda"] += size
        elif ".attn.norm." in name:
            counts["head_norm"] += size
        elif ".attn.gate_proj." in name:
            counts["gate"] += size
        elif ".attn.q2." in name:
            counts["second_query"] += size
    return counts


def count_preset(config: ModelConfig) -> dict[str, int]:
    """count_parameters of a model of this config, from one block of each tower: a tower's blocks are alike in size.

    Built whole, even without values, some sixty presets would take ten seconds.
    """
    with torch.device("meta"):
        model = CLIP(replace(config, vision_depth=1, text_depth=1))
    return count_parameters(model, {"visual.blocks.": config.vision_depth, "text.blocks.": config.text_depth})


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode, in TF32 where it is to be, convolutions too; all as it was before afterwards."""
    training = model.training
    model.eval()
    try:
        with _float32_as(bool(getattr(model, "tf32", False))):
            yield
    finally:
        model.train(training)


@contextmanager
def _float32_as(tf32: bool) -> Iterator[None]:
    """NVIDIA's products and convolutions of float32 in TF32, or not: PyTorch's convolutions are, unless told."""
    products = torch.get_float32_matmul_precision()
    try:
        convolutions: bool | None = torch.backends.cudnn.allow_tf32
    except RuntimeError:  # set by `cudnn.conv.fp32_precision`, which forbids to ask: whoever did that has chosen
        convolutions = None
    torch.set_float32_matmul_precision("high" if tf32 else products)
    if convolutions is not None:
        torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = convolutions


def check_finite(what: str, features: Tensor) -> None:
    """Raises UserError where any feature is not finite.

    NaN compares as neither better nor worse, so that a broken model could otherwise score anything.
    """
    broken = (~features.isfinite()).any(dim=1).sum().item()
    if broken:
        raise UserError(f"{broken} of {len(features)} {what} are not finite: the model's weights are broken")
