"""The attention maps of a model on given inputs, by layer and head."""

import torch
from torch import Tensor

from diffclip.models.attention.forms import AttentionMaps
from diffclip.models.clip import CLIP, evaluation_mode
from diffclip.models.maps import forward_with_maps


def image_attention(model: CLIP, pixels: Tensor) -> tuple[AttentionMaps, ...]:
    """The maps of every layer of the image tower, from input to output, by head: float, on the CPU, without gradients.

    pixels (B, 3, S, S) float, normalised. A layer has `combined` (A1 − λA2, or A of standard attention), `a1` and, of
    differential attention, `a2`. Each is (B, heads, N, N), queries before keys; `lam` is a float, or None. Tokens
    come in the order class token, registers where the tower has any, patches row by row; `class_token_rows` takes the
    part that can be drawn. Works in evaluation mode, and leaves the model's mode as it was.
    """
    return _maps_of(model, model.visual, pixels)


def text_attention(model: CLIP, tokens: Tensor) -> tuple[AttentionMaps, ...]:
    """The same of the text tower: tokens (B, L) int64 → maps (B, heads, N, N), N up to the longest text's end.

    Attention is causal: what lies above the diagonal is 0. A text that ends before the longest has rows and columns
    after its end; they do not reach its feature.
    """
    return _maps_of(model, model.text, tokens)


def _maps_of(model: CLIP, tower: torch.nn.Module, inputs: Tensor) -> tuple[AttentionMaps, ...]:
    with evaluation_mode(model), torch.no_grad():
        _, layers = forward_with_maps(tower, inputs)
    return tuple(
        AttentionMaps(
            layer.combined.cpu(),
            layer.a1.cpu(),
            None if layer.a2 is None else layer.a2.cpu(),
            None if layer.lam is None else float(layer.lam),
        )
        for layer in layers
    )


def class_token_rows(model: CLIP, attention: Tensor) -> Tensor:
    """What the class token gives to each patch: maps (B, heads, N, N) of the image tower → (B, heads, rows, columns).

    The class token and registers, which it attends to as well, are left out: rows of a softmax map sum to less than 1.
    """
    patches = attention[..., 0, model.visual.num_prefix_tokens :]  # (B, heads, rows × columns)
    return patches.reshape(*patches.shape[:-1], *model.visual.patch_embed.grid_size)
