"""The attention maps of a model on given inputs, by layer and head."""

import torch
from torch import Tensor

from diffclip.models.attention.forms import AttentionMaps
from diffclip.models.clip import evaluation_mode
from diffclip.models.image_text import ImageTextModel


def image_attention(model: ImageTextModel, pixels: Tensor) -> tuple[AttentionMaps, ...]:
    """The maps of every layer of the image tower, from input to output, by head: float, on the CPU, without gradients.

    pixels (B, 3, S, S) float, normalised. A layer has `combined` (A1 − λA2, or A of standard attention), `a1` and, of
    differential attention, `a2`. Each is (B, heads, N, N), queries before keys; `lam` is a float, or None. Tokens
    come in the order class token, registers where the tower has any, patches row by row; the model's
    `on_patches` takes the part that can be drawn. Works in evaluation mode, and leaves the model's mode as it was.
    """
    with evaluation_mode(model), torch.no_grad():
        return _on_cpu(model.image_maps(pixels)[1])


def text_attention(model: ImageTextModel, tokens: Tensor) -> tuple[AttentionMaps, ...]:
    """The same of the text tower: tokens (B, L) int64 → maps (B, heads, N, N), N up to the longest text's end.

    Attention is causal: what lies above the diagonal is 0. A text that ends before the longest has rows and columns
    after its end; they do not reach its feature.
    """
    with evaluation_mode(model), torch.no_grad():
        return _on_cpu(model.text_maps(tokens))


def _on_cpu(layers: list[AttentionMaps]) -> tuple[AttentionMaps, ...]:
    return tuple(
        AttentionMaps(
            layer.combined.cpu(),
            layer.a1.cpu(),
            None if layer.a2 is None else layer.a2.cpu(),
            None if layer.lam is None else float(layer.lam),
        )
        for layer in layers
    )
