"""What the heads of the image tower do, in numbers: rank and size of contexts, sinks, the gradient's way back.

docs/analysis.md has the equations and how each number can mislead. Letters: B images, N tokens, H heads as the maps
have them, W the width of a head's values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffclip.models.attention.forms import AttentionMaps
from diffclip.models.clip import CLIP, evaluation_mode
from diffclip.models.maps import record_attention

HIGH = 2.0
"""A patch is high where its residual stream's norm is more than so many medians of its image's patches."""


@dataclass(frozen=True)
class LayerNumbers:
    """One layer of the image tower, by head, means over images and tokens: float64 on the CPU."""

    rank: Tensor
    """(H,) effective rank of the contexts of an image, from 1 to the smaller of N and W."""
    size: Tensor
    """(H,) root mean square of the contexts' entries, before any norm."""
    class_share: dict[str, Tensor]
    """Map → (H,): the share of a patch's weight that the class token takes; sizes, where weights may be negative."""
    high_share: dict[str, Tensor]
    """The same of all high patches together; NaN where no image has one."""
    high_patches: float
    """The share of patches that are high."""
    tokens: int
    """N: 1 / N is the share of a token of which no map makes a difference."""
    gain: Tensor | None
    """(normed heads,) norm of the score's gradient before the heads' norm over that after it; None without a norm."""


def head_numbers(model: CLIP, pixels: Tensor, tokens: Tensor) -> tuple[LayerNumbers, ...]:
    """Of every layer, from the input on. pixels (B, 3, S, S), normalised, each with its text: tokens (B, L) int64.

    The gradient is that of the sum of the pairs' cosines.
    """
    visual: nn.Module = model.visual
    pixels = pixels.detach().clone().requires_grad_()
    with evaluation_mode(model), torch.enable_grad(), record_attention(visual) as maps, _seen(visual) as seen:
        image = model.encode_image(pixels, normalize=True)
        text = model.encode_text(tokens, normalize=True).detach()
        merged = [layer.merged for layer in seen]
        gradients = torch.autograd.grad((image * text).sum(), merged)
    first = int(model.visual.num_prefix_tokens)
    return tuple(
        _layer(attention, layer, gradient, first)
        for attention, layer, gradient in zip(maps, seen, gradients, strict=True)
    )


@dataclass
class _Layer:
    """What hooks see of one block."""

    attention: nn.Module
    stream: Tensor
    values: Tensor
    merged: Tensor


@contextmanager
def _seen(visual: nn.Module) -> Iterator[list[_Layer]]:
    """Inside the `with`, each block's input, values and what its projection merges are appended as it is run."""
    layers: list[_Layer] = []
    streams: list[Tensor] = []
    values: list[Tensor] = []
    hooks = []
    for block in visual.blocks.children():  # type: ignore[union-attr, operator]
        attention: Any = block.attn

        def merge(_proj: nn.Module, inputs: tuple[Tensor], attention: nn.Module = attention) -> None:
            layers.append(_Layer(attention, streams[-1], values[-1], inputs[0]))

        hooks += [
            block.register_forward_pre_hook(lambda _block, inputs: streams.append(inputs[0])),
            attention.qkv.register_forward_hook(lambda _qkv, _inputs, out: values.append(out.chunk(3, -1)[-1])),
            attention.proj.register_forward_pre_hook(merge),
        ]
    try:
        yield layers
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _layer(attention: AttentionMaps, seen: _Layer, gradient: Tensor, first: int) -> LayerNumbers:
    combined = attention.combined.double()
    batch, heads, length, _ = combined.shape
    values = seen.values.double().view(batch, length, heads, -1).transpose(1, 2)
    contexts = combined @ values  # (B, H, N, W)
    high = high_patches(seen.stream.double(), first)
    shown = {"A": combined} if attention.a2 is None else {"A1": attention.a1, "A2": attention.a2, "A1 − λA2": combined}
    maps = {name: one.double().abs()[:, :, first:] for name, one in shown.items()}
    return LayerNumbers(
        effective_rank(contexts).mean(0).cpu(),
        contexts.square().mean((0, 2, 3)).sqrt().cpu(),
        {name: (one[..., 0] / one.sum(-1)).mean((0, 2)).cpu() for name, one in maps.items()},
        {name: _share_of(one, high).cpu() for name, one in maps.items()},
        float(high[:, first:].double().mean()),
        length,
        _gain(seen.attention, contexts, gradient.double()),
    )


def effective_rank(contexts: Tensor) -> Tensor:
    """(…, N, W) → (…): exp of the entropy of the singular values' shares (Roy & Vetterli 2007)."""
    values = torch.linalg.svdvals(contexts)
    shares = values / values.sum(-1, keepdim=True)
    rank: Tensor = torch.special.entr(shares).sum(-1).exp()
    return rank


def high_patches(stream: Tensor, first: int) -> Tensor:
    """(B, N, C) → (B, N) bool: which tokens are patches with a norm above HIGH medians of their image's patches."""
    norms = stream.norm(dim=-1)
    high: Tensor = norms > HIGH * norms[:, first:].median(-1, keepdim=True).values
    high[:, :first] = False
    return high


def _share_of(weights: Tensor, high: Tensor) -> Tensor:
    """(B, H, queries, N) and (B, N) → (H,): over the images that have high patches."""
    having = high.any(-1)
    weights = weights[having]
    share: Tensor = (weights * high[having, None, None]).sum(-1) / weights.sum(-1)
    mean: Tensor = share.mean((0, 2))
    return mean


def _gain(attention: nn.Module, contexts: Tensor, gradient: Tensor) -> Tensor | None:
    """By the Jacobian of y = w x / r, r = √(mean x² + ε): ∂s/∂x = (u − x mean(x u) / r²) / r with u = w ∂s/∂y."""
    norm = attention.norm
    if not isinstance(norm, nn.RMSNorm):
        return None
    width = norm.weight.numel()
    x = contexts.transpose(1, 2).reshape(*gradient.shape[:2], -1, width)  # (B, N, normed heads, width)
    after = gradient.view_as(x)
    scaled = after * norm.weight.double() * (1 - float(attention.lambda_init))  # type: ignore[arg-type]
    square = x.square().mean(-1, keepdim=True) + (norm.eps or 0.0)
    before = (scaled - x * (x * scaled).mean(-1, keepdim=True) / square) / square.sqrt()
    gain: Tensor = before.square().sum((0, 1, 3)).sqrt() / after.square().sum((0, 1, 3)).sqrt()
    return gain.cpu()
