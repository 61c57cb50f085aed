"""Put differential attention into a model that exists, which then gives what it gave, and learns from there."""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar, get_args

import timm.layers
import torch
from torch import nn

from diffclip.errors import UserError
from diffclip.models.attention import wrapped
from diffclip.models.attention.kinds import ATTENTION
from diffclip.models.attention.layer import DifferentialAttention, StandardAttention
from diffclip.models.attention.version2 import DifferentialAttentionV2, GatedDifferentialAttention
from diffclip.models.clip import CLIP
from diffclip.models.parity import compare
from diffclip.text import listed

Form = Literal["differential_v2", "differential_gated", "differential"]
Towers = Literal["both", "vision", "text"]
Model = TypeVar("Model", bound=nn.Module)

MIRROR_LAMBDA = 0.5
EXACT = {"differential_v2": DifferentialAttentionV2, "differential_gated": GatedDifferentialAttention}


def convert(
    model: Model,
    attention: Form = "differential_v2",
    *,
    towers: Towers = "both",
    layers: Sequence[int] | None = None,
    lambda_init: float | None = None,
    inexact: bool = False,
) -> Model:
    """A copy of a model whose standard attention is replaced; the model itself stays as it is.

    Args:
        model: a CLIP of this library; a timm model whose attention is timm's `Attention`, as its vision transformers'
            is; or one of transformers': CLIP, SigLIP, DINOv2, BERT, ALIGN's text tower. Of these two kinds the copy is
            in memory only: to reload, convert the same architecture in the same way, then `load_state_dict`.
        attention: "differential_v2" starts as a mirror: the second query is the first, λ is `lambda_init` for every
            token, and the output matrix is divided by 1 − λ. "differential_gated" starts with λ = 0, the second query
            like the first. Both give the model's output up to rounding. "differential" is the paper's, for a CLIP: no
            setting of its weights gives the output of standard attention, so it asks for `inexact`.
        towers: which of a CLIP's.
        layers: which layers of each tower, counted from 0; None: all. Of other models, in the order of `modules()`.
        lambda_init: of "differential_v2", 0.5 by default; of "differential", by default the configuration's.
        inexact: convert though the output moves.

    Raises: UserError where there is no standard attention to replace, with what was found; for layers that are not
        there; without `inexact`, by how much the output would move.
    """
    if attention not in get_args(Form):
        raise UserError(f"attention = {attention!r}: choose one of {', '.join(get_args(Form))}")
    if lambda_init is not None and (attention == "differential_gated" or not 0 < lambda_init < 1):
        raise UserError(
            f"lambda_init = {lambda_init}: "
            + ("λ of differential_gated starts at 0" if attention == "differential_gated" else "give one in (0, 1)")
        )
    converted = copy.deepcopy(model)
    if isinstance(converted, CLIP):
        assert isinstance(model, CLIP)
        _convert_clip(converted, attention, towers, layers, lambda_init)
        if attention == "differential" and not inexact:
            moved = compare(model, converted.eval().encode_image, converted.encode_text)
            raise UserError(
                f'attention = "differential" cannot start where this model is: {moved}. Give inexact (--inexact) to '
                "start there all the same, or take differential_v2 or differential_gated, which start exactly"
            )
        return converted
    if attention == "differential":
        raise UserError('attention = "differential" is for a CLIP: its start is not exact, and only there measured')
    if towers != "both":
        raise UserError(f"towers = {towers!r}: only a CLIP has two; leave it out")
    places = [
        (owner, name)
        for owner in converted.modules()
        for name, child in owner.named_children()
        if _fits(child) or wrapped.is_known(child)
    ]
    if not places:
        kinds = sorted({type(m).__name__ for m in converted.modules() if "attention" in type(m).__name__.lower()})
        found = f"its attention is {listed(kinds)}" if kinds else "it has no attention layers"
        known = f"what is replaced is timm's Attention and {listed(wrapped.FAMILIES)} of transformers"
        raise UserError(f"{type(model).__name__} cannot be converted: {known}, and {found}")
    for layer in _chosen(layers, len(places), "the model"):
        owner, name = places[layer]
        child = getattr(owner, name)
        if _fits(child):
            setattr(owner, name, _start(child, attention, lambda_init))
        else:
            queries, out = wrapped.wrap(child, EXACT[attention].to_lambda)
            _start_lambda(queries.lambda_proj, out, attention, lambda_init)
    return converted


def _fits(module: Any) -> bool:
    """Whether it is standard attention, without what timm's may have besides."""
    if type(module) not in (timm.layers.Attention, StandardAttention):
        return False
    plain = all(
        type(getattr(module, name, None)) in (nn.Identity, type(None)) for name in ("q_norm", "k_norm", "norm", "gate")
    )
    return bool(plain and module.num_heads * module.head_dim == module.qkv.in_features == module.proj.out_features)


def _chosen(layers: Sequence[int] | None, depth: int, where: str) -> Iterable[int]:
    if layers is None:
        return range(depth)
    wrong = [layer for layer in layers if not 0 <= layer < depth]
    if wrong or not layers:
        raise UserError(f"layers = {list(layers)}: {where} has layers 0 to {depth - 1}")
    return sorted({*layers})


def _convert_clip(
    model: CLIP, attention: Form, towers: Towers, layers: Sequence[int] | None, lambda_init: float | None
) -> None:
    config, chosen = model.config, ("vision", "text") if towers == "both" else (towers,)
    # eps of a tower of released weights depends on its attention, unless it is stated
    changes: dict[str, Any] = {"vision_norm_eps": config.resolved_vision_norm_eps}
    found: dict[str, list[int]] = {}
    for tower in chosen:
        present = getattr(config, f"{tower}_attention")
        if present != "standard":
            raise UserError(f"the {tower} tower has {present} attention already: convert replaces standard attention")
        depth = getattr(config, f"{tower}_depth")
        found[tower] = list(_chosen(layers, depth, f"the {tower} tower"))
        changes[f"{tower}_attention"] = attention
        changes[f"{tower}_attention_layers"] = None if len(found[tower]) == depth else tuple(found[tower])
    if attention == "differential" and lambda_init is not None:
        if "differential" in (config.vision_attention, config.text_attention):
            raise UserError(f"lambda_init = {lambda_init}: the other tower's is the model's; leave it out")
        changes |= {"lambda_init": lambda_init, "lambda_schedule": "constant"}
    model.config = replace(config, **changes)
    for tower, numbers in found.items():
        blocks = (model.visual if tower == "vision" else model.text).blocks
        for layer in numbers:
            start = model.config.lambda_init_at(layer) if attention == "differential" else lambda_init
            blocks[layer].attn = _start(blocks[layer].attn, attention, start)


@torch.no_grad()
def _start(old: Any, attention: Form, lambda_init: float | None) -> nn.Module:
    """A layer of another kind with the matrices of a standard one, whose modules it takes over."""
    options: dict[str, Any] = {} if attention != "differential" else {"lambda_init": lambda_init}
    weight = old.qkv.weight
    new: Any = ATTENTION[attention](
        old.qkv.in_features,
        old.num_heads,
        qkv_bias=old.qkv.bias is not None,
        device=weight.device,
        dtype=weight.dtype,
        **options,
    )
    new.qkv, new.proj, new.proj_drop = old.qkv, old.proj, old.proj_drop
    if isinstance(new, DifferentialAttention):
        new.attn_drop = old.attn_drop.p
    else:
        new.attn_drop = old.attn_drop
        width = old.qkv.in_features
        new.q2.weight.copy_(weight[:width])
        if old.qkv.bias is not None:
            new.q2.bias.copy_(old.qkv.bias[:width])
        _start_lambda(new.lambda_proj, new.proj, attention, lambda_init)
    out: nn.Module = new.train(old.training)
    return out


@torch.no_grad()
def _start_lambda(lambda_proj: nn.Linear, out: nn.Linear, attention: Form, lambda_init: float | None) -> None:
    """λ for every token, and the output matrix that makes up for it, where the second query is like the first."""
    lambda_proj.weight.zero_()
    lambda_proj.bias.zero_()
    if attention == "differential_v2":
        lam = lambda_init or MIRROR_LAMBDA
        lambda_proj.bias.fill_(math.log(lam / (1 - lam)))
        out.weight.copy_(out.weight.double() / (1 - lam))  # rounded once
