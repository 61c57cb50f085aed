"""Differential attention with a second query: against its equation, in both towers, and what is said of it."""

import math

import pytest
import torch

from diffclip import UserError
from diffclip.config import Optimizer
from diffclip.models.attention.version2 import DifferentialAttentionV2, GatedDifferentialAttention
from diffclip.models.maps import forward_with_maps
from diffclip.training.optimizer import make_optimizer
from small_models import EQUATIONS, TOWERS, small_model

DIM, HEADS, N = 24, 3, 6
D = DIM // HEADS
FORMS = {"differential_v2": DifferentialAttentionV2, "differential_gated": GatedDifferentialAttention}


def double_layer(kind, seed=0):
    torch.manual_seed(seed)
    return FORMS[kind](DIM, HEADS, qkv_bias=True).double().eval()


def by_the_equation(kind, layer, x, is_causal):
    """O1 − λ(x)·O2 head by head, in loops over heads and tokens."""
    w = dict(layer.named_parameters())
    qkv, q2 = x @ w["qkv.weight"].T + w["qkv.bias"], x @ w["q2.weight"].T + w["q2.bias"]
    logits = x @ w["lambda_proj.weight"].T + w["lambda_proj.bias"]
    lam = (
        1 / (1 + (-logits).exp())
        if kind == "differential_v2"
        else (logits.exp() - (-logits).exp()) / (logits.exp() + (-logits).exp())
    )
    heads = torch.zeros_like(x)
    for b in range(len(x)):
        for h in range(HEADS):
            at = slice(h * D, (h + 1) * D)
            k, v = qkv[b, :, DIM:][:, at], qkv[b, :, 2 * DIM :][:, at]
            for token in range(N):
                seen = token + 1 if is_causal else N
                first, second = (
                    ((k[:seen] @ q[b, token, at]) / math.sqrt(D)).softmax(0) @ v[:seen] for q in (qkv[..., :DIM], q2)
                )
                heads[b, token, at] = first - lam[b, token, h] * second
    return heads @ w["proj.weight"].T + w["proj.bias"]


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_equals_its_equation_and_its_maps(kind, is_causal):
    layer = double_layer(kind)
    x = torch.randn(2, N, DIM, dtype=torch.float64)
    found = layer(x, is_causal=is_causal)
    assert torch.allclose(found, by_the_equation(kind, layer, x, is_causal), atol=1e-12)
    layer.recorded = []
    assert torch.allclose(layer(x, is_causal=is_causal), found, atol=1e-12)
    (maps,) = layer.recorded
    lam = layer.token_lambdas(x)
    assert torch.equal(maps.combined, maps.a1 - maps.a2 * lam)
    assert maps.combined.shape == (2, HEADS, N, N)
    assert maps.lam == lam.mean()


@pytest.mark.parametrize(("kind", "expected"), [("differential_v2", 0.5), ("differential_gated", 0.0)])
def test_a_fresh_tower_has_the_lambda_of_its_form_and_learns(kind, expected):
    model = small_model("clip", size=TOWERS, vision_attention=kind, text_attention=kind, text_attention_layers=(1,))
    lambdas = model.lambdas()
    assert lambdas["visual"].tolist() == [expected] * 2
    assert lambdas["text"].tolist() == [0.0, expected]
    assert [type(block.attn).__name__ for block in model.text.blocks] == ["StandardAttention", FORMS[kind].__name__]
    _, maps = forward_with_maps(model.text, torch.tensor([[1, 5, 49407]]))
    assert [one.a2 is None for one in maps] == [True, False]
    model.encode_image(torch.randn(2, 3, 32, 32), normalize=True)[0, 0].backward()
    assert model.visual.blocks[0].attn.lambda_proj.weight.grad.abs().max() > 0


def test_decay_leaves_the_weights_of_lambda_alone():
    model = small_model("clip", size=EQUATIONS, vision_attention="differential_v2")
    without = next(group for group in make_optimizer(model, Optimizer()).param_groups if group["weight_decay"] == 0)
    weight = model.visual.blocks[0].attn.lambda_proj.weight
    assert any(p is weight for p in without["params"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision_attention_layers": (0,)}, "standard"),
        ({"vision_attention": "differential_v2", "vision_attention_layers": (2,)}, "from 0 to 1"),
        ({"vision_attention": "differential_v2", "vision_attention_layers": (1, 0)}, "ascending"),
        ({"text_attention": "differential", "text_attention_layers": ()}, "text_attention_layers"),
    ],
)
def test_layers_that_cannot_be_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        small_model("clip", size=TOWERS, **changes)
