"""The attention maps of a forward pass, with their gradients.

Analysis is built on this: run a tower under `record_attention`, make a score from its output, and
`torch.autograd.grad(score, [m.combined for m in maps])` is the gradient with respect to the very maps that
made it.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from diffclip.models.attention.forms import AttentionMaps
from diffclip.models.attention.layer import DifferentialAttention, StandardAttention


@contextmanager
def record_attention(module: nn.Module) -> Iterator[list[AttentionMaps]]:
    """Inside the `with`, every attention layer in `module` appends its maps to the list, as it is run.

    Both kinds of layer compute by their maps while recorded, with the usual output up to
    rounding. A map is (B, heads, N, N), where heads is half as many in a differential layer; N counts the
    class token of an image, first, and the tokens of the longest text. Compiled modules run as they are written.
    On leaving, also by an exception, the layers are as before.
    """
    layers = [m for m in module.modules() if isinstance(m, StandardAttention | DifferentialAttention)]
    maps: list[AttentionMaps] = []
    for layer in layers:
        layer.recorded = maps
    compiled = any(m._compiled_call_impl is not None for m in module.modules())
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield maps
    finally:
        for layer in layers:
            layer.recorded = None


def forward_with_maps(tower: nn.Module, inputs: Tensor) -> tuple[Tensor, list[AttentionMaps]]:
    """`tower(inputs)`, and the maps of its layers from input to output.

    For `model.visual` inputs are pixels (B, 3, S, S), for `model.text` tokens (B, L); the output is the
    tower's feature (B, width), before the joint projection.
    """
    with record_attention(tower) as maps:
        return tower(inputs), maps
