"""A second query in attention layers of other libraries, whose code stays as it is: their four matrices are wrapped.

The layer sees twice as many heads: of each head the first and the second query, with keys and values repeated. What it
gives is subtracted before the output matrix: O1 − λ(x)·O2, as in version2.py.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffclip.models.attention.version2 import token_lambdas

# Class of transformers' → where its matrices for q, k, v and the output are, and its head width.
_CLIP = ("q_proj", "k_proj", "v_proj", "out_proj", "head_dim")
_BERT = ("self.query", "self.key", "self.value", "output.dense", "self.attention_head_size")
FAMILIES = {
    "CLIPAttention": _CLIP,
    "SiglipAttention": _CLIP,
    "Dinov2Attention": ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim"),
    "BertAttention": _BERT,
    "AlignTextAttention": _BERT,
}


class TwoQueries(nn.Module):
    """(B, N, C) → the queries (B, N, 2C) of 2H heads; what λ is there, (B, N, H, 1), is left in `lambdas`."""

    def __init__(self, first: nn.Linear, width: int, to_lambda: Callable[[Tensor], Tensor], lambdas: list[Tensor]):
        super().__init__()
        self.first, self.second = first, copy.deepcopy(first)
        weight = first.weight
        self.lambda_proj = nn.Linear(
            first.in_features, first.out_features // width, device=weight.device, dtype=weight.dtype
        )
        self.width, self.to_lambda, self.lambdas = width, to_lambda, lambdas

    def forward(self, x: Tensor) -> Tensor:
        self.lambdas[:] = [token_lambdas(self.lambda_proj, self.to_lambda, x).unsqueeze(-1)]
        queries = [one(x).view(*x.shape[:-1], -1, self.width) for one in (self.first, self.second)]  # (B, N, H, D)
        return torch.stack(queries, dim=-2).flatten(-3)


class Repeated(nn.Module):
    """Keys or values (B, N, C) → (B, N, 2C): each head twice."""

    def __init__(self, once: nn.Linear, width: int) -> None:
        super().__init__()
        self.once, self.width = once, width

    def forward(self, x: Tensor) -> Tensor:
        heads: Tensor = self.once(x).view(*x.shape[:-1], -1, self.width)  # (B, N, H, D)
        return heads.repeat_interleave(2, dim=-2).flatten(-2)


class Subtracted(nn.Module):
    """What 2H heads give, (B, N, 2C) → the output matrix of O1 − λ O2, (B, N, C)."""

    def __init__(self, out: nn.Linear, width: int, lambdas: list[Tensor]) -> None:
        super().__init__()
        self.out, self.width, self.lambdas = out, width, lambdas

    def forward(self, heads: Tensor) -> Tensor:
        first, second = heads.view(*heads.shape[:-1], -1, 2, self.width).unbind(-2)  # (B, N, H, D) each
        result: Tensor = self.out((first - self.lambdas.pop() * second).to(heads.dtype).flatten(-2))
        return result


def is_known(module: nn.Module) -> bool:
    """Whether a layer is of a class in FAMILIES that attends to itself and was not wrapped before."""
    kind = type(module)
    if not (kind.__module__.startswith("transformers.") and kind.__name__ in FAMILIES):
        return False
    crossed = bool(getattr(module, "is_cross_attention", False))
    return not crossed and type(module.get_submodule(FAMILIES[kind.__name__][0])) is nn.Linear


def wrap(module: nn.Module, to_lambda: Callable[[Tensor], Tensor]) -> tuple[TwoQueries, nn.Linear]:
    """Wrap the matrices of a layer in place; returns the queries, of which the second is like the first, and the output
    matrix."""
    *names, width_name = FAMILIES[type(module).__name__]
    q, k, v, out = (module.get_submodule(name) for name in names)
    owner, _, attribute = width_name.rpartition(".")
    width: int = getattr(module.get_submodule(owner), attribute)
    lambdas: list[Tensor] = []
    queries = TwoQueries(_linear(q), width, to_lambda, lambdas)
    wrapped = (
        queries,
        Repeated(_linear(k), width),
        Repeated(_linear(v), width),
        Subtracted(_linear(out), width, lambdas),
    )
    for name, new in zip(names, wrapped, strict=True):
        module.set_submodule(name, new)
    return queries, _linear(out)


def _linear(module: Any) -> nn.Linear:
    assert isinstance(module, nn.Linear)
    return module
