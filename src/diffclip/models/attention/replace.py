"""Replace the standard attention of a model in place, whoever wrote it: timm's layers, and those of wrapped.py."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import timm.layers
import torch
from torch import nn

from diffclip.errors import UserError
from diffclip.models.attention import wrapped
from diffclip.models.attention.kinds import ATTENTION
from diffclip.models.attention.layer import DifferentialAttention, StandardAttention
from diffclip.models.attention.version2 import DifferentialAttentionV2, GatedDifferentialAttention
from diffclip.text import listed

Form = Literal["differential_v2", "differential_gated", "differential", "no_second_map"]

MIRROR_LAMBDA = 0.5
PAPER_LAMBDA_INIT = 0.8
QUERIES = {"differential_v2": DifferentialAttentionV2, "differential_gated": GatedDifferentialAttention}


def replace_attention(model: nn.Module, form: Form, layers: Sequence[int] | None, lambda_init: float | None) -> int:
    """Replace the standard attention of any model's layers, in the order of `modules()`; returns how many.

    Raises UserError where it has none, with what was found; for layers that are not there.
    """
    places = [
        (owner, name)
        for owner in model.modules()
        for name, child in owner.named_children()
        if fits(child) or wrapped.is_known(child, name) or wrapped.is_fused(child)
    ]
    if not places:
        kinds = sorted({type(m).__name__ for m in model.modules() if "attention" in type(m).__name__.lower()})
        found = f"its attention is {listed(kinds)}" if kinds else "it has no attention layers"
        known = f"what is replaced is timm's Attention and {listed([*wrapped.FAMILIES, wrapped.FUSED])} of transformers"
        raise UserError(f"{type(model).__name__} cannot be converted: {known}, and {found}")
    numbers = list(chosen(layers, len(places), "the model"))
    for owner, name in (places[layer] for layer in numbers):
        child = getattr(owner, name)
        if wrapped.is_fused(child):
            setattr(owner, name, wrapped.InBlip(start(_as_timm(child), form, lambda_init)))
        elif fits(child):
            setattr(owner, name, start(child, form, lambda_init))
        elif form == "differential":
            wrapped.wrap_by_paper(child, PAPER_LAMBDA_INIT if lambda_init is None else lambda_init)
        elif form == "no_second_map":
            queries = wrapped.wrap_without_map(child)
            _start_second(queries.second, queries.first.weight, queries.first.bias, form)
            _start_lambda(queries.lambda_proj, form, lambda_init)
        else:
            two, out = wrapped.wrap(child, QUERIES[form].to_lambda)
            _start_lambda(two.lambda_proj, form, lambda_init, out)
    return len(numbers)


def fits(module: Any) -> bool:
    """Whether it is standard attention, without what timm's may have besides."""
    if type(module) not in (timm.layers.Attention, StandardAttention):
        return False
    plain = all(
        type(getattr(module, name, None)) in (nn.Identity, type(None)) for name in ("q_norm", "k_norm", "norm", "gate")
    )
    return bool(plain and module.num_heads * module.head_dim == module.qkv.in_features == module.proj.out_features)


def chosen(layers: Sequence[int] | None, depth: int, where: str) -> Iterable[int]:
    """Ascending numbers of layers, all of them for None. Raises UserError for those that are not there."""
    if layers is None:
        return range(depth)
    wrong = [layer for layer in layers if not 0 <= layer < depth]
    if wrong or not layers:
        raise UserError(f"layers = {list(layers)}: {where} has layers 0 to {depth - 1}")
    return sorted({*layers})


@torch.no_grad()
def start(old: Any, form: Form, lambda_init: float | None) -> nn.Module:
    """A layer of another kind with the matrices of a standard one, whose modules it takes over."""
    options: dict[str, Any] = {}
    if form == "differential":
        options["lambda_init"] = PAPER_LAMBDA_INIT if lambda_init is None else lambda_init
    weight, bias = old.qkv.weight, old.qkv.bias
    new: Any = ATTENTION[form](
        old.qkv.in_features,
        old.num_heads,
        qkv_bias=bias is not None,
        device=weight.device,
        dtype=weight.dtype,
        **options,
    )
    new.qkv, new.proj, new.proj_drop = old.qkv, old.proj, old.proj_drop
    if isinstance(new, DifferentialAttention):
        new.attn_drop = old.attn_drop.p
    else:
        new.attn_drop = old.attn_drop
        _start_second(new.q2, weight, bias, form)
        _start_lambda(new.lambda_proj, form, lambda_init, new.proj)
    out: nn.Module = new.train(old.training)
    return out


def _as_timm(blip: Any) -> timm.layers.Attention:
    """timm's layer with the modules of BLIP's fused one."""
    weight = blip.qkv.weight
    layer = timm.layers.Attention(
        blip.embed_dim, blip.num_heads, qkv_bias=True, device=weight.device, dtype=weight.dtype
    )
    layer.qkv, layer.proj, layer.attn_drop = blip.qkv, blip.projection, blip.dropout
    return layer.train(blip.training)


@torch.no_grad()
def _start_second(second: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None, form: Form) -> None:
    """Like the first query; nothing where no second map makes up for it."""
    width = second.out_features
    second.weight.copy_(weight[:width])
    if bias is not None:
        second.bias.copy_(bias[:width])
    if form == "no_second_map":
        second.weight.zero_()
        if bias is not None:
            second.bias.zero_()


@torch.no_grad()
def _start_lambda(lambda_proj: nn.Linear, form: Form, lambda_init: float | None, out: nn.Linear | None = None) -> None:
    """λ for every token, and the output matrix that makes up for it, where the second query is like the first."""
    lambda_proj.weight.zero_()
    lambda_proj.bias.zero_()
    if form != "differential_gated":
        lam = lambda_init or MIRROR_LAMBDA
        lambda_proj.bias.fill_(math.log(lam / (1 - lam)))
        if form == "differential_v2":
            assert out is not None
            out.weight.copy_(out.weight.double() / (1 - lam))  # rounded once
