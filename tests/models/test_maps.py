import pytest
import torch

import diffclip
from diffclip.models.attention.layer import DifferentialAttention, StandardAttention
from diffclip.models.maps import forward_with_maps, record_attention
from small_models import TOWERS

SMALL = TOWERS | {"text_depth": 3}
KINDS = ("clip_vit_b16", "diffclip_vit_b16")


@pytest.fixture(params=KINDS)
def model(request):
    torch.manual_seed(0)
    return diffclip.create_model(request.param, **SMALL).eval()


def inputs():
    tokens = torch.zeros(2, 77, dtype=torch.long)
    tokens[0, :3] = torch.tensor([49406, 320, 49407])
    tokens[1, :5] = torch.tensor([49406, 320, 1125, 539, 49407])
    return torch.randn(2, 3, 32, 32), tokens


@pytest.mark.parametrize("autocast", [False, True])
def test_the_output_is_that_of_the_plain_forward(model, autocast):
    pixels, tokens = inputs()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for tower, x in ((model.visual, pixels), (model.text, tokens)):
            plain = tower(x)
            recorded, _ = forward_with_maps(tower, x)
            # As a whole: in bfloat16 the head norm makes single numbers of near-cancelling maps differ by more.
            assert (recorded - plain).norm() < (3e-2 if autocast else 1e-5) * plain.norm()
            assert torch.equal(tower(x), plain)  # nothing is left behind


def test_what_the_maps_are(model):
    pixels, tokens = inputs()
    differential = model.config.vision_attention == "differential"
    for tower, x, length in ((model.visual, pixels, 5), (model.text, tokens, 5)):
        _, maps = forward_with_maps(tower, x)
        assert len(maps) == len(tower.blocks)
        for layer, block in zip(maps, tower.blocks, strict=True):
            assert layer.combined.shape == (2, 2 if differential else 4, length, length)
            torch.testing.assert_close(layer.a1.sum(-1), torch.ones_like(layer.a1[..., 0]))
            if differential:
                assert torch.equal(layer.lam, block.attn.lam())
                torch.testing.assert_close(layer.combined, layer.a1 - layer.lam * layer.a2)
                torch.testing.assert_close(layer.combined.sum(-1), (1 - layer.lam).expand(2, 2, length))
            else:
                assert layer.a2 is None
                assert layer.lam is None
                assert torch.equal(layer.combined, layer.a1)
            if tower is model.text:
                assert (layer.combined.triu(1) == 0).all()


def test_the_maps_come_from_the_heads_that_the_weights_say():
    """Head 2i is A1 and head 2i + 1 is A2 of differential head i."""
    torch.manual_seed(0)
    layer = DifferentialAttention(32, 4).eval()
    x = torch.randn(1, 6, 32)
    with record_attention(layer) as maps:
        layer(x)
    q, k, _ = layer.qkv(x).chunk(3, -1)
    for head in range(4):
        columns = slice(8 * head, 8 * head + 8)
        expected = (q[0, :, columns] @ k[0, :, columns].T / 8**0.5).softmax(-1)
        found = (maps[0].a1 if head % 2 == 0 else maps[0].a2)[0, head // 2]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", [StandardAttention, DifferentialAttention])
def test_gradients_of_the_maps_are_those_of_the_score(kind):
    """Against the rest of the layer written as a function of the map."""
    torch.manual_seed(0)
    layer = kind(32, 4, qkv_bias=True).double()
    x, target = torch.randn(2, 6, 32, dtype=torch.float64)
    with record_attention(layer) as maps:
        score = (layer(x[None]) * target).sum()
    (found,) = torch.autograd.grad(score, [maps[0].combined])

    combined = maps[0].combined.detach().requires_grad_()
    heads = combined @ layer.qkv(x)[:, 64:].view(6, combined.shape[1], -1).transpose(0, 1)
    if kind is DifferentialAttention:
        heads = 0.2 * heads / (heads.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    expected_score = (layer.proj(heads[0].transpose(0, 1).flatten(1)) * target).sum()
    torch.testing.assert_close(score, expected_score)
    torch.testing.assert_close(found, torch.autograd.grad(expected_score, combined)[0])


def test_every_layer_has_a_gradient(model):
    pixels, tokens = inputs()
    with record_attention(model) as maps:
        output = model(pixels, tokens)
    score = (output["image_features"] * output["text_features"]).sum()
    for gradient in torch.autograd.grad(score, [layer.combined for layer in maps]):
        assert gradient.abs().max() > 0


def test_nothing_stays_after_an_exception(model):
    pixels, _ = inputs()
    with pytest.raises(RuntimeError, match="on purpose"), record_attention(model):
        raise RuntimeError("on purpose")
    with record_attention(model.visual) as first:
        model.visual(pixels)
    model.visual(pixels)
    assert len(first) == 2
    assert all(getattr(m, "recorded", None) is None for m in model.modules())
