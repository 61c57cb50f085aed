"""The two kinds of attention layer. Both are `attn_layer` classes for timm's Block and VisionTransformer.

This file holds all that differs between CLIP and DiffCLIP; version2.py has other forms. Shapes: B batch, N tokens,
C = dim channels, H heads counted as in standard attention, D = C / H head width.
"""

from collections.abc import Callable

import timm.layers
import torch
from torch import Tensor, nn

from diffclip.errors import UserError
from diffclip.models.attention.choice import autocast_dtype, fastest
from diffclip.models.attention.forms import AttentionMaps, attention_map, differential_maps
from diffclip.models.attention.head_norm import head_norm
from diffclip.models.attention.ops import differential_attention
from diffclip.models.plain import is_plain
from diffclip.models.precision import full_precision
from diffclip.models.presets import check_heads

HEAD_NORM_EPS = 1e-5


class DifferentialAttention(nn.Module):
    """Multi-head differential attention, as the released DiffCLIP computes it.

    With λ = exp(Σ λq1·λk1) − exp(Σ λq2·λk2) + λ_init, one scalar a layer,

        head_i = (1 − λ_init) · RMSNorm((A1 − λA2) V),   output = proj(concat(head_1 … head_H/2))

    ("Differential Transformer", Ye et al. 2024, arXiv 2410.05258, eq. 1 to 3). Queries and keys have H heads,
    of which 2i and 2i + 1 are the two groups of differential head i; values have H/2 heads of 2D. The RMSNorm
    (eps 1e-5) has one weight vector of 2D, shared by the heads. Logits are scaled by D^-1/2. λ is computed in
    float32 at least, also under autocast.

    `num_heads` is H, as many as the standard layer it replaces has, and so twice what timm's DiffAttention
    counts.
    λ_init is not a weight: whoever restores a state dict must give the same `lambda_init`.
    """

    lambda_init: float
    lambda_scale: float = 1.0  # below it while λ is warmed up
    lambda_q1: nn.Parameter
    lambda_k1: nn.Parameter
    lambda_q2: nn.Parameter
    lambda_k2: nn.Parameter
    recorded: list[AttentionMaps] | None

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        lambda_init: float = 0.8,
        *,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            dim: channels in and out.
            num_heads: heads counted as in standard attention; even, and a divisor of dim.
            lambda_init: λ_init, in [0, 1).
            qk_norm, scale_norm: timm's Block passes them; only False is possible.
            norm_layer: timm's Block passes it, for qk_norm; not used.

        Raises: UserError for numbers that do not fit.
        """
        super().__init__()
        check_heads(dim, num_heads, differential=True, where="DifferentialAttention")
        if qk_norm or scale_norm:
            raise UserError("DifferentialAttention has no qk_norm and no scale_norm: its heads are normalised already")
        if not 0 <= lambda_init < 1:
            raise UserError(f"lambda_init = {lambda_init}: give a number in [0, 1)")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.lambda_init = lambda_init
        self.attn_drop = attn_drop
        self.recorded = None  # a list while diffclip.models.maps.record_attention is active

        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)
        self.norm: nn.Module = nn.RMSNorm(2 * self.head_dim, eps=HEAD_NORM_EPS, device=device, dtype=dtype)
        for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
            vector = torch.randn(self.head_dim, device=device, dtype=torch.float32) * 0.1
            self.register_parameter(name, nn.Parameter(vector))

    def lam(self) -> Tensor:
        """λ of this layer: a scalar, float32 (float64 if the vectors are)."""
        q1, k1, q2, k2 = (
            vector.to(torch.promote_types(vector.dtype, torch.float32))
            for vector in (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2)
        )
        # One subtraction in float32, cast last: rounding each exponential first would double the error of λ
        # in bfloat16.
        return self.lambda_scale * ((q1 * k1).sum().exp() - (q2 * k2).sum().exp() + self.lambda_init)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) → (B, N, C). The masks are those of diffclip.differential_attention."""
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).chunk(3, -1)  # (B, N, C) each
        q = q.view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)  # (B, H, N, D)
        k = k.view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)  # (B, H, N, D)
        v = v.view(batch, length, self.num_heads // 2, 2 * self.head_dim).transpose(1, 2)  # (B, H/2, N, 2D)
        lam = self.lam()
        dropout = self.attn_drop if self.training else 0.0
        if self.recorded is None:
            heads = differential_attention(q, k, v, lam, is_causal=is_causal, attn_mask=attn_mask, dropout_p=dropout)
        else:
            maps = differential_maps(q, k, lam, is_causal=is_causal, attn_mask=attn_mask, dropout_p=dropout)
            self.recorded.append(maps)
            heads = maps.combined @ v
        # (B, N, H/2, 2D): as the fused operation lays them in memory, and as the projection reads them
        heads = self.normalise(heads.transpose(1, 2))
        out: Tensor = self.proj_drop(self.proj(heads.reshape(batch, length, dim)))
        return out

    def normalise(self, heads: Tensor) -> Tensor:
        """(B, N, H/2, 2D) → (1 − λ_init) · RMSNorm of each head."""
        if is_plain(self.norm, nn.RMSNorm):
            assert isinstance(self.norm, nn.RMSNorm)
            return head_norm(heads, self.norm.weight * (1 - self.lambda_init), HEAD_NORM_EPS)
        normed: Tensor = (1 - self.lambda_init) * self.norm(heads)
        return normed

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DifferentialAttention":
        """`.half()`, `.to(torch.bfloat16)` and the like, which leave the λ vectors as exact as they are."""
        with full_precision(self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, lambda_init={self.lambda_init:.4g}"


class StandardAttention(timm.layers.Attention):  # type: ignore[misc]  # timm is untyped
    """timm's attention, whose map can be recorded, and which takes the path that is fastest on the device.

    Same parameters and same numbers as timm's. It has neither qk_norm nor scale_norm here.
    """

    recorded: list[AttentionMaps] | None = None

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) → (B, N, C). The masks are those of torch's scaled_dot_product_attention."""
        device = x.device.type
        dtype = autocast_dtype(device) or x.dtype
        if self.recorded is None and fastest("standard", device, dtype, x.shape[1]) == "sdpa":
            fused: Tensor = super().forward(x, attn_mask, is_causal)
            return fused
        batch, length, dim = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, D) each
        attention = self.attn_drop(attention_map(q, k, is_causal, attn_mask))  # (B, H, N, N)
        if self.recorded is not None:
            self.recorded.append(AttentionMaps(attention, attention))
        out: Tensor = self.proj_drop(self.proj((attention @ v).transpose(1, 2).reshape(batch, length, dim)))
        return out
