"""What is measured by layer while a model trains: attention, residual stream, gradients.

Every list has one number a layer, from the input on; names end in the tower, `visual` or `text`.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffclip.distributed import get_world
from diffclip.models.attention.forms import AttentionMaps
from diffclip.models.clip import CLIP
from diffclip.models.maps import forward_with_maps
from diffclip.training.parallel import full_tensor, local_tensor

LAYER = re.compile(r"(?:^|\.)(visual|text)\.blocks\.(\d+)\.")


@torch.no_grad()
def layer_statistics(model: CLIP, pixels: Tensor, tokens: Tensor) -> dict[str, list[float]]:
    """One forward pass of both towers. pixels: (B, 3, S, S), normalised; tokens: (T, L) int64.

    entropy_*: attention_entropy of A1 (of A for standard attention).
    left_*: ‖A1 − λA2‖ / ‖A1‖ (Frobenius, over examples, heads and queries), what the subtraction leaves: 1 − λ where
        A1 = A2, 1 in a standard layer. Differential towers only.
    negative_*: share of A1 − λA2 below zero, among the keys that a query sees. Differential towers only.
    rms_*: root mean square of the residual stream after the block, over examples, tokens and channels.
    cosine_*: mean_cosine after the block of the token that becomes the feature: class token, end of text.
    """
    found: dict[str, list[float]] = {}
    ends = model.text.find_ends(tokens)
    read = {"visual": torch.zeros(len(pixels), dtype=torch.long, device=pixels.device), "text": ends}
    for name, inputs in (("visual", pixels), ("text", tokens)):
        tower = getattr(model, name)
        with _outputs(tower.blocks) as streams:
            _, maps = forward_with_maps(tower, inputs)
        causal = name == "text"
        found[f"entropy_{name}"] = [attention_entropy(one.a1, causal=causal) for one in maps]
        if any(one.a2 is not None for one in maps):
            found[f"left_{name}"] = [float(one.combined.norm() / one.a1.norm()) for one in maps]
            found[f"negative_{name}"] = [_negative_share(one, causal) for one in maps]
        rows = torch.arange(len(inputs), device=inputs.device)
        found[f"rms_{name}"] = [float(stream.float().square().mean().sqrt()) for stream in streams]
        found[f"cosine_{name}"] = [mean_cosine(stream[rows, read[name]]) for stream in streams]
    return found


@contextmanager
def _outputs(blocks: nn.Module) -> Iterator[list[Tensor]]:
    """Inside the `with`, what each block gives, (B, N, C), is appended to the list."""
    outputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for block in blocks.children()
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def attention_entropy(attention: Tensor, *, causal: bool) -> float:
    """Entropy of softmax maps as a share of the largest possible one, log of the number of visible keys: in [0, 1].

    attention: (..., N, N), rows summing to 1. With `causal` query i sees keys 0 to i; the first, which has no choice,
    adds nothing to either sum. A single token has entropy 1 by definition.
    """
    queries, keys = attention.shape[-2:]
    visible = torch.arange(1, queries + 1) if causal else torch.full((queries,), keys)
    largest = visible.double().log().sum() * attention[..., 0, 0].numel()
    if largest == 0:
        return 1.0
    return float(torch.special.entr(attention.double()).sum().cpu() / largest)


def _negative_share(maps: AttentionMaps, causal: bool) -> float:
    """Above the diagonal a causal map is zero, so what is negative is visible."""
    queries, keys = maps.combined.shape[-2:]
    visible = queries * (queries + 1) / 2 if causal else queries * keys
    return float((maps.combined < 0).sum() / (visible * maps.combined[..., 0, 0].numel()))


def mean_cosine(features: Tensor) -> float:
    """Mean cosine between two different rows of (B, C), in [−1/(B − 1), 1]; 1 for a single row.

    Of unit vectors u the sum over pairs i ≠ j of uᵢ·uⱼ is ‖Σu‖² − B.
    """
    count = len(features)
    if count < 2:
        return 1.0
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    return float((unit.sum(0).square().sum() - count) / (count * (count - 1)))


@dataclass(frozen=True)
class GradientNorms:
    """Euclidean norms of gradients: of all, and of each tower's blocks."""

    total: float
    layers: dict[str, list[float]]

    @property
    def finite(self) -> bool:
        return math.isfinite(self.total)

    def record(self) -> dict[str, list[float]]:
        """As metrics.jsonl has them by layer."""
        return {f"grad_norm_{tower}": values for tower, values in self.layers.items()}


@torch.no_grad()
def gradient_norms(model: nn.Module) -> GradientNorms:
    """Of the gradients that the parameters hold; one that holds none counts as zero.

    Where gradients are in shards, all processes call this together, and each has the norms of the whole.
    """
    named = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    if not named:
        return GradientNorms(0.0, {})
    # One pass over the memory and one answer from the device.
    own = [local_tensor(gradient) for _, gradient in named]
    squares_of_own = torch.stack(torch._foreach_norm(own)).double().square()
    in_shards = torch.tensor([part is not gradient for part, (_, gradient) in zip(own, named, strict=True)])
    norms = get_world().sum_where(in_shards, squares_of_own).sqrt().tolist()
    squares: dict[str, dict[int, float]] = {}
    for (name, _), norm in zip(named, norms, strict=True):
        if place := LAYER.search(name):
            layers = squares.setdefault(place[1], {})
            layers[int(place[2])] = layers.get(int(place[2]), 0.0) + norm**2
    by_layer = {tower: [math.sqrt(layers[i]) for i in sorted(layers)] for tower, layers in squares.items()}
    return GradientNorms(math.sqrt(math.fsum(norm**2 for norm in norms)), by_layer)


def not_finite(model: nn.Module, *, gradients: bool = False) -> list[str]:
    """The parameters that hold a number that is not finite, or whose gradient does."""
    return [
        name
        for name, parameter in model.named_parameters()
        if (held := parameter.grad if gradients else parameter.detach()) is not None
        and not bool(torch.isfinite(full_tensor(held)).all())
    ]
