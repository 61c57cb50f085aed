"""Differential attention with shared keys and values: a second query a head, and a λ for each token and head.

Unlike the first version it can start as the standard attention that it replaces, exactly: see diffclip.models.convert.
Letters as in layer.py.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffclip.models.attention.choice import fastest, no_autocast
from diffclip.models.attention.forms import AttentionMaps, attention_map
from diffclip.models.attention.layer import StandardAttention
from diffclip.models.precision import full_precision


def token_lambdas(proj: nn.Linear, to_lambda: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """λ of each token and head: (B, N, C) → (B, N, H), float32 at least, also under autocast."""
    with no_autocast(x.device.type):
        logits = proj(x.to(proj.weight.dtype))
    return to_lambda(logits.to(torch.promote_types(logits.dtype, torch.float32)))


class DifferentialAttentionV2(StandardAttention):
    """head_i = A(q_i, k_i) v_i − λ_i(x) · A(q2_i, k_i) v_i with λ = σ(W x + b), and no norm of the heads.

    The form of "Differential Transformer V2" (Ye et al. 2026), whose λ has no b. Parameters: those of standard
    attention, q2 (C → C), and lambda_proj (C → H). λ is computed in float32 at least.
    """

    to_lambda = staticmethod(torch.sigmoid)
    lambda_scale: float = 1.0  # below it while λ is warmed up

    def __init__(self, dim: int, num_heads: int = 8, *, qkv_bias: bool = False, **options: Any) -> None:
        """The arguments are those of timm's attention; it has neither qk_norm nor scale_norm here."""
        super().__init__(dim, num_heads, qkv_bias=qkv_bias, **options)
        place = {key: options[key] for key in ("device", "dtype") if key in options}
        self.q2 = nn.Linear(dim, dim, bias=qkv_bias, **place)
        self.lambda_proj = nn.Linear(dim, num_heads, **place)

    def lam(self) -> Tensor:
        """λ of a token whose input is zero, its mean over heads: a scalar, float32 at least."""
        bias = self.lambda_proj.bias
        return self.lambda_scale * self.to_lambda(bias.to(torch.promote_types(bias.dtype, torch.float32))).mean()

    def token_lambdas(self, x: Tensor) -> Tensor:
        """(B, N, C) → λ (B, H, N, 1)."""
        lambdas = token_lambdas(self.lambda_proj, self.to_lambda, x)
        return self.lambda_scale * lambdas.transpose(1, 2).unsqueeze(-1)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) → (B, N, C). The masks are those of torch's scaled_dot_product_attention."""
        batch, length, dim = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, D) each
        q2 = self.q2(x).view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)  # (B, H, N, D)
        lam = self.token_lambdas(x)
        if self.recorded is not None:
            a1, a2 = (self.attn_drop(attention_map(one, k, is_causal, attn_mask)) for one in (q, q2))
            maps = AttentionMaps(a1 - a2 * lam, a1, a2, lam.mean())
            self.recorded.append(maps)
            heads = maps.combined.to(v.dtype) @ v
        else:
            first, second = (self._attend(one, k, v, attn_mask, is_causal) for one in (q, q2))
            heads = (first - lam * second).to(first.dtype)
        out: Tensor = self.proj_drop(self.proj(heads.transpose(1, 2).reshape(batch, length, dim)))
        return out

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DifferentialAttentionV2":
        """`.half()`, `.to(torch.bfloat16)` and the like, which leave what makes λ as exact as it is."""
        with full_precision(self.lambda_proj.weight, self.lambda_proj.bias):
            super()._apply(fn, recurse)
        return self

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        if fastest("standard", q.device.type, q.dtype, q.shape[2]) == "sdpa":
            dropout = self.attn_drop.p if self.training else 0.0
            return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout, is_causal)
        out: Tensor = self.attn_drop(attention_map(q, k, is_causal, attn_mask)) @ v
        return out


class GatedDifferentialAttention(DifferentialAttentionV2):
    """The same with λ = tanh(W x + b), which is 0 where W and b are: nothing is subtracted, whatever q2 is."""

    to_lambda = staticmethod(torch.tanh)


class NoSecondMap(DifferentialAttentionV2):
    """head_i = A(q_i, k_i) v_i − λ_i(x) · (q2 x)_i: the control, the same parameters without a second map.

    What is subtracted sees its own token alone. What DifferentialAttentionV2 gains beyond this comes from its map.
    """

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) → (B, N, C). The masks are those of torch's scaled_dot_product_attention."""
        batch, length, dim = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, D) each
        second = self.q2(x).view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)  # (B, H, N, D)
        if self.recorded is not None:
            attention = self.attn_drop(attention_map(q, k, is_causal, attn_mask))
            self.recorded.append(AttentionMaps(attention, attention))
            first = attention.to(v.dtype) @ v
        else:
            first = self._attend(q, k, v, attn_mask, is_causal)
        heads = (first - self.token_lambdas(x) * second).to(first.dtype)
        out: Tensor = self.proj_drop(self.proj(heads.transpose(1, 2).reshape(batch, length, dim)))
        return out
