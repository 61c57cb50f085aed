"""What a model does at the edges: empty batches, no values, second derivatives, traces, half precision."""

import pytest
import timm.layers
import torch

import diffclip
from diffclip.models.attention.ops import differential_attention
from diffclip.models.mlp import Mlp
from small_models import PICTURES, TRAINED, small_model

V2 = {"vision_attention": "differential_v2", "text_attention": "differential_v2"}
KINDS = {"clip": ("clip", {}), "diffclip": ("diffclip", {}), "v2": ("clip", V2)}
pytestmark = pytest.mark.parametrize("kind", KINDS)
PIXELS = (3, PICTURES["image_size"], PICTURES["image_size"])


def made(kind, **changes):
    preset, attention = KINDS[kind]
    return small_model(preset, **attention, **changes)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_empty_batch_has_empty_features_and_no_gradient(kind, dtype, training):
    model = made(kind).train(training).to(dtype)
    for normalize in (False, True):
        image = model.encode_image(torch.zeros(0, *PIXELS), normalize)
        texts = [model.encode_text(torch.zeros(0, length, dtype=torch.long), normalize) for length in (77, 3, 0)]
        assert [features.shape for features in (image, *texts)] == [(0, 16)] * 4
    (image.sum() + sum(text.sum() for text in texts)).backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("shape", [(0, 4, 5, 8), (2, 4, 0, 8)])
@pytest.mark.parametrize("backend", ["auto", "fused", "eager"])
def test_attention_of_nothing_is_nothing(kind, shape, backend):
    q = torch.zeros(shape, requires_grad=True)
    v = torch.zeros(shape[0], 2, shape[2], 16, requires_grad=True)
    lam = torch.tensor(0.5, requires_grad=True)
    out = differential_attention(q, q, v, lam, is_causal=kind == "clip", backend=backend)
    assert out.shape == v.shape
    out.sum().backward()
    assert lam.grad == 0


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(2, 0, dtype=torch.long), "row 0"),
        (torch.tensor([[49406.0, 49407.0]]), r"must be integers .* not \(1, 2\) torch.float32"),
        ([[49406, 49407]], "not list"),
        (torch.tensor([[-1, 49407]]), "from -1 to 49407"),
        (torch.tensor([[49408, 49407]]), "from 49407 to 49408"),
    ],
)
def test_tokens_that_are_none_are_refused(kind, tokens, message):
    with pytest.raises(diffclip.UserError, match=message):
        made(kind).encode_text(tokens)


def test_a_text_of_no_token_cannot_be_exported(kind):
    with pytest.raises(diffclip.UserError, match="at least its end"):
        made(kind).encode_full_text(torch.zeros(2, 0, dtype=torch.long))


@pytest.mark.parametrize("stem", ["patches", "convolutions"])
def test_intermediate_layers_are_those_of_the_blocks(kind, stem):
    size = TRAINED | {"patch_dropout": 0.0}
    preset, attention = KINDS[kind]
    model = diffclip.create_model(f"{preset}_vit_quickstart", **size, **attention, vision_stem=stem)
    tower = model.eval().visual
    pixels, seen = torch.randn(2, 3, 32, 32), []
    tower.blocks[0].register_forward_hook(lambda _m, _i, out: seen.append(out))
    (found, _), last = tower.forward_intermediates(pixels)[1], tower.forward_features(pixels)
    torch.testing.assert_close(found.flatten(2).mT, seen[0][:, 1:])
    torch.testing.assert_close(tower.forward_intermediates(pixels)[0], last)


def test_without_values_it_computes_shapes(kind):
    with torch.device("meta"):
        model = made(kind)
        image, text = model.encode_image(torch.empty(2, *PIXELS)), model.encode_text(torch.empty(3, 77).long())
    assert image.is_meta
    assert text.is_meta
    assert (image.shape, text.shape) == ((2, 16), (3, 16))


def test_second_derivatives_are_those_of_plain_operators(kind, monkeypatch):
    model = made(kind).eval()
    pixels = torch.randn(2, *PIXELS, requires_grad=True)
    weights = [p for n, p in model.named_parameters() if n.startswith(("visual.", "image_"))]

    def penalty():
        (gradient,) = torch.autograd.grad(model.encode_image(pixels).pow(2).sum(), pixels, create_graph=True)
        return torch.autograd.grad(gradient.pow(2).sum(), [pixels, *weights], materialize_grads=True)

    found = penalty()
    monkeypatch.setattr(Mlp, "forward", timm.layers.Mlp.forward)
    with monkeypatch.context() as patch:
        patch.setattr("diffclip.models.attention.layer.head_norm", lambda x, w, eps: plain_norm(x, w, eps))
        patch.setattr("diffclip.models.attention.ops.fastest", lambda *_: "eager")
        expected = penalty()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()) + 1e-6)
    assert expected[0].abs().max() > 0.01


def plain_norm(x, weight, eps):
    return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_gives_the_same_features_for_other_batches(kind):
    model, tokenizer = made(kind).eval(), diffclip.get_tokenizer()
    texts = tokenizer(["a dog", "two red cubes left of a ball", "", "dogs", "a"])
    pixels = torch.randn(5, *PIXELS)
    with torch.no_grad():
        traced = torch.jit.trace(model, (pixels[:2], texts[3:]), strict=False)
        for name, features in traced(pixels, texts).items():
            torch.testing.assert_close(features, model(pixels, texts)[name], rtol=0, atol=1e-5)
        text = torch.jit.trace(model.text, texts[3:])
        torch.testing.assert_close(text(texts), model.text(texts), rtol=0, atol=1e-5)


@pytest.mark.parametrize("cast", [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(torch.float16)])
def test_half_precision_rounds_neither_lambda_nor_the_temperature(kind, cast):
    whole, half = made(kind, logit_bias=-10.0), cast(made(kind, logit_bias=-10.0))
    for name, lam in whole.lambdas().items():
        assert torch.equal(lam, half.lambdas()[name])
    assert torch.equal(whole.logit_scale, half.logit_scale)
    assert half.logit_bias.dtype is torch.float32
    assert half.image_projection.dtype in (torch.float16, torch.bfloat16)
    with torch.no_grad():
        features = half(torch.randn(2, *PIXELS), diffclip.get_tokenizer()(["a", "b"]))
    assert features["text_features"].isfinite().all()
    assert half.double().logit_scale.dtype is torch.float64
    assert made(kind).to("meta").logit_scale.is_meta
