"""Variants and controls: against their equations in loops, their maps, in towers, presets, optimizer and reports."""

import math

import pytest
import timm
import torch
from timm.models.vision_transformer import Block

import diffclip
from diffclip import UserError
from diffclip.config import Optimizer
from diffclip.models.attention.kinds import ATTENTION
from diffclip.models.clip import count_parameters
from diffclip.models.maps import forward_with_maps
from diffclip.models.presets import CONTROLS, PRESETS, VARIANTS, VARIED
from diffclip.plan import flops
from diffclip.reporting.families import KINDS, kind_of
from diffclip.training.optimizer import make_optimizer
from small_models import EQUATIONS, small_model

DIM, HEADS, N = 16, 4, 5
D = DIM // HEADS
NEW = [kind for kind in ATTENTION if kind not in ("standard", "differential", "differential_v2", "differential_gated")]


def double_layer(kind):
    torch.manual_seed(0)
    layer = ATTENTION[kind](DIM, HEADS, qkv_bias=True).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        if kind == "differential_clamped":
            layer.lambda_q1.copy_(layer.lambda_k1)  # λ above 1, which is then 1
    return layer


def by_the_equation(kind, layer, x, is_causal):
    """Token by token and head by head, of one example (N, C)."""
    w = {name: p.detach() for name, p in layer.named_parameters()}
    width = layer.qkv.out_features // 3
    d = width // HEADS
    q, k, v = (x @ w["qkv.weight"].T + w["qkv.bias"]).split(width, dim=-1)
    tokens = []
    seen = [range(t + 1) if is_causal else range(N) for t in range(N)]

    def row(head, t):
        at = slice(head * d, (head + 1) * d)
        weights = torch.tensor([math.exp(float(q[t, at] @ k[j, at]) / math.sqrt(d)) for j in seen[t]], dtype=x.dtype)
        full = torch.zeros(N, dtype=x.dtype)
        full[: len(weights)] = weights / weights.sum()
        return full

    def gate(name, t):
        return 1 / (1 + (-(x[t] @ w[f"{name}.weight"].T + w[f"{name}.bias"])).exp())

    def normed(head, factor):
        return factor * head / (head.square().mean() + 1e-5).sqrt() * w["norm.weight"]

    if hasattr(layer, "lambda_q1"):
        lam = float((w["lambda_q1"] @ w["lambda_k1"]).exp() - (w["lambda_q2"] @ w["lambda_k2"]).exp()) + 0.8
        lam = min(max(lam, 0.0), 1.0) if kind == "differential_clamped" else lam
    for t in range(N):
        out = []
        for h in range(HEADS if kind in CONTROLS and kind != "standard_normed" else HEADS // 2):
            own = slice(h * d, (h + 1) * d)
            pair = slice(2 * h * d, 2 * (h + 1) * d)
            if kind == "gated":
                out.append(gate("gate_proj", t)[h] * (row(h, t) @ v[:, own]))
            elif kind == "standard_wide":
                out.append(row(h, t) @ v[:, own])
            elif kind == "no_second_map":
                second = x[t] @ w["q2.weight"].T + w["q2.bias"]
                out.append(row(h, t) @ v[:, own] - gate("lambda_proj", t)[h] * second[own])
            elif kind == "standard_normed":
                values = [row(2 * h + i, t) @ v[:, (2 * h + i) * d : (2 * h + i + 1) * d] for i in (0, 1)]
                out.append(normed(torch.cat(values), 1 - 0.8))
            elif kind == "mdgsa":
                g = gate("gate_proj", t)[h]
                out.append(normed((g * row(2 * h, t) - (1 - g) * row(2 * h + 1, t)) @ v[:, pair], 1))
            else:
                weights = row(2 * h, t) - lam * row(2 * h + 1, t)
                if kind == "dint":
                    weights = weights + lam * sum(row(2 * h, s) for s in seen[t]) / len(seen[t])
                head = weights @ v[:, pair]
                out.append(head if kind == "differential_unnormed" else normed(head, 1 - 0.8))
        tokens.append(torch.cat(out) @ w["proj.weight"].T + w["proj.bias"])
    return torch.stack(tokens)


@pytest.mark.parametrize("kind", NEW)
@pytest.mark.parametrize("is_causal", [False, True])
def test_equals_its_equation_and_its_maps(kind, is_causal):
    layer = double_layer(kind)
    x = torch.randn(2, N, DIM, dtype=torch.float64)
    found = layer(x, is_causal=is_causal)
    expected = torch.stack([by_the_equation(kind, layer, one, is_causal) for one in x])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    layer.recorded = []
    torch.testing.assert_close(layer(x, is_causal=is_causal), found, rtol=1e-10, atol=1e-10)
    (maps,) = layer.recorded
    assert (maps.a2 is None) == (kind in CONTROLS)
    if kind == "dint":
        torch.testing.assert_close(maps.combined.sum(-1), torch.ones(2, HEADS // 2, N, dtype=torch.float64))
    if is_causal:  # what comes later changes nothing
        cut = layer(x[:, :3], is_causal=True)
        torch.testing.assert_close(cut, found[:, :3], rtol=1e-10, atol=1e-10)


def test_a_clamped_lambda_stays_within_0_and_1():
    layer = double_layer("differential_clamped")
    assert layer.lam() == 1
    with torch.no_grad():
        layer.lambda_q2.copy_(layer.lambda_k2.mul_(10))
    assert layer.lam() == 0


@pytest.mark.parametrize("kind", NEW)
def test_a_fresh_model_learns_in_every_parameter_and_reports_cope(kind, tmp_path):
    model = small_model("clip", size=EQUATIONS | {"vision_heads": 2}, vision_attention=kind, text_attention=kind)
    tokens = torch.tensor([[0, 3, 19, 0], [0, 4, 5, 19]])
    optimizer = make_optimizer(model, Optimizer(lr=1e-3))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(2):
        out = model(torch.randn(2, 3, 8, 8), tokens)
        (out["image_features"] * out["text_features"].roll(1, 0) + out["image_features"] ** 3).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    still = [n for n, p in model.named_parameters() if torch.equal(p, before[n]) and not n.startswith("logit")]
    assert not still
    undecayed = {id(p) for p in optimizer.param_groups[1]["params"]}
    assert all(id(p) in undecayed for n, p in model.named_parameters() if "lambda" in n or "gate" in n)
    _, maps = forward_with_maps(model.visual, torch.randn(2, 3, 8, 8))
    assert [one.lam is None for one in maps] == [kind in CONTROLS] * 3
    assert set(model.lambdas()) == (set() if kind in CONTROLS and kind != "no_second_map" else {"visual", "text"})
    assert model.config.is_differential == (kind not in CONTROLS)
    diffclip.save(model, tmp_path)
    again, _, _ = diffclip.load(tmp_path)
    pixels = torch.randn(1, 3, 8, 8)
    assert torch.equal(again.encode_image(pixels), model.eval().encode_image(pixels))
    half = again.half()
    made = [p.dtype for n, p in half.named_parameters() if "lambda" in n or "gate" in n]
    assert set(made) <= {torch.float32}


@pytest.mark.parametrize("kind", NEW)
def test_it_is_an_attention_layer_of_timms(kind):
    block = Block(16, 4, attn_layer=ATTENTION[kind])
    assert block(torch.randn(2, 5, 16)).shape == (2, 5, 16)
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=4, num_classes=3, attn_layer=ATTENTION[kind]
    )
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 3)


def test_presets_reports_and_parameters():
    for size in VARIED:
        for name, attention in VARIANTS.items():
            config = PRESETS[f"{name}_vit_{size}"]
            assert (config.vision_attention, config.text_attention) == (attention, attention)
            assert kind_of(f"{name}_vit_{size}") in KINDS[5:]
    with torch.device("meta"):
        total = {
            name: count_parameters(diffclip.create_model(f"{name}_vit_b16"))["total"]
            for name in ("clip", "diffclip_v2", "diffclip_v2_even", "clip_wide", "no_second_map", "gated")
        }
    added = {name: count - total["clip"] for name, count in total.items()}
    assert added["no_second_map"] == added["diffclip_v2"] == 10_398_960
    assert abs(added["clip_wide"] - added["diffclip_v2"]) < 0.02 * added["diffclip_v2"]
    assert abs(added["diffclip_v2_even"]) < 0.015 * added["diffclip_v2"] + 170_000
    assert added["gated"] == 12 * (769 * 12 + 513 * 8)
    operations = {name: sum(flops.forward(PRESETS[f"{name}_vit_b16"]).values()) for name in total}
    assert operations["gated"] == operations["clip"] < operations["no_second_map"] < operations["diffclip_v2"]


@pytest.mark.parametrize("kind", ["dint", "mdgsa", "standard_normed", "differential_clamped"])
def test_heads_that_make_no_pairs_are_refused(kind):
    with pytest.raises(UserError, match="even"):
        small_model("clip", size=EQUATIONS | {"vision_heads": 1}, vision_attention=kind)


def test_heads_that_cannot_be_a_quarter_wider_are_refused():
    with pytest.raises(UserError, match="quarter wider"):
        ATTENTION["standard_wide"](6, 3)
