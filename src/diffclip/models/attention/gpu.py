"""(A1 − λA2)V on a GPU as one operator each way, for torch.compile too; triton_kernels.py has the kernels."""

import functools
import importlib.util
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffclip.models.attention.second import register_second

DTYPES = (torch.float16, torch.bfloat16)
WIDTHS = (16, 32, 64)
"""Of a head. Kernels of wider heads would not fit into the registers."""


@dataclass(frozen=True)
class Blocks:
    """How a kernel cuts its work: queries and keys at a time, warps of a program, loads under way."""

    queries: int
    keys: int
    warps: int
    stages: int


# Measured on an H200 at 77, 197 and 577 tokens (docs/performance.md).
FORWARD, BACKWARD_Q, BACKWARD_KV = Blocks(64, 64, 4, 3), Blocks(64, 64, 4, 2), Blocks(32, 64, 4, 3)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def supports(device: str, dtype: torch.dtype, width: int) -> bool:
    """Whether tensors of heads of this width can use the kernels: 16 bits, on an NVIDIA GPU of 2020 or later."""
    return dtype in DTYPES and width in WIDTHS and device == "cuda" and available()


@functools.cache
def available() -> bool:
    """Whether this process has Triton and a GPU of compute capability 8.0 or more."""
    if not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return False
    return torch.version.cuda is not None and torch.cuda.get_device_capability() >= (8, 0)


@torch.library.custom_op("diffclip::gpu_attention", mutates_args=())
def gpu_attention(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
    """(A1 − λA2)V, lying in memory as (B, N, P, 2D), and what its gradients need. lam: a float32 scalar on the GPU."""
    from diffclip.models.attention import triton_kernels

    batch, heads, length, width = q.shape
    out = empty_by_token(v)
    lse = torch.empty(batch, heads, length, device=q.device, dtype=torch.float32)
    if not out.numel():  # no kernel is launched on nothing
        return out, lse
    q, k, v = map(_readable, (q, k, v))
    blocks = -(-length // FORWARD.queries)
    triton_kernels.forward[(blocks * batch * heads // 2,)](
        *(q, k, v, lam, out, lse), *_strides(q, k, v, out), heads // 2, length, blocks, _scale2(width),
        **_options(FORWARD, q, is_causal),
    )  # fmt: skip
    return out, lse


@torch.library.custom_op("diffclip::gpu_attention_backward", mutates_args=())
def _gpu_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, lam: Tensor, lse: Tensor, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and λ."""
    from diffclip.models.attention import triton_kernels

    batch, heads, length, width = q.shape
    pairs, scales = heads // 2, (_scale2(width), 1 / math.sqrt(width))
    dq, dk, dv = (empty_by_token(x) for x in (q, k, v))
    if not dq.numel():
        return dq, dk, dv, torch.zeros_like(lam)
    grad, q, k, v = map(_readable, (grad, q, k, v))
    delta, blocks = torch.empty_like(lse), -(-length // BACKWARD_Q.queries)
    dlam = lse.new_empty(batch * pairs * blocks)
    triton_kernels.backward_q[(len(dlam),)](
        *(q, k, v, lam, grad, lse, delta, dq, dlam), *_strides(q, k, v, grad, dq), pairs, length, blocks, *scales,
        **_options(BACKWARD_Q, q, is_causal),
    )  # fmt: skip
    blocks = -(-length // BACKWARD_KV.keys)
    triton_kernels.backward_kv[(batch * pairs * blocks,)](
        *(q, k, v, lam, grad, lse, delta, dk, dv), *_strides(q, k, v, grad, dk, dv), pairs, length, blocks, *scales,
        **_options(BACKWARD_KV, q, is_causal),
    )  # fmt: skip
    return dq, dk, dv, dlam.sum()


def _options(blocks: Blocks, q: Tensor, is_causal: bool) -> dict[str, Any]:
    """What a kernel is compiled for. float32, which only tests use, is multiplied without TF32."""
    precision = "ieee" if q.dtype is torch.float32 else "tf32"
    cut = {"BM": blocks.queries, "BN": blocks.keys, "num_warps": blocks.warps, "num_stages": blocks.stages}
    return cut | {"CAUSAL": is_causal, "D": q.shape[-1], "PRECISION": precision}


def _scale2(width: int) -> float:
    return 1 / (math.sqrt(width) * math.log(2))


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def _readable(x: Tensor) -> Tensor:
    """x with the numbers of a token side by side."""
    return x if x.stride(3) == 1 else x.contiguous()


def empty_by_token(x: Tensor) -> Tensor:
    """An empty (B, H, N, D) that lies in memory as (B, N, H, D), as the projections before and after want it."""
    return torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


@gpu_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
    return empty_by_token(v), q.new_empty(q.shape[:3], dtype=torch.float32)


@_gpu_attention_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, lam: Tensor, lse: Tensor, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return empty_by_token(q), empty_by_token(k), empty_by_token(v), torch.empty_like(lam)


def _setup_context(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, bool], output: tuple[Tensor, Tensor]
) -> None:
    *tensors, ctx.is_causal = inputs
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
    return *_gpu_attention_backward(grad, *ctx.saved_tensors, ctx.is_causal), None


gpu_attention.register_autograd(_backward, setup_context=_setup_context)


def plain(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, is_causal: bool) -> Tensor:
    """(A1 − λA2)V by PyTorch's operators, both maps kept."""
    logits = q @ k.mT / math.sqrt(q.shape[-1])  # (B, H, N, N)
    if is_causal:
        later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(later, float("-inf"))
    maps = logits.softmax(-1)
    return (maps[:, ::2] - lam * maps[:, 1::2]).to(v.dtype) @ v


register_second(_gpu_attention_backward, lambda q, k, v, lam, _lse, is_causal: plain(q, k, v, lam, is_causal))
