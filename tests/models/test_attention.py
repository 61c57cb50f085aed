"""The layers: against the paper, against timm's, and inside timm's models."""

import math

import pytest
import timm.layers
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

import diffclip
from diffclip.models.attention.layer import DifferentialAttention, StandardAttention

DIM, HEADS, N = 24, 4, 6
D = DIM // HEADS
LAMBDAS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


def double_layer(lambda_init=0.8, seed=0, **options):
    torch.manual_seed(seed)
    layer = DifferentialAttention(DIM, HEADS, lambda_init=lambda_init, **options).double()
    with torch.no_grad():
        layer.norm.weight.uniform_(0.5, 1.5)
    return layer


def by_the_paper(layer, x, is_causal):
    """Multi-head differential attention, equations 1 to 3 with DiffCLIP's interleaved heads, head by head."""
    w, bias = dict(layer.named_parameters()), layer.lambda_init
    lam = (w["lambda_q1"] @ w["lambda_k1"]).exp() - (w["lambda_q2"] @ w["lambda_k2"]).exp() + bias
    wq, wk, wv = w["qkv.weight"].split(DIM)
    bq, bk, bv = w["qkv.bias"].split(DIM)
    rows = []
    for tokens in x:  # (N, C)
        q, k, v = tokens @ wq.T + bq, tokens @ wk.T + bk, tokens @ wv.T + bv
        heads = []
        for i in range(HEADS // 2):
            maps = []
            for head in (2 * i, 2 * i + 1):
                columns = slice(head * D, (head + 1) * D)
                logits = q[:, columns] @ k[:, columns].T / math.sqrt(D)
                if is_causal:
                    future = torch.arange(N)[None, :] > torch.arange(N)[:, None]
                    logits = logits.masked_fill(future, -math.inf)
                exps = logits.exp()
                maps.append(exps / exps.sum(1, keepdim=True))
            out = (maps[0] - lam * maps[1]) @ v[:, i * 2 * D : (i + 1) * 2 * D]  # (N, 2D)
            rms = (out.pow(2).mean(1, keepdim=True) + 1e-5).sqrt()
            heads.append((1 - bias) * w["norm.weight"] * out / rms)
        rows.append(torch.cat(heads, 1) @ w["proj.weight"].T + w["proj.bias"])
    return torch.stack(rows)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("lambda_init", [0.0, 0.5, 0.8])
def test_equals_the_paper(is_causal, lambda_init):
    layer = double_layer(lambda_init)
    x = torch.randn(2, N, DIM, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, N, DIM, dtype=torch.float64)
    found, expected = layer(x, is_causal=is_causal), by_the_paper(layer, x, is_causal)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    inputs = {"x": x, **dict(layer.named_parameters())}
    for name, f, e in zip(
        inputs,
        torch.autograd.grad((found * weights).sum(), inputs.values()),
        torch.autograd.grad((expected * weights).sum(), inputs.values()),
        strict=True,
    ):
        torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("depth", [0, 3])
def test_equals_timms_layer_with_the_same_weights(fused, depth):
    """timm counts differential heads, half as many; the same interleaved pairs, and λ_init by depth."""
    theirs = timm.layers.DiffAttention(DIM, num_heads=HEADS // 2, qkv_bias=True, depth=depth).double()
    theirs.fused_attn = fused
    ours = DifferentialAttention(DIM, HEADS, lambda_init=theirs.lambda_init).double()
    weights = {name.replace("sub_norm", "norm"): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(weights)
    x = torch.randn(2, N, DIM, dtype=torch.float64)
    for is_causal in (False, True):
        torch.testing.assert_close(ours(x, is_causal=is_causal), theirs(x, is_causal=is_causal))
    mask = torch.rand(N, N) > 0.3
    mask.fill_diagonal_(True)
    torch.testing.assert_close(ours(x, attn_mask=mask), theirs(x, attn_mask=mask))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_standard_attention_equals_timms(is_causal, autocast):
    theirs = timm.layers.Attention(DIM, HEADS, qkv_bias=True)
    ours = StandardAttention(DIM, HEADS, qkv_bias=True)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, N, DIM)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, expected = ours(x, is_causal=is_causal), theirs(x, is_causal=is_causal)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=2e-2 if autocast else 1e-5, atol=1e-2 if autocast else 1e-6)


@pytest.mark.parametrize("layer", [DifferentialAttention, StandardAttention])
def test_is_a_layer_of_timms_models(layer):
    x = torch.randn(2, 3, 32, 32)
    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=7, attn_layer=layer
    )
    assert model(x).shape == (2, 7)
    block = Block(32, 4, qkv_bias=False, proj_bias=False, attn_layer=layer)
    assert block(torch.randn(1, 5, 32), is_causal=True).shape == (1, 5, 32)
    assert sorted(n for n, _ in block.attn.named_parameters() if "." in n) == (
        ["norm.weight", "proj.weight", "qkv.weight"]
        if layer is DifferentialAttention
        else ["proj.weight", "qkv.weight"]
    )


def test_bfloat16_is_close_and_lambda_stays_float32():
    layer = DifferentialAttention(64, 4)
    x = torch.randn(2, 17, 64)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
        assert layer.lam().dtype == torch.float32
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 2e-2 * expected.abs().max()

    exact = layer.lam().item()
    rounded = layer.bfloat16()
    assert rounded.lam().dtype == torch.float32
    # Only the vectors are rounded, not the exponentials, whose difference would be off by 0.004.
    by_hand = [getattr(rounded, name).double() for name in LAMBDAS]
    by_hand = (by_hand[0] @ by_hand[1]).exp() - (by_hand[2] @ by_hand[3]).exp() + 0.8
    assert rounded.lam().item() == pytest.approx(by_hand.item(), abs=1e-6)
    assert abs(rounded.lam().item() - exact) < 2e-3


def test_lambda_starts_around_lambda_init_and_sometimes_above_one():
    """“λ = 0.8” starts at 0.80 ± 0.11 with heads of 64: 4 % of the layers start above 1."""
    torch.manual_seed(0)
    vectors = 0.1 * torch.randn(4, 20_000, 64, dtype=torch.float64)
    lam = (vectors[0] * vectors[1]).sum(1).exp() - (vectors[2] * vectors[3]).sum(1).exp() + 0.8
    layers = torch.stack([DifferentialAttention(128, 2).lam().detach() for _ in range(300)])
    assert lam.std().item() == pytest.approx(0.113, abs=0.003)
    assert (lam > 1).double().mean().item() == pytest.approx(0.039, abs=0.005)
    assert layers.mean().item() == pytest.approx(0.8, abs=0.03)
    assert layers.std().item() == pytest.approx(0.113, abs=0.02)


def set_lambda(layer, value):
    """Make λ exactly `value`: exp(log(1 + value − λ_init)) − exp(0) + λ_init."""
    with torch.no_grad():
        for name in LAMBDAS:
            getattr(layer, name).zero_()
        layer.lambda_q1[0] = math.log(1 + value - layer.lambda_init)
        layer.lambda_k1[0] = 1.0


def test_the_first_token_of_a_causal_text_changes_sign_at_lambda_one():
    """Both its maps are 1, so a head is (1 − λ)v; the RMSNorm takes the size away and leaves the sign."""
    layer = double_layer()
    layer.proj = nn.Identity()
    x = torch.randn(1, N, DIM, dtype=torch.float64)
    outputs = []
    for lam in (0.9, 1.1):
        set_lambda(layer, lam)
        assert layer.lam().item() == pytest.approx(lam)
        outputs.append(layer(x, is_causal=True)[0, 0])
    torch.testing.assert_close(outputs[0], -outputs[1])
    v = layer.qkv(x)[0, 0, 2 * DIM :].view(HEADS // 2, 2 * D)
    normalised = nn.functional.rms_norm(0.1 * v, (2 * D,), layer.norm.weight, 1e-5) * 0.2
    torch.testing.assert_close(outputs[0].view_as(v), normalised)
    set_lambda(layer, 1.0)
    assert (layer(x, is_causal=True)[0, 0].abs() < 1e-12).all()


def test_the_norm_of_near_cancelling_maps_amplifies_gradients_up_to_its_eps():
    """For an input of root mean square s the norm's Jacobian is 1/√(s² + eps): 1, 95, 302, at most 316."""
    x = torch.randn(128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x / x.pow(2).mean().sqrt()
    norm = DifferentialAttention(128, 2).double().norm
    for scale in (1, 0.01, 0.001, 0):
        jacobian = torch.autograd.functional.jacobian(norm, scale * x)
        expected = (scale**2 + 1e-5) ** -0.5
        assert torch.linalg.matrix_norm(jacobian, 2).item() == pytest.approx(expected, rel=1e-3)


def test_dropout_only_in_training():
    layer = double_layer(attn_drop=0.5)
    x = torch.randn(1, N, DIM, dtype=torch.float64)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    torch.testing.assert_close(layer(x), by_the_paper(layer, x, is_causal=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 48, "num_heads": 3}, "even, not 3"),
        ({"dim": 50, "num_heads": 4}, "width 50 is not a multiple of its 4 heads"),
        ({"dim": 48, "num_heads": 4, "lambda_init": 1.0}, "lambda_init = 1.0"),
        ({"dim": 48, "num_heads": 4, "lambda_init": -0.1}, "lambda_init = -0.1"),
        ({"dim": 48, "num_heads": 4, "qk_norm": True}, "qk_norm"),
    ],
)
def test_refuses_what_cannot_be_with_its_numbers(options, message):
    with pytest.raises(diffclip.UserError, match=message):
        DifferentialAttention(**options)
