"""The attention maps of open_clip's own transformers, which compute none that could be seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from diffclip.models.attention.forms import attention_map
from diffclip.models.wrapped import Recorder


def recorder_of(model: Any) -> Recorder | None:
    """Of a CLIP or CustomTextCLIP; None for what pools by attention, and for towers of other libraries."""
    from open_clip.transformer import TextTransformer, VisionTransformer

    visual, text = model.visual, getattr(model, "text", model)
    if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None:
        return None
    if text is not model and not isinstance(text, TextTransformer):
        return None
    blocks, words = visual.transformer.resblocks, text.transformer.resblocks
    if not all(isinstance(getattr(block, "attn", None), nn.MultiheadAttention) for block in (*blocks, *words)):
        return None

    def image(model: Any, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        with _recorded(blocks) as maps:
            return model.encode_image(pixels, normalize=False), maps

    def read(model: Any, tokens: Tensor) -> list[Tensor]:
        with _recorded(words) as maps:
            model.encode_text(tokens, normalize=False)
        return maps

    return Recorder(image, read, visual.patch_size[0], mean=visual.pool_type == "avg")


@contextmanager
def _recorded(blocks: Iterable[Any]) -> Iterator[list[Tensor]]:
    """Inside the `with`, the blocks' attention is computed by its maps, each of which is appended."""
    layers = [block.attn for block in blocks]
    maps: list[Tensor] = []

    def by_its_map(layer: nn.MultiheadAttention) -> Any:
        def forward(x: Tensor, *_: Tensor, attn_mask: Tensor | None = None, **__: Any) -> tuple[Tensor, None]:
            # (B, N, C): keys and values are of the same x, as there is no cross-attention in these towers.
            qkv = nn.functional.linear(x, layer.in_proj_weight, layer.in_proj_bias)
            heads = qkv.view(*x.shape[:2], 3, layer.num_heads, -1)
            q, k, v = heads.permute(2, 0, 3, 1, 4)  # (B, H, N, D) each
            maps.append(attention_map(q, k, False, attn_mask))
            return layer.out_proj((maps[-1] @ v).transpose(1, 2).flatten(2)), None

        return forward

    try:
        for layer in layers:
            layer.forward = by_its_map(layer)
        yield maps
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
