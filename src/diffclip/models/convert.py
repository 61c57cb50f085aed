"""Put differential attention into a model that exists, which then gives what it gave, and learns from there."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar, get_args

from torch import nn

from diffclip.errors import UserError
from diffclip.models.attention.replace import Form, chosen, replace_attention, start
from diffclip.models.clip import CLIP
from diffclip.models.library import LibraryModel, put_attention
from diffclip.models.parity import compare

Towers = Literal["both", "vision", "text"]
Model = TypeVar("Model", bound=nn.Module)


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
        model: a CLIP of this library, or a model of transformers' classes that a recipe of this library has trained; a
            timm model whose attention is timm's `Attention`, as its vision transformers' is; or one of transformers':
            CLIP, SigLIP, BLIP, DINOv2, BERT, ALIGN's text tower. Of these last two kinds the copy is in memory only: to
            reload, convert the same architecture in the same way, then `load_state_dict`.
        attention: "differential_v2" starts as a mirror: the second query is the first, λ is `lambda_init` for every
            token, and the output matrix is divided by 1 − λ. "differential_gated" starts with λ = 0, the second query
            like the first. "no_second_map" adds the same parameters and no map: what they subtract starts at 0. These
            give the model's output up to rounding. "differential" is the paper's: no setting of its weights gives the
            output of standard attention, so it asks for `inexact`.
        towers: which of a model with two.
        layers: which layers of each tower, counted from 0; None: all. Of other models, in the order of `modules()`.
        lambda_init: of "differential_v2" and "no_second_map", 0.5 by default; of "differential", by default the
            configuration's, 0.8 where there is none.
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
    moved = "how far its output moves is measured of a model with two towers only"
    if isinstance(converted, CLIP | LibraryModel):
        assert isinstance(model, CLIP | LibraryModel)
        if isinstance(converted, CLIP):
            _convert_clip(converted, attention, towers, layers, lambda_init)
        else:
            _convert_library(converted, attention, towers, layers, lambda_init)
        if attention == "differential" and not inexact:
            moved = str(compare(model, converted.eval().encode_image, converted.encode_text))
    elif towers != "both":
        raise UserError(f"towers = {towers!r}: only a CLIP has two; leave it out")
    else:
        replace_attention(converted, attention, layers, lambda_init)
    if attention == "differential" and not inexact:
        raise UserError(
            f'attention = "differential" cannot start where this model is: {moved}. Give inexact (--inexact) to '
            "start there all the same, or take differential_v2 or differential_gated, which start exactly"
        )
    return converted


def _convert_library(
    model: LibraryModel, attention: Form, towers: Towers, layers: Sequence[int] | None, lambda_init: float | None
) -> None:
    config = model.config
    if config.attention != "standard":
        raise UserError(f"the model has {config.attention} attention already: convert replaces standard attention")
    model.config = replace(
        config,
        attention=attention,
        attention_towers=towers,
        attention_layers=None if layers is None else tuple(layers),
        lambda_init=lambda_init,
    )
    put_attention(model.inner, model.config)


def _convert_clip(
    model: CLIP, attention: Form, towers: Towers, layers: Sequence[int] | None, lambda_init: float | None
) -> None:
    config, wanted = model.config, ("vision", "text") if towers == "both" else (towers,)
    # eps of a tower of released weights depends on its attention, unless it is stated
    changes: dict[str, Any] = {"vision_norm_eps": config.resolved_vision_norm_eps}
    found: dict[str, list[int]] = {}
    for tower in wanted:
        present = getattr(config, f"{tower}_attention")
        if present != "standard":
            raise UserError(f"the {tower} tower has {present} attention already: convert replaces standard attention")
        depth = getattr(config, f"{tower}_depth")
        found[tower] = list(chosen(layers, depth, f"the {tower} tower"))
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
            first = model.config.lambda_init_at(layer) if attention == "differential" else lambda_init
            blocks[layer].attn = start(blocks[layer].attn, attention, first)
