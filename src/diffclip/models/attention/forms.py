"""The forms of (A1 − λA2)V: the same numbers by other ways, and the maps themselves.

Letters in shapes: B batch, H heads counted as in standard attention (H/2 differential heads), N tokens, D
head width. Heads 2i and 2i + 1 of q and k are the two groups of differential head i; its values are 2D wide.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from diffclip.errors import UserError
from diffclip.models.attention import gpu
from diffclip.models.attention.fused import fused_attention
from diffclip.models.attention.gpu import gpu_attention


@dataclass(frozen=True)
class AttentionMaps:
    """The attention of one layer in one forward pass. Maps are (B, heads, queries, keys), part of its graph.

    combined: what multiplied V: A1 − λA2 for differential attention, one map a differential head, which can
        be negative and whose rows sum to 1 − λ; A for standard attention.
    a1, a2: the softmax maps; standard attention has a1 only, equal to combined.
    lam: λ, a scalar, the mean where it differs by token and head; None for standard attention.
    """

    combined: Tensor
    a1: Tensor
    a2: Tensor | None = None
    lam: Tensor | float | None = None


@dataclass(frozen=True)
class AttentionCall:
    """What a backend computes (A1 − λA2)V of; shapes and meaning as in `differential_attention`."""

    q: Tensor
    k: Tensor
    v: Tensor
    lam: Tensor | float
    is_causal: bool
    attn_mask: Tensor | None
    dropout_p: float


def differential_maps(
    q: Tensor,
    k: Tensor,
    lam: Tensor | float,
    *,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
) -> AttentionMaps:
    """The maps of differential_attention, whose arguments these are. Its output is `combined @ v`."""
    # Both maps apart, not one softmax over all heads: cutting that in two would copy it again in the backward
    # pass.
    (q1, q2), (k1, k2) = _pairs(q), _pairs(k)
    a1 = F.dropout(attention_map(q1, k1, is_causal, attn_mask), dropout_p)
    a2 = F.dropout(attention_map(q2, k2, is_causal, attn_mask), dropout_p)
    # In this order: on CPUs `lam * a2` rounds λ to the dtype of a2 first, `a2 * lam` uses its float32 value.
    return AttentionMaps(a1 - a2 * lam, a1, a2, lam)


def attention_map(q: Tensor, k: Tensor, is_causal: bool, attn_mask: Tensor | None) -> Tensor:
    """softmax(QKᵀ/√D + mask): (B, H, N, D) twice → (B, H, N, N). A query without any key gets zeros."""
    batch, heads, length, width = q.shape
    q, k = q.flatten(0, 1), k.flatten(0, 1)  # (B·H, N, D)
    bias, blind = _additive_mask(q, batch, heads, is_causal, attn_mask)
    if bias is None:
        logits = torch.baddbmm(q.new_zeros(()), q, k.mT, beta=0, alpha=width**-0.5)
    else:
        logits = torch.baddbmm(bias, q, k.mT, alpha=width**-0.5)
    weights = logits.softmax(-1)  # (B·H, N, N)
    if blind is not None:
        weights = weights.masked_fill(blind, 0.0)
    return weights.view(batch, heads, length, length)


def _additive_mask(
    q: Tensor, batch: int, heads: int, is_causal: bool, attn_mask: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """What to add to the logits (B·H or 1, N, N), and which queries are masked fully (B·H, N, 1)."""
    length = q.shape[1]
    if is_causal:
        return q.new_full((1, length, length), float("-inf")).triu(1), None
    if attn_mask is None:
        return None, None
    if attn_mask.dtype == torch.bool:
        attn_mask = q.new_zeros(attn_mask.shape).masked_fill(~attn_mask, float("-inf"))
    bias = attn_mask.to(q.dtype).expand(batch, heads, length, length).flatten(0, 1)
    blind = (bias == float("-inf")).all(-1, keepdim=True)
    # softmax of a row of −inf is NaN, and so is its gradient, even where the result is replaced afterwards.
    return bias.masked_fill(blind, 0.0), blind


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H, N, D) → its even and its odd heads, (B, H/2, N, D) each."""
    batch, heads, length, width = x.shape
    first, second = x.view(batch, heads // 2, 2, length, width).unbind(2)
    return first, second


def _eager(call: AttentionCall) -> Tensor:
    maps = differential_maps(
        call.q, call.k, call.lam, is_causal=call.is_causal, attn_mask=call.attn_mask, dropout_p=call.dropout_p
    )
    return maps.combined @ call.v


def _sdpa(call: AttentionCall) -> Tensor:
    first, second = (
        F.scaled_dot_product_attention(q, k, call.v, call.attn_mask, call.dropout_p, call.is_causal)
        for q, k in zip(_pairs(call.q), _pairs(call.k), strict=True)
    )
    return _subtract(first, second, call.lam)


def _subtract(first: Tensor, second: Tensor, lam: Tensor | float) -> Tensor:
    """first − λ · second in float32 at least, rounded once."""
    if isinstance(lam, Tensor):
        lam = lam.reshape(1)  # a tensor without dimensions would be rounded to the dtype of `second`
    return (first - lam * second).to(first.dtype)


def _fused(call: AttentionCall) -> Tensor:
    q, device, lam = call.q, call.q.device, call.lam
    if device.type != "cpu" and not gpu.supports(device.type, q.dtype, q.shape[-1]):
        raise UserError(
            'backend = "fused" is for CPUs, and for NVIDIA GPUs since 2020 with Triton, float16 or bfloat16 and heads '
            f"of {', '.join(map(str, gpu.WIDTHS))}; this is {q.dtype}, {q.shape[-1]} wide, on {device}: use sdpa"
        )
    if not isinstance(lam, Tensor):
        lam = torch.full((), lam, dtype=torch.promote_types(q.dtype, torch.float32), device=device)
    if device.type == "cpu":
        out: Tensor = fused_attention(q, call.k, call.v, lam, call.is_causal)
    else:
        out, _ = gpu_attention(q, call.k, call.v, lam.float().reshape(()), call.is_causal)
    return out


def _flex(call: AttentionCall) -> Tensor:
    q, k, v = call.q, call.k, call.v
    batch, heads, length, width = q.shape
    allowed = call.attn_mask
    if call.is_causal:
        allowed = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    if allowed is not None:
        allowed = allowed.expand(batch, heads // 2, length, length)

    def masked(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        assert allowed is not None
        if allowed.dtype is torch.bool:
            return torch.where(allowed[b, h // 2, i, j], score, float("-inf"))
        return score + allowed[b, h // 2, i, j]

    if q.device.type == "cpu":  # uncompiled, for tests
        if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
            raise UserError('backend = "flex": FlexAttention has no backward pass on a CPU: use fused, or auto')
        q, k, v = (x.detach() for x in (q, k, v))
    # Both groups in one call: v is read by two heads.
    shared = v.unsqueeze(2).expand(batch, heads // 2, 2, length, 2 * width).flatten(1, 2)  # (B, H, N, 2D)
    attend: Any = _compiled_flex_attention() if q.device.type == "cuda" else flex_attention
    first, second = _pairs(attend(q, k, shared, score_mod=None if allowed is None else masked))
    return _subtract(first, second, call.lam)


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(flex_attention)
    return compiled


BACKENDS: Mapping[str, Callable[[AttentionCall], Tensor]] = {
    "eager": _eager,
    "fused": _fused,
    "sdpa": _sdpa,
    "flex": _flex,
}
