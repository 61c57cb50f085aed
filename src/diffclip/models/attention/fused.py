"""(A1 − λA2)V for CPUs at the price of standard attention: blocks that stay in cache, and no map kept.

Letters as in ops.py: B batch, H heads, P = H/2 pairs, N tokens, D head width; R rows of a block of queries,
C keys that they may see, G pairs of heads in a block.

The maps share V, so the forward pass is 4 N²D multiply-adds a pair (Q1K1ᵀ, Q2K2ᵀ and 2D columns of AV), as
much as two standard heads. The backward pass computes the maps again from q and k, and with dO the gradient of the
output and Y = dO·Vᵀ (the gradient of A1 − λA2) is

    dV = (A1 − λA2)ᵀ dO        dS1 = A1 ∘ (Y − rowsum(Y ∘ A1))        dS2 = −λ · A2 ∘ (Y − rowsum(Y ∘ A2))
    dQi = dSi Ki / √D          dKi = dSiᵀ Qi / √D                     dλ = −Σ Y ∘ A2

That is 10 N²D a pair, as much as two heads of a fused standard attention, which computes its map again too.

Both passes are one operator each for torch.compile and torch.export. Second derivatives go by `plain`. On x86 with
AVX-512 it is a compiled kernel (native.py), elsewhere the loops over PyTorch's operators below, which also take other
dtypes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffclip.models.attention import native as native_attention
from diffclip.models.attention.gpu import empty_by_token, plain
from diffclip.models.attention.second import register_second

MAP_BYTES = 2**21
"""Size of a block of maps in the loops over PyTorch's operators; smaller ones cost calls, larger ones cache."""


@dataclass(frozen=True)
class _Block:
    """Some pairs of heads of some images, their queries taken `rows` at a time."""

    images: slice
    pairs: slice
    rows: int

    def steps(self, length: int, is_causal: bool) -> Iterator[tuple[slice, slice]]:
        """The queries of each step and the keys that they may see; from the end, where every key is seen."""
        for start in reversed(range(0, length, self.rows)):
            rows = slice(start, min(length, start + self.rows))
            yield rows, slice(0, rows.stop if is_causal else length)


def _blocks(batch: int, pairs: int, length: int, itemsize: int) -> Iterator[_Block]:
    whole_maps = MAP_BYTES // (length * length * itemsize)
    pairs_at_once = min(pairs, max(1, whole_maps))
    images_at_once = max(1, whole_maps // pairs)
    rows = min(length, max(16, MAP_BYTES // (length * itemsize)))
    for image in range(0, batch, images_at_once):
        for pair in range(0, pairs, pairs_at_once):
            yield _Block(slice(image, image + images_at_once), slice(pair, pair + pairs_at_once), rows)


def _gather(x: Tensor, block: _Block, groups: int) -> Tensor:
    """The block's heads, group after group: (B, groups · P, N, width) → (groups · G, N, width), contiguous."""
    return _heads(x, block, groups).reshape(-1, *x.shape[2:]).contiguous()


def _scatter(x: Tensor, block: _Block, groups: int, values: Tensor) -> None:
    """Put (groups · G, N, width) where `_gather` takes it from."""
    target = _heads(x, block, groups)
    target.copy_(values.view(target.shape))


def _heads(x: Tensor, block: _Block, groups: int) -> Tensor:
    """A view of the block: (groups, images, pairs, N, width)."""
    batch, heads, length, width = x.shape
    return x.view(batch, heads // groups, groups, length, width)[block.images, block.pairs].movedim(2, 0)


def _maps(buffer: Tensor, q: Tensor, k: Tensor, is_causal: bool) -> Tensor:
    """softmax(QKᵀ/√D) in `buffer`: the last R of C tokens as queries, (2G, R, D), and (2G, C, D) → (2G, R, C)."""
    shape = (len(q), q.shape[1], k.shape[1])
    out = buffer[: math.prod(shape)].view(shape)
    torch.baddbmm(q.new_zeros(()), q, k.mT, beta=0, alpha=q.shape[-1] ** -0.5, out=out)
    if is_causal:
        later = torch.ones(shape[1:], dtype=torch.bool).triu_(1 + shape[2] - shape[1])
        out.masked_fill_(later, float("-inf"))
    return torch.softmax(out, -1, out=out)


@torch.library.custom_op("diffclip::fused_attention", mutates_args=(), device_types="cpu")
def fused_attention(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, is_causal: bool) -> Tensor:
    """(A1 − λA2)V. Shapes as diffclip.differential_attention has them; lam is a scalar tensor.

    The result lies in memory as (B, N, P, 2D), so that joining the heads afterwards copies nothing.
    """
    out = empty_by_token(v)
    if not out.numel():  # neither the kernel nor the loops know how to share no work
        return out
    if _native(q):
        native_attention.attention([*map(_addressable, (q, k, v)), out], float(lam), is_causal)
    else:
        _forward(q, k, v, float(lam), is_causal, out)
    return out


@torch.library.custom_op("diffclip::fused_attention_backward", mutates_args=(), device_types="cpu")
def _fused_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, lam: Tensor, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and λ."""
    dq, dk, dv = (empty_by_token(x) for x in (q, k, v))
    if not dq.numel():
        return dq, dk, dv, torch.zeros_like(lam)
    if _native(q):
        read = [_addressable(x) for x in (grad, q, k, v)]
        dlam = torch.tensor(native_attention.attention([*read, dq, dk, dv], float(lam), is_causal))
    else:
        dlam = _gradients(grad, q, k, v, float(lam), is_causal, dq, dk, dv)
    return dq, dk, dv, dlam.to(lam.dtype)


def _native(q: Tensor) -> bool:
    return q.shape[-1] % 2 == 0 and native_attention.available(q.dtype)


def _addressable(x: Tensor) -> Tensor:
    """x as the kernel reads it: numbers of a token side by side, tokens apart, in whole words of 4 bytes."""
    sideways = x.stride(3) == 1 and x.stride(2) >= x.shape[3]
    aligned = x.data_ptr() % 4 == 0 and all(stride * x.element_size() % 4 == 0 for stride in x.stride()[:3])
    return x if sideways and aligned else x.contiguous()


def _forward(q: Tensor, k: Tensor, v: Tensor, lam: float, is_causal: bool, out: Tensor) -> None:
    batch, heads, length, _ = q.shape
    for block in _blocks(batch, heads // 2, length, q.element_size()):
        queries, keys, values = _gather(q, block, 2), _gather(k, block, 2), _gather(v, block, 1)
        result = torch.empty_like(values)
        buffer = q.new_empty(len(queries) * block.rows * length)
        for rows, seen in block.steps(length, is_causal):
            a1, a2 = _maps(buffer, queries[:, rows], keys[:, seen], is_causal).chunk(2)  # (G, R, C) each
            # Not sub(a1, a2, alpha=λ), which rounds λ to bfloat16 first.
            result[:, rows] = a1.sub_(a2.mul_(lam)) @ values[:, seen]
        _scatter(out, block, 1, result)


def _gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: float,
    is_causal: bool,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> Tensor:
    """Fill in dq, dk and dv; returns dλ in float32 at least."""
    batch, heads, length, _ = q.shape
    dlam = torch.zeros((), dtype=torch.promote_types(q.dtype, torch.float32))
    for block in _blocks(batch, heads // 2, length, q.element_size()):
        queries, keys, values = _gather(q, block, 2), _gather(k, block, 2), _gather(v, block, 1)
        douts = _gather(grad, block, 1)
        dqueries = torch.empty_like(queries)
        # Sums over steps, in float32 at least.
        dkeys, dvalues = (torch.empty_like(x, dtype=dlam.dtype) for x in (keys, values))
        buffers = q.new_empty(5, len(values) * block.rows * length)
        for rows, seen in block.steps(length, is_causal):
            maps = _maps(buffers[:2].view(-1), queries[:, rows], keys[:, seen], is_causal)  # (2G, R, C)
            a1, a2 = maps.chunk(2)
            dmap = buffers[2][: a1.numel()].view(a1.shape)
            dmaps = buffers[3:].view(-1)[: maps.numel()].view(maps.shape)
            work, _ = dmaps.chunk(2)
            add = Tensor.copy_ if rows.stop == length else Tensor.add_  # the first step reaches every key
            dout = douts[:, rows]
            torch.bmm(dout, values[:, seen].mT, out=dmap)  # Y
            add(dvalues[:, seen], torch.mul(a2, -lam, out=work).add_(a1).mT @ dout)
            dlam -= torch.mul(dmap, a2, out=work).sum(dtype=dlam.dtype)
            for softmax, out in zip((a1, a2), dmaps.chunk(2), strict=True):
                torch._softmax_backward_data(dmap, softmax, -1, dmap.dtype, grad_input=out)
            dqueries[:, rows] = _scaled_product(dmaps, keys[:, seen])
            add(dkeys[:, seen], _scaled_product(dmaps.mT, queries[:, rows]))
        for tensor, values in ((dq, dqueries), (dk, dkeys)):
            values[len(values) // 2 :] *= -lam  # dS2 = −λ · …, which was left out so far
            _scatter(tensor, block, 2, values)
        _scatter(dv, block, 1, dvalues)
    return dlam


def _scaled_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right / √D, rounded once."""
    return torch.baddbmm(left.new_zeros(()), left, right, beta=0, alpha=right.shape[-1] ** -0.5)


@fused_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, is_causal: bool) -> Tensor:
    return empty_by_token(v)


@_fused_attention_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, lam: Tensor, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return empty_by_token(q), empty_by_token(k), empty_by_token(v), torch.empty_like(lam)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
    *tensors, ctx.is_causal = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
    return *_fused_attention_backward(grad, *ctx.saved_tensors, ctx.is_causal), None


fused_attention.register_autograd(_backward, setup_context=_setup_context)
register_second(_fused_attention_backward, plain)
