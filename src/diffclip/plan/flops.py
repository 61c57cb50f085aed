"""The floating-point operations of training on one image and its caption, by part, from a model's configuration.

A multiplication with its addition counts as two. Only products of matrices and convolutions are counted, as
torch.utils.flop_counter does: norms, activations and softmax are below one per cent of them in any preset. The
backward pass computes every product twice more, once for each of its factors, unless a factor needs no gradient. What
is computed again (checkpointed activations, gradient caching, kernels that keep no map) is no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from diffclip.models.presets import ModelConfig


def vision_tokens(config: ModelConfig, training: bool = True) -> int:
    """The class token and the patches; in training, those that patch dropout leaves."""
    patches = (config.image_size // config.patch_size) ** 2
    return 1 + (max(1, int(patches * (1 - config.patch_dropout))) if training else patches)


def forward(config: ModelConfig, text_tokens: int | None = None, training: bool = True) -> dict[str, float]:
    """Part → operations of one image or caption, forward. text_tokens: a caption's, by default the context length."""
    tokens = vision_tokens(config, training)
    length = config.context_length if text_tokens is None else text_tokens
    text_ratio = config.text_mlp_ratio or config.mlp_ratio
    return {
        "image: patches": sum(_stem(config)),
        **_blocks(
            "image", tokens, config.vision_width, config.vision_depth, config.mlp_ratio, _added(config, "vision")
        ),
        "image: joint projection": 2 * config.vision_width * config.embed_dim,
        **_blocks(
            "text",
            length,
            config.text_width,
            config.text_depth,
            text_ratio,
            _added(config, "text"),
        ),
        "text: joint projection": 2 * config.text_width * config.embed_dim,
    }


def training(
    config: ModelConfig, batch_size: int, text_tokens: int | None = None, dropping: bool = True
) -> Mapping[str, float]:
    """Part → operations of one pair in a batch, forward and backward. dropping: whether patch dropout is on."""
    parts = {part: 3 * count for part, count in forward(config, text_tokens, dropping).items()}
    parts["image: patches"] -= _stem(config)[0]  # pixels need no gradient
    # Each image with all captions and each caption with all images; both features need gradients.
    parts["loss"] = 3 * 4 * batch_size * config.embed_dim
    return parts


# Of a layer, by its attention: products of width × width beside the four of q, k, v and the output; and maps and values
# beside those of standard attention, as a share. "dint" and "mdgsa" multiply both maps with values of 2D.
ADDED = {
    "differential_v2": (1.0, 1.0),
    "differential_gated": (1.0, 1.0),
    "no_second_map": (1.0, 0.0),
    "dint": (0.0, 0.5),
    "mdgsa": (0.0, 0.5),
    "standard_wide": (1.0, 0.25),
}


def _added(config: ModelConfig, tower: str) -> tuple[float, float]:
    """What the layers of a tower have beside standard attention, in layers of it: (products, maps and values)."""
    layers = getattr(config, f"{tower}_attention_layers")
    count = getattr(config, f"{tower}_depth") if layers is None else len(layers)
    products, maps = ADDED.get(getattr(config, f"{tower}_attention"), (0.0, 0.0))
    return count * products, count * maps


def _blocks(
    tower: str, tokens: int, width: int, depth: int, mlp_ratio: float, added: tuple[float, float]
) -> dict[str, float]:
    """(A1 − λA2)V has the products of standard attention: H maps of N² from heads of D, then H/2 times values of 2D.

    added: what `_added` gives. λ's and gates' own products, to H channels, are left out.
    """
    return {
        f"{tower}: attention, q k v and output": (4 * depth + added[0]) * tokens * 2 * width**2,
        f"{tower}: attention, maps and values": (depth + added[1]) * 2 * 2 * tokens**2 * width,
        f"{tower}: MLP": depth * tokens * 2 * 2 * width * int(width * mlp_ratio),
    }


def _stem(config: ModelConfig) -> list[float]:
    """Operations of the layers that make tokens of pixels, the first one first."""
    size, patch, width = config.image_size, config.patch_size, config.vision_width
    if config.vision_stem == "patches":
        return [2 * (size // patch) ** 2 * 3 * patch**2 * width]
    stages = patch.bit_length() - 1
    widths = [3, *(max(8, width >> (stages - 1 - i)) for i in range(stages))]
    sides = [size >> (i + 1) for i in range(stages)]
    layers = [2 * 9 * a * b * side**2 for (a, b), side in zip(pairwise(widths), sides, strict=True)]
    return [*layers, 2 * widths[-1] * width * (size // patch) ** 2]
