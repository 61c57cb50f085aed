"""Other forms of differential attention, and the controls that tell what of it helps. Letters as in layer.py.

Each is a timm `attn_layer` that changes one thing and leaves the rest: docs/variants.md has them in one table. They
take PyTorch's own attention rather than the compiled kernel, but for those that change no more than λ or the norm.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffclip.errors import UserError
from diffclip.models.attention.choice import fastest
from diffclip.models.attention.forms import AttentionMaps, attention_map
from diffclip.models.attention.head_norm import head_norm
from diffclip.models.attention.layer import HEAD_NORM_EPS, DifferentialAttention, StandardAttention
from diffclip.models.attention.version2 import token_lambdas
from diffclip.models.precision import full_precision
from diffclip.models.presets import check_heads


class GatedAttention(StandardAttention):
    """head_i = σ(W x + b)_i · A_i v_i: one gate a token and head, and no second map.

    The headwise gate of "Gated Attention for Large Language Models" (Qiu et al. 2025, arXiv 2505.06708), a control:
    what it gains needs no differential attention. Parameters: those of standard attention, and gate_proj (C → H).
    """

    def __init__(self, dim: int, num_heads: int = 8, *, qkv_bias: bool = False, **options: Any) -> None:
        """The arguments are those of timm's attention; it has neither qk_norm nor scale_norm here."""
        super().__init__(dim, num_heads, qkv_bias=qkv_bias, **options)
        self.gate_proj = nn.Linear(dim, num_heads, **_place(options))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) → (B, N, C). The masks are those of torch's scaled_dot_product_attention."""
        q, k, v = split_heads(self, x)
        gate = token_lambdas(self.gate_proj, torch.sigmoid, x).transpose(1, 2).unsqueeze(-1)  # (B, H, N, 1)
        if self.recorded is not None:
            attention = self.attn_drop(attention_map(q, k, is_causal, attn_mask))
            maps = AttentionMaps(attention * gate, attention)
            self.recorded.append(maps)
            heads = maps.combined.to(v.dtype) @ v
        else:
            dropout = self.attn_drop.p if self.training else 0.0
            heads = (attend(q, k, v, attn_mask, is_causal, dropout) * gate).to(v.dtype)
        return merge_heads(self, heads, x)

    def _apply(self, fn: Any, recurse: bool = True) -> "GatedAttention":
        """`.half()`, `.to(torch.bfloat16)` and the like, which leave what makes the gate as exact as it is."""
        with full_precision(self.gate_proj.weight, self.gate_proj.bias):
            super()._apply(fn, recurse)
        return self


class NormedAttention(StandardAttention):
    """head = (1 − λ_init) · RMSNorm([A_2i v_2i | A_2i+1 v_2i+1]): standard attention with the first version's norm.

    A control: what it gains is the norm's. The norm joins two heads, has one weight vector of 2D, shared, and is
    followed by the factor 1 − λ_init, as in DifferentialAttention.
    """

    def __init__(
        self, dim: int, num_heads: int = 8, *, qkv_bias: bool = False, lambda_init: float = 0.8, **options: Any
    ) -> None:
        """lambda_init: in [0, 1); the others are those of timm's attention, without qk_norm and scale_norm.

        Raises UserError where the heads make no pairs.
        """
        check_heads(dim, num_heads, differential=True, where="NormedAttention")
        super().__init__(dim, num_heads, qkv_bias=qkv_bias, **options)
        self.lambda_init = lambda_init
        self.norm = nn.RMSNorm(2 * self.head_dim, eps=HEAD_NORM_EPS, **_place(options))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) → (B, N, C). The masks are those of torch's scaled_dot_product_attention."""
        batch, length, dim = x.shape
        heads = standard_heads(self, x, attn_mask, is_causal)
        pairs = heads.transpose(1, 2).reshape(batch, length, self.num_heads // 2, 2 * self.head_dim)
        normed = head_norm(pairs, self.norm.weight * (1 - self.lambda_init), HEAD_NORM_EPS)
        out: Tensor = self.proj_drop(self.proj(normed.reshape(batch, length, dim)))
        return out


class WideAttention(StandardAttention):
    """Standard attention whose heads are a quarter wider, which gives it the matrices of DifferentialAttentionV2: 5C².

    A control: what it gains is the parameters'. D must be a multiple of 4.
    """

    def __init__(self, dim: int, num_heads: int = 8, *, qkv_bias: bool = False, **options: Any) -> None:
        """The arguments are those of timm's attention. Raises UserError where heads cannot be a quarter wider."""
        head_dim, rest = divmod(5 * dim, 4 * num_heads)
        if rest:
            raise UserError(
                f"WideAttention: heads of {dim / num_heads:g} cannot be a quarter wider: give a multiple of 4"
            )
        super().__init__(dim, num_heads, attn_head_dim=head_dim, qkv_bias=qkv_bias, **options)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) → (B, N, C). The masks are those of torch's scaled_dot_product_attention."""
        return merge_heads(self, standard_heads(self, x, attn_mask, is_causal), x)


class UnnormedDifferentialAttention(DifferentialAttention):
    """head_i = (A1 − λA2) V: the first version without its norm, and without the factor 1 − λ_init after it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.norm = nn.Identity()

    def normalise(self, heads: Tensor) -> Tensor:
        """(B, N, H/2, 2D), as it is."""
        return heads


class ClampedDifferentialAttention(DifferentialAttention):
    """The first version with λ kept in [0, 1]: it can neither add nor subtract more than there is. Outside, the vectors
    of λ get no gradient."""

    def lam(self) -> Tensor:
        return super().lam().clamp(0, 1)


class _TwoMaps(DifferentialAttention):
    """What the forms share that need A1 V and A2 V apart: two calls of PyTorch's attention, or both maps."""

    def combine(self, first: Tensor, second: Tensor, x: Tensor, is_causal: bool) -> Tensor:
        """A1 V and A2 V, (B, H/2, N, 2D) each, or A1 and A2, (B, H/2, N, N) → what takes their place."""
        raise NotImplementedError

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) → (B, N, C). The masks are those of torch's scaled_dot_product_attention."""
        batch, length, dim = x.shape
        q, k, v = split_heads(self, x)
        v = v.transpose(1, 2).reshape(batch, length, self.num_heads // 2, 2 * self.head_dim).transpose(1, 2)
        dropout = self.attn_drop if self.training else 0.0
        if self.recorded is None:
            first, second = (
                attend(q[:, i::2], k[:, i::2], v, attn_mask, is_causal, dropout) for i in (0, 1)
            )  # (B, H/2, N, 2D) each
            heads = self.combine(first, second, x, is_causal).to(v.dtype)
        else:
            a1, a2 = (
                F.dropout(attention_map(q[:, i::2], k[:, i::2], is_causal, attn_mask), dropout) for i in (0, 1)
            )  # (B, H/2, N, N) each
            maps = AttentionMaps(self.combine(a1, a2, x, is_causal), a1, a2, self.lam())
            self.recorded.append(maps)
            heads = maps.combined.to(v.dtype) @ v
        normed = self.normalise(heads.transpose(1, 2))
        out: Tensor = self.proj_drop(self.proj(normed.reshape(batch, length, dim)))
        return out


class DintAttention(_TwoMaps):
    """head_i = (1 − λ_init) · RMSNorm((A1 − λA2 + λG) V), where each row of G is the mean of the rows of A1.

    "DINT Transformer" (Cang et al. 2025, arXiv 2501.17486): rows sum to 1. G V is the mean of A1 V over tokens, so G is
    never made. With `is_causal` the mean of row t is over the rows up to t, which see no later token either.
    """

    def combine(self, first: Tensor, second: Tensor, x: Tensor, is_causal: bool) -> Tensor:
        """The same in maps and in their products with V."""
        lam = self.lam()
        wide = first.to(torch.promote_types(first.dtype, lam.dtype))
        if is_causal:
            counts = torch.arange(1, first.shape[-2] + 1, device=first.device, dtype=wide.dtype).unsqueeze(-1)
            mean = wide.cumsum(-2) / counts
        else:
            mean = wide.mean(-2, keepdim=True)
        return wide - lam * second + lam * mean


class GatedMapsAttention(_TwoMaps):
    """head_i = RMSNorm((g A1 − (1 − g) A2) V) with g = σ(W x + b), one a token and differential head.

    After M-DGSA, "Differential Gated Self-Attention" (Lygizou et al. 2025, arXiv 2505.24054), whose abstract says that
    an excitatory and an inhibitory map are fused by a sigmoid gate of the token. The weights g and 1 − g, the norm of
    the first version and its λ_init of 0 are how we read it: the authors have published no code to compare with.
    `lam` is 1 − g of a token whose input is zero, its mean over heads.
    """

    def __init__(self, dim: int, num_heads: int = 8, qkv_bias: bool = True, **options: Any) -> None:
        """The arguments are those of DifferentialAttention without lambda_init."""
        super().__init__(dim, num_heads, qkv_bias, 0.0, **options)
        for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
            delattr(self, name)
        self.gate_proj = nn.Linear(dim, num_heads // 2, **_place(options))

    def lam(self) -> Tensor:
        bias = self.gate_proj.bias
        return 1 - torch.sigmoid(bias.to(torch.promote_types(bias.dtype, torch.float32))).mean()

    def combine(self, first: Tensor, second: Tensor, x: Tensor, is_causal: bool) -> Tensor:
        gate = token_lambdas(self.gate_proj, torch.sigmoid, x).transpose(1, 2).unsqueeze(-1)  # (B, H/2, N, 1)
        return gate * first - (1 - gate) * second

    def _apply(self, fn: Any, recurse: bool = True) -> "GatedMapsAttention":
        """As GatedAttention's: there are no vectors of λ here."""
        with full_precision(self.gate_proj.weight, self.gate_proj.bias):
            nn.Module._apply(self, fn, recurse)  # type: ignore[no-untyped-call]
        return self


def split_heads(layer: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of a layer's input (B, N, C), (B, H, N, D) each."""
    batch, length, _ = x.shape
    q, k, v = layer.qkv(x).reshape(batch, length, 3, layer.num_heads, layer.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def standard_heads(layer: Any, x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
    """A V of a standard layer's input (B, N, C), (B, H, N, D); its maps are recorded where that is asked."""
    q, k, v = split_heads(layer, x)
    if layer.recorded is None:
        return attend(q, k, v, attn_mask, is_causal, layer.attn_drop.p if layer.training else 0.0)
    attention = layer.attn_drop(attention_map(q, k, is_causal, attn_mask))
    layer.recorded.append(AttentionMaps(attention, attention))
    heads: Tensor = attention.to(v.dtype) @ v
    return heads


def merge_heads(layer: Any, heads: Tensor, x: Tensor) -> Tensor:
    """Heads (B, H, N, D) → the layer's output (B, N, C)."""
    out: Tensor = layer.proj_drop(layer.proj(heads.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)))
    return out


def attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, dropout: float) -> Tensor:
    """A V by PyTorch's attention, or by the map where that is faster; v may be wider than q and k."""
    if fastest("standard", q.device.type, q.dtype, q.shape[2]) == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout, is_causal)
    attention = F.dropout(attention_map(q, k, is_causal, attn_mask), dropout)
    return attention.to(v.dtype) @ v


def _place(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in ("device", "dtype") if key in options}
