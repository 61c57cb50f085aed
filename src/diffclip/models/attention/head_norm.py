"""The RMSNorm of differential heads, in one pass over memory on CPUs.

    y = x · w / √(mean x² + eps)            ("Root Mean Square Layer Normalization", Zhang & Sennrich 2019)

On a CPU PyTorch's own is several operators, each a pass over memory, in bfloat16 partly in float32. All of them take
half as long as the attention itself. The compiled kernel makes one pass forward and one backward, in float32 inside.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffclip.models.attention import native as native_attention


def head_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x: (…, width) of any floating dtype; weight: (width,), not rounded to the dtype of x where the kernel runs."""
    on_cpu = x.device.type == "cpu" and not torch.compiler.is_exporting()  # other programs know torch's operators alone
    if on_cpu and weight.dtype is torch.float32 and native_attention.available(x.dtype):
        out: Tensor = _head_norm(x.contiguous(), weight.contiguous(), eps)
        return out
    return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)


@torch.library.custom_op("diffclip::head_norm", mutates_args=(), device_types="cpu")
def _head_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = torch.empty_like(x)
    native_attention.head_norm((x, y), weight, eps)
    return y


@torch.library.custom_op("diffclip::head_norm_backward", mutates_args=(), device_types="cpu")
def _head_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(x)
    dw = native_attention.head_norm((grad.contiguous(), x, dx), weight, eps)
    return dx, dw


@_head_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


@_head_norm_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_head_norm_backward(grad, *ctx.saved_tensors, ctx.eps), None


_head_norm.register_autograd(_backward, setup_context=_setup_context)
