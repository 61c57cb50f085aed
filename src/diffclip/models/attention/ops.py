"""The operation (A1 − λA2)V of differential attention, by the form that is asked for, or is fastest.

Letters in shapes: B batch, H heads counted as in standard attention (H/2 differential heads), N tokens, D
head width. Heads 2i and 2i + 1 of q and k are the two groups of differential head i; its values are 2D wide.

    A1 = softmax(Q1 K1ᵀ / √D + mask),  A2 = softmax(Q2 K2ᵀ / √D + mask),  output = (A1 − λ A2) V

after "Differential Transformer" (Ye et al. 2024, arXiv 2410.05258, eq. 1), with the interleaved heads of
DiffCLIP.
"""

import functools
import logging
from typing import Literal

import torch
from torch import Tensor

from diffclip.errors import UserError
from diffclip.models.attention import gpu
from diffclip.models.attention.choice import autocast_dtype, fastest, no_autocast
from diffclip.models.attention.forms import BACKENDS, AttentionCall

log = logging.getLogger(__name__)


Backend = Literal["auto", "eager", "fused", "sdpa", "flex"]


def differential_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor | float,
    *,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    backend: Backend = "auto",
) -> Tensor:
    """(A1 − λA2)V.

    Args:
        q, k: (B, H, N, D), H even; heads 2i and 2i + 1 belong to differential head i.
        v: (B, H/2, N, 2D), of the dtype of q and k. Under autocast all three are cast, as torch does it for
            scaled_dot_product_attention.
        lam: λ, a scalar, in float32 whatever the dtype of q: rounded to bfloat16 it would move in steps of
            0.004.
        is_causal: a token attends to itself and those before it. Not together with attn_mask.
        attn_mask: broadcastable to (B, H/2, N, N); bool, True where a query may attend, or floats to add to
            the logits. A query that may attend to nothing gets zeros.
        dropout_p: share of each softmax map set to 0, drawn separately for A1 and A2.
        backend: "eager" materialises both maps, and is the reference; "fused" keeps no map, on CPUs and on NVIDIA
            GPUs; "sdpa" calls torch's scaled_dot_product_attention for each group; "flex" is FlexAttention, compiled,
            for GPUs; "auto" is what was measured to be fastest on the device, for the dtype and number of tokens.
            "fused" takes no attn_mask and no dropout, "flex" no dropout: with those, eager is taken, and a warning
            logged once if the backend was asked for by name.

    Returns: (B, H/2, N, 2D), of the dtype of v.
    Raises: UserError for an odd number of heads, shapes that do not fit, both masks, an unknown backend, or one that
        the device does not have.
    """
    _check(q, k, v, is_causal, attn_mask)
    device = q.device.type
    cast_to = autocast_dtype(device)
    if cast_to is not None and q.dtype is not torch.float64:
        q, k, v = (x.to(cast_to) for x in (q, k, v))
    name: str = backend
    if name == "auto":
        name = fastest("differential", device, q.dtype, q.shape[2])
        if device == "cuda" and name == "fused" and not gpu.supports(device, q.dtype, q.shape[-1]):
            name = "sdpa"
        if not _serves(name, attn_mask, dropout_p):
            name = "eager" if device == "cpu" else "sdpa"
    elif name not in BACKENDS:
        raise UserError(f"backend = {name!r}: choose one of auto, {', '.join(BACKENDS)}")
    elif not _serves(name, attn_mask, dropout_p):
        _say_once(f"backend {name} has no {'dropout' if dropout_p else 'attn_mask'}: eager is taken instead")
        name = "eager"
    with no_autocast(device):
        return BACKENDS[name](AttentionCall(q, k, v, lam, is_causal, attn_mask, dropout_p))


def _serves(backend: str, attn_mask: Tensor | None, dropout_p: float) -> bool:
    if backend == "fused":
        return attn_mask is None and dropout_p == 0
    return backend != "flex" or dropout_p == 0


@functools.cache
def _say_once(message: str) -> None:
    log.warning(message)


def _check(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, attn_mask: Tensor | None) -> None:
    if q.ndim != 4:
        raise UserError(f"q must be (batch, heads, tokens, head width), not {tuple(q.shape)}")
    batch, heads, length, width = q.shape
    if heads % 2:
        raise UserError(f"differential attention pairs its heads, so their number must be even, not {heads}")
    if k.shape != q.shape or v.shape != (batch, heads // 2, length, 2 * width):
        raise UserError(
            f"q {tuple(q.shape)} needs k of the same shape, not {tuple(k.shape)}, "
            f"and v {(batch, heads // 2, length, 2 * width)}, not {tuple(v.shape)}"
        )
    if is_causal and attn_mask is not None:
        raise UserError("is_causal and attn_mask were both given: put the causal part into attn_mask")
