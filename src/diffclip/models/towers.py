"""The two towers: timm's vision transformer, and a causal text transformer of timm's blocks."""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import timm.layers
import torch
import torch.nn.functional as F
from timm.layers.activations import QuickGELU
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffclip.errors import UserError
from diffclip.models.attention.choice import is_tracing
from diffclip.models.attention.kinds import ATTENTION
from diffclip.models.attention.layer import DifferentialAttention, StandardAttention
from diffclip.models.attention.variants import GatedMapsAttention, NormedAttention
from diffclip.models.mlp import Mlp
from diffclip.models.patch_dropout import PatchDropout
from diffclip.models.presets import ModelConfig

ACTIVATION: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


class ConvolutionStem(nn.Module):
    """Pixels to tokens by 3×3 convolutions of stride 2 rather than one linear map of each patch.

    A timm `embed_layer`. log2(patch_size) stages, each a convolution, a GroupNorm of one group (the same in training
    and evaluation, unlike batch statistics) and a GELU; widths double up to embed_dim; a 1×1 convolution ends it.
    """

    def __init__(
        self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, bias: bool = True, **_: object
    ) -> None:
        super().__init__()
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.patch_size = (patch_size, patch_size)
        stages = patch_size.bit_length() - 1
        widths = [in_chans] + [max(8, embed_dim >> (stages - 1 - i)) for i in range(stages)]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.GELU())
                for before, after in pairwise(widths)
            )
        )
        self.proj = nn.Conv2d(widths[-1], embed_dim, 1, bias=bias)

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens of an image: timm's forward_intermediates asks for them."""
        return img_size[0] // self.patch_size[0], img_size[1] // self.patch_size[1]

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, patches, embed_dim)."""
        out: Tensor = self.proj(self.stages(pixels)).flatten(2).mT
        return out


STEM = {"patches": timm.layers.PatchEmbed, "convolutions": ConvolutionStem}


class VisionTower(VisionTransformer):  # type: ignore[misc]  # timm is untyped
    """timm's VisionTransformer, no classifier: normalised pixels (B, 3, S, S) → class token (B, width)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(
            img_size=config.image_size,
            patch_size=config.patch_size,
            num_classes=0,
            embed_dim=config.vision_width,
            depth=config.vision_depth,
            num_heads=config.vision_heads,
            mlp_ratio=config.mlp_ratio,
            pre_norm=config.vision_pre_norm,
            norm_layer=partial(timm.layers.LayerNorm, eps=config.resolved_vision_norm_eps),
            act_layer=ACTIVATION[config.vision_activation],
            attn_layer=ATTENTION[config.vision_attention],
            embed_layer=STEM[config.vision_stem],
            mlp_layer=Mlp,
            weight_init="skip",
        )
        self.patch_embed.strict_img_size = False  # encode_image says which sizes there are
        if config.patch_dropout:
            self.patch_drop = PatchDropout(config.patch_dropout, self.num_prefix_tokens)
        _set_by_layer(self.blocks, config, "vision")

    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """timm's, with pixels of any float dtype: a model in bfloat16 takes what its preprocess makes."""
        out: Tensor = super().forward_features(x.to(self.pos_embed.dtype), *args, **kwargs)
        return out

    def _pos_embed(self, x: Tensor) -> Tensor:
        """timm's, which resamples positions only for other models: (B, patches, width), of a smaller image fewer."""
        if x.shape[1] != self.patch_embed.num_patches:
            side = math.isqrt(x.shape[1])
            positions = timm.layers.resample_abs_pos_embed(self.pos_embed, [side, side], num_prefix_tokens=1)
            out: Tensor = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + positions
            return out
        whole: Tensor = super()._pos_embed(x)
        return whole


class TextTower(nn.Module):
    """Tokens → feature at the end of the text. Causal: what follows the end cannot matter, so it is cut."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.end_of_text = config.vocab_size - 1
        self.token_embedding = nn.Embedding(config.vocab_size, config.text_width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.text_width))
        norm = partial(timm.layers.LayerNorm, eps=config.text_norm_eps)
        self.blocks = nn.ModuleList(
            Block(
                config.text_width,
                config.text_heads,
                config.text_mlp_ratio or config.mlp_ratio,
                qkv_bias=True,
                norm_layer=norm,
                act_layer=ACTIVATION[config.text_activation],
                attn_layer=ATTENTION[config.text_attention],
                mlp_layer=Mlp,
            )
            for _ in range(config.text_depth)
        )
        self.norm = norm(config.text_width)
        self.grad_checkpointing = False
        _set_by_layer(self.blocks, config, "text")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As timm's vision tower has it: keep only the input of each block, and run the block again for gradients."""
        self.grad_checkpointing = enable

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) int64, L ≤ context_length → (B, width), read at the first end-of-text token of each row.

        Tokens on the CPU for a model on a GPU are sent there once their ends are known: looking for the ends on the GPU
        would wait for all that it has to do. What comes after the last end is not computed, see `computed_length`.
        Raises UserError, with the row, if a row has no end-of-text token.
        """
        if is_tracing() or (isinstance(tokens, Tensor) and tokens.is_meta):
            return self.full(tokens)
        device = self.positional_embedding.device
        ends = self.find_ends(tokens)
        longest = int(ends.max()) + 1 if len(ends) else 0
        length = computed_length(longest, len(self.positional_embedding), device.type)
        tokens = F.pad(tokens[:, :length], (0, max(0, length - tokens.shape[1]))).to(device, non_blocking=True)
        features = self.token_features(tokens)  # (B, longest, width)
        return features[torch.arange(len(tokens), device=device), ends.to(device, non_blocking=True)]

    def full(self, tokens: Tensor) -> Tensor:
        """`forward` at the length given, without a look at the values: a row without an end is read at its first token.

        Raises UserError for rows of no token.
        """
        if not tokens.shape[1]:
            raise UserError(f"tokens {tuple(tokens.shape)}: a text has at least its end")
        ends = (tokens == self.end_of_text).int().argmax(1)
        features = self.token_features(tokens)  # (B, L, width)
        at_end = ends.view(-1, 1, 1).expand(-1, 1, features.shape[-1])  # not by numbers of rows, which would freeze B
        return features.gather(1, at_end).squeeze(1)

    def token_features(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 → (B, L, width), the features of every token, each seeing itself and those before."""
        length = tokens.shape[1]
        longest = len(self.positional_embedding)
        if length > longest:
            raise UserError(f"tokens {tuple(tokens.shape)}: this model reads at most {longest} tokens a text")
        x = self.token_embedding(tokens) + self.positional_embedding[:length]  # (B, L, width)
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, is_causal=True, use_reentrant=False)
            else:
                x = block(x, is_causal=True)
        out: Tensor = self.norm(x)
        return out

    def find_ends(self, tokens: Tensor) -> Tensor:
        """(B, L) → (B,), where each row's first end-of-text token is. UserError for a row without one, or no ids."""
        return find_ends(tokens, self.end_of_text)


def computed_length(longest: int, context_length: int, device: str) -> int:
    """How many tokens of each text are computed, `longest` having the last end: on a GPU a multiple of 16.

    There cuDNN plans its attention anew for each length, which takes up to a second (docs/performance.md).
    """
    return min(context_length, -(-longest // 16) * 16) if device == "cuda" else longest


def find_ends(tokens: Tensor, end_of_text: int) -> Tensor:
    """(B, L) → (B,), where each row's first end-of-text token is. UserError for a row without one, or no ids."""
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.is_floating_point() or tokens.is_complex():
        given = f"{tuple(tokens.shape)} {tokens.dtype}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise UserError(f"tokens must be integers (batch, tokens), as the tokenizer makes them, not {given}")
    if not len(tokens):
        return tokens.new_empty(0)
    low, high = tokens.aminmax() if tokens.numel() else (0, 0)
    if low < 0 or high > end_of_text:
        raise UserError(f"tokens go from {int(low)} to {int(high)}: this model knows 0 to {end_of_text}")
    is_end = tokens == end_of_text
    endless = (~is_end.any(1)).nonzero()
    if len(endless):
        raise UserError(
            f"row {int(endless[0])} of the tokens {tuple(tokens.shape)} has no end-of-text token "
            f"({end_of_text}): tokenize with diffclip.get_tokenizer()"
        )
    return is_end.int().argmax(1)


def _set_by_layer(blocks: nn.Module, config: ModelConfig, tower: str) -> None:
    """Where some layers alone have the tower's attention, the others are standard; and λ_init is set."""
    width, heads, layers = (getattr(config, f"{tower}_{name}") for name in ("width", "heads", "attention_layers"))
    # timm tells a layer its depth only if it derives from timm's own DiffAttention; λ_init is a plain number,
    # set here.
    for layer, block in enumerate(blocks.children()):
        if layers is not None and layer not in layers:
            block.attn = StandardAttention(width, heads, qkv_bias=True)
        elif isinstance(block.attn, DifferentialAttention | NormedAttention) and not isinstance(
            block.attn, GatedMapsAttention
        ):
            block.attn.lambda_init = config.lambda_init_at(layer)
