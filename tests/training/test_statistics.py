"""What is measured by layer, against the sums written out in float64."""

import math

import pytest
import torch
from killed import recipe

from diffclip.models.clip import create_model
from diffclip.training import statistics
from diffclip.training.statistics import attention_entropy, gradient_norms, layer_statistics, mean_cosine, not_finite

MODEL = recipe(0).model.overrides | {"patch_dropout": 0.0}
END = 49407


def small(kind="diffclip"):
    torch.manual_seed(0)
    return create_model(f"{kind}_vit_quickstart", **MODEL).double()


def inputs(images=4, texts=3):
    pixels = torch.randn(images, 3, 16, 16, dtype=torch.float64)
    tokens = torch.randint(1, END, (texts, 6))
    tokens[:, 4] = END
    tokens[0, 2] = END
    return pixels, tokens


def test_entropy_equals_the_sum_written_out():
    maps = torch.rand(2, 3, 5, 5, dtype=torch.float64).softmax(-1)
    total = sum(-p * math.log(p) for p in maps.flatten().tolist())
    assert attention_entropy(maps, causal=False) == pytest.approx(total / (2 * 3 * 5 * math.log(5)), rel=1e-9)


def test_uniform_maps_have_entropy_one_and_single_tokens_none():
    uniform = torch.full((1, 2, 6, 6), 1 / 6)
    causal = torch.ones(6, 6).tril() / torch.arange(1, 7)[:, None]
    assert attention_entropy(uniform, causal=False) == pytest.approx(1.0)
    assert attention_entropy(causal.expand(1, 2, 6, 6), causal=True) == pytest.approx(1.0)
    assert attention_entropy(torch.eye(6).expand(1, 2, 6, 6), causal=False) == 0.0
    assert attention_entropy(torch.ones(1, 1, 1, 1), causal=True) == 1.0


def test_mean_cosine_equals_the_mean_over_pairs():
    features = torch.randn(5, 7, dtype=torch.float64)
    pairs = [
        float(a @ b / (a.norm() * b.norm())) for i, a in enumerate(features) for j, b in enumerate(features) if i != j
    ]
    assert mean_cosine(features) == pytest.approx(sum(pairs) / len(pairs), rel=1e-12)
    assert mean_cosine(features[:1].expand(4, 7)) == pytest.approx(1.0)
    assert mean_cosine(features[:1]) == 1.0


@torch.no_grad()
def test_the_residual_stream_is_that_between_the_blocks():
    model, (pixels, tokens) = small(), inputs()
    found = layer_statistics(model, pixels, tokens)
    x = model.visual._pos_embed(model.visual.patch_embed(pixels))
    for layer, block in enumerate(model.visual.blocks):
        x = block(x)
        assert found["rms_visual"][layer] == pytest.approx(math.sqrt(x.square().mean()), rel=1e-5)
        assert found["cosine_visual"][layer] == pytest.approx(mean_cosine(x[:, 0]), rel=1e-9)
    x = model.text.token_embedding(tokens[:, :5]) + model.text.positional_embedding[:5]
    x = model.text.blocks[0](x, is_causal=True)
    ends = torch.stack([x[0, 2], x[1, 4], x[2, 4]])
    assert found["cosine_text"] == pytest.approx([mean_cosine(ends)], rel=1e-9)
    assert not any(block._forward_hooks for block in model.visual.blocks)


@torch.no_grad()
def test_what_the_subtraction_leaves_and_what_is_negative():
    model, (pixels, tokens) = small(), inputs()
    found = layer_statistics(model, pixels, tokens)
    for tower, x, causal in (("visual", pixels, False), ("text", tokens[:, :5], True)):
        _, maps = statistics.forward_with_maps(getattr(model, tower), x)
        for layer, one in enumerate(maps):
            combined = [float(a - one.lam * b) for a, b in zip(one.a1.flatten(), one.a2.flatten(), strict=True)]
            left = math.sqrt(sum(c**2 for c in combined) / sum(float(a) ** 2 for a in one.a1.flatten()))
            assert found[f"left_{tower}"][layer] == pytest.approx(left, rel=1e-6)
            size = one.a1.shape[-1]
            seen = one.a1[..., 0, 0].numel() * sum(i + 1 if causal else size for i in range(size))
            assert found[f"negative_{tower}"][layer] == pytest.approx(sum(c < 0 for c in combined) / seen)


def test_standard_attention_subtracts_nothing():
    found = layer_statistics(small("clip"), *inputs())
    assert {name.split("_")[0] for name in found} == {"entropy", "rms", "cosine"}


def test_gradient_norms_are_of_all_and_of_each_block():
    model, (pixels, tokens) = small(), inputs(3, 3)
    out = model(image=pixels, text=tokens)
    (out["image_features"] * out["text_features"]).sum().backward()
    norms = gradient_norms(model)
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert norms.total == pytest.approx(math.sqrt(sum(g * g for g in flat.tolist())), rel=1e-9)
    block = torch.cat([p.grad.flatten() for p in model.visual.blocks[1].parameters()])
    assert norms.layers["visual"][1] == pytest.approx(float(block.norm()), rel=1e-9)
    assert {tower: len(values) for tower, values in norms.layers.items()} == {"visual": 2, "text": 1}
    assert norms.finite
    model.visual.blocks[1].attn.proj.bias.grad[3] = math.nan
    assert not gradient_norms(model).finite
    assert not_finite(model, gradients=True) == ["visual.blocks.1.attn.proj.bias"]
    assert not_finite(model) == []


def test_without_gradients_the_norm_is_zero():
    assert gradient_norms(small()).total == 0.0
