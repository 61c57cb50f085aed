"""Other attention in layers of other libraries, whose code stays as it is: their four matrices are wrapped.

The layer sees twice as many heads, of which the output matrix gets the difference: O1 − λ(x)·O2 as in version2.py, with
a second query a head; or (1 − λ_init)·RMSNorm(O1 − λ·O2) as in layer.py, where two heads share their values. Keys,
values and, of the paper's form, queries are repeated to that end, so that this form costs twice the maps here.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffclip.models.attention.layer import HEAD_NORM_EPS, DifferentialAttention
from diffclip.models.attention.version2 import token_lambdas
from diffclip.models.precision import full_precision
from diffclip.models.presets import check_heads

# Class of transformers' → where its matrices for q, k, v and the output are, and its head width.
_CLIP = ("q_proj", "k_proj", "v_proj", "out_proj", "head_dim")
_BERT = ("self.query", "self.key", "self.value", "output.dense", "self.attention_head_size")
FAMILIES = {
    "CLIPAttention": _CLIP,
    "SiglipAttention": _CLIP,
    "Dinov2Attention": ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim"),
    "BertAttention": _BERT,
    "AlignTextAttention": _BERT,
    "BlipTextAttention": _BERT,
}
_VECTORS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
FUSED = "BlipAttention"
"""Of transformers too: `qkv` and `projection`, laid out as timm's."""


class Second(nn.Module):
    """What a second map of each head needs: a second matrix, and λ of each token and head, left in `lambdas`."""

    lambda_scale: float = 1.0  # below it while λ is warmed up

    def __init__(self, first: nn.Linear, width: int, to_lambda: Callable[[Tensor], Tensor], lambdas: list[Tensor]):
        super().__init__()
        self.first, self.second = first, copy.deepcopy(first)
        weight = first.weight
        self.lambda_proj = nn.Linear(
            first.in_features, first.out_features // width, device=weight.device, dtype=weight.dtype
        )
        self.width, self.to_lambda, self.lambdas = width, to_lambda, lambdas

    def lam(self) -> Tensor:
        """λ of a token whose input is zero, its mean over heads: a scalar, float32 at least."""
        bias = self.lambda_proj.bias
        return self.lambda_scale * self.to_lambda(bias.to(torch.promote_types(bias.dtype, torch.float32))).mean()

    def token_lambdas(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, N, H, 1)."""
        return self.lambda_scale * token_lambdas(self.lambda_proj, self.to_lambda, x).unsqueeze(-1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Second":
        """`.half()`, `.to(torch.bfloat16)` and the like, which leave what makes λ as exact as it is."""
        with full_precision(self.lambda_proj.weight, self.lambda_proj.bias):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class TwoQueries(Second):
    """(B, N, C) → the queries (B, N, 2C) of 2H heads: of each head the first and the second."""

    def forward(self, x: Tensor) -> Tensor:
        self.lambdas[:] = [self.token_lambdas(x)]
        queries = [one(x).view(*x.shape[:-1], -1, self.width) for one in (self.first, self.second)]  # (B, N, H, D)
        return torch.stack(queries, dim=-2).flatten(-3)


class WithoutMap(Second):
    """(B, N, C) → the queries (B, N, C), as they were; λ(x) times the second matrix is kept for `Without`."""

    def forward(self, x: Tensor) -> Tensor:
        second = self.second(x).view(*x.shape[:-1], -1, self.width)  # (B, N, H, D)
        self.lambdas[:] = [(self.token_lambdas(x) * second).flatten(-2)]
        first: Tensor = self.first(x)
        return first


class Repeated(nn.Module):
    """(B, N, C) → (B, N, 2C): each head, `width` wide, twice."""

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


class Without(nn.Module):
    """What H heads give, (B, N, C) → the output matrix of that less what `WithoutMap` kept, (B, N, C)."""

    def __init__(self, out: nn.Linear, kept: list[Tensor]) -> None:
        super().__init__()
        self.out, self.kept = out, kept

    def forward(self, heads: Tensor) -> Tensor:
        result: Tensor = self.out((heads - self.kept.pop()).to(heads.dtype))
        return result


class PaperSubtracted(nn.Module):
    """What 2H heads of D give, (B, N, 2C), of each pair A1 V, then A2 V, both 2D wide → the output matrix of
    (1 − λ_init)·RMSNorm(A1 V − λ A2 V), (B, N, C). λ and the norm are those of DifferentialAttention."""

    lambda_scale: float = 1.0

    def __init__(self, out: nn.Linear, width: int, lambda_init: float) -> None:
        super().__init__()
        self.out, self.width, self.lambda_init = out, width, lambda_init
        weight = out.weight
        like = DifferentialAttention(2 * width, 2, lambda_init=lambda_init, device=weight.device, dtype=weight.dtype)
        assert isinstance(like.norm, nn.RMSNorm)
        self.norm: nn.RMSNorm = like.norm
        for name in _VECTORS:
            self.register_parameter(name, getattr(like, name))

    lam = DifferentialAttention.lam

    def forward(self, heads: Tensor) -> Tensor:
        first, second = heads.view(*heads.shape[:-1], -1, 2, 2 * self.width).unbind(-2)  # (B, N, H/2, 2D) each
        wide = torch.promote_types(heads.dtype, torch.float32)
        left = first.to(wide) - self.lam() * second.to(wide)  # type: ignore[misc]  # it has the same four vectors
        weight = (1 - self.lambda_init) * self.norm.weight.to(wide)
        normed = F.rms_norm(left, weight.shape, weight, HEAD_NORM_EPS)
        result: Tensor = self.out(normed.to(heads.dtype).flatten(-2))
        return result

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PaperSubtracted":
        """As DifferentialAttention's: the vectors of λ stay as exact as they are."""
        with full_precision(*(getattr(self, name) for name in _VECTORS)):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class InBlip(nn.Module):
    """A layer of ours or timm's, called as BLIP's vision tower calls its own, which gives no map."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return self.attn(hidden_states), None


def is_known(module: nn.Module, name: str) -> bool:
    """Whether a layer, called `name` where it is, is of a class in FAMILIES, attends to itself and was not wrapped."""
    kind = type(module)
    if not (kind.__module__.startswith("transformers.") and kind.__name__ in FAMILIES):
        return False
    crossed = name == "crossattention" or bool(getattr(module, "is_cross_attention", False))
    return not crossed and type(module.get_submodule(FAMILIES[kind.__name__][0])) is nn.Linear


def is_fused(module: nn.Module) -> bool:
    """Whether it is the fused layer of BLIP's vision tower."""
    return type(module).__name__ == FUSED and type(module).__module__.startswith("transformers.")


def wrap(module: nn.Module, to_lambda: Callable[[Tensor], Tensor]) -> tuple[TwoQueries, nn.Linear]:
    """A second query in a layer, in place. Returns the queries, of which the second is like the first, and the output
    matrix."""
    q, k, v, out, width = _parts(module)
    lambdas: list[Tensor] = []
    queries = TwoQueries(q, width, to_lambda, lambdas)
    _put(module, queries, Repeated(k, width), Repeated(v, width), Subtracted(out, width, lambdas))
    _double_width(module)
    return queries, out


def wrap_without_map(module: nn.Module) -> WithoutMap:
    """The parameters of `wrap` with σ, without the second map, in place. Returns what holds them."""
    q, k, v, out, width = _parts(module)
    kept: list[Tensor] = []
    queries = WithoutMap(q, width, torch.sigmoid, kept)
    _put(module, queries, k, v, Without(out, kept))
    return queries


def wrap_by_paper(module: nn.Module, lambda_init: float) -> None:
    """The paper's form in a layer, in place. Raises UserError where its heads make no pairs."""
    q, k, v, out, width = _parts(module)
    check_heads(out.in_features, out.in_features // width, differential=True, where=type(module).__name__)
    new = PaperSubtracted(out, width, lambda_init)
    _put(module, Repeated(q, width), Repeated(k, width), Repeated(v, 2 * width), new)
    _double_width(module)


def _parts(module: nn.Module) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear, int]:
    """The matrices of q, k, v and the output, and the head width."""
    *names, width_name = FAMILIES[type(module).__name__]
    q, k, v, out = (_linear(module.get_submodule(name)) for name in names)
    owner, _, attribute = width_name.rpartition(".")
    return q, k, v, out, int(getattr(module.get_submodule(owner), attribute))


def _double_width(module: nn.Module) -> None:
    """BERT's layers in BLIP state how wide all heads together are."""
    inner = getattr(module, "self", None)
    if type(module).__name__ == "BlipTextAttention" and inner is not None:
        inner.all_head_size *= 2


def _put(module: nn.Module, *wrapped: nn.Module) -> None:
    for name, new in zip(FAMILIES[type(module).__name__][:-1], wrapped, strict=True):
        module.set_submodule(name, new)


def _linear(module: Any) -> nn.Linear:
    assert isinstance(module, nn.Linear)
    return module
