"""convert on models of transformers: the start is exact, and what is new learns."""

import pytest
import torch

import diffclip
from diffclip import UserError
from diffclip.models.attention.layer import DifferentialAttention

transformers = pytest.importorskip("transformers")
EXACT = ("differential_v2", "differential_gated", "no_second_map")


def of_transformers(name, implementation):
    """A small model of transformers', random, and a function of it that returns what it gives."""
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = small | {"image_size": 16, "patch_size": 8}
    text = small | {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 49}
    tokens = torch.randint(1, 48, (3, 7))
    tokens[:, 6], mask = 49, torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    pixels = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    configs = {
        "clip": lambda: transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8),
        "siglip": lambda: transformers.SiglipConfig(text_config=text, vision_config=vision),
        "dinov2": lambda: transformers.Dinov2Config(**vision),
        "bert": lambda: transformers.BertConfig(**text),
        "align_text": lambda: transformers.AlignTextConfig(**text),
        "blip_text": lambda: transformers.BlipTextConfig(**text, encoder_hidden_size=16),
        "blip_vision": lambda: transformers.BlipVisionConfig(**vision),
    }
    torch.manual_seed(0)
    config = configs[name]()
    config._attn_implementation = implementation
    kind = "CLIP" if name == "clip" else "".join(part.title() for part in name.split("_"))
    model = getattr(transformers, f"{kind}Model")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)

    def run(model):
        if name in ("clip", "siglip"):
            return model(input_ids=tokens, pixel_values=pixels, attention_mask=mask).logits_per_image
        if name in ("dinov2", "blip_vision"):
            return model(pixels).last_hidden_state
        return model(input_ids=tokens, attention_mask=mask).last_hidden_state

    return model.double(), run


@pytest.mark.parametrize("attention", EXACT)
@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        *((name, "sdpa") for name in ("clip", "siglip", "dinov2", "bert")),
        *((name, "eager") for name in ("clip", "align_text", "blip_text", "blip_vision")),
    ],
)
def test_models_of_transformers(name, implementation, attention):
    model, run = of_transformers(name, implementation)
    converted = diffclip.convert(model, attention)
    torch.testing.assert_close(run(converted), run(model), rtol=1e-10, atol=1e-10)
    new = {n: p for n, p in converted.named_parameters() if any(s in n for s in (".second.", ".q2.", ".lambda_proj."))}
    assert len(new) == 4 * (4 if name in ("clip", "siglip") else 2)
    before = {n: p.detach().clone() for n, p in new.items()}
    optimizer = torch.optim.SGD(converted.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        run(converted).square().sum().backward()
        optimizer.step()
    assert not [n for n, p in new.items() if torch.equal(p, before[n])]
    again = diffclip.convert(of_transformers(name, implementation)[0], attention)
    again.load_state_dict(converted.state_dict())
    assert torch.equal(run(again), run(converted))
    with pytest.raises(UserError, match="cannot be converted"):
        diffclip.convert(converted, attention)


def test_another_family_is_refused_with_what_was_found():
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vit = transformers.ViTModel(transformers.ViTConfig(**small, image_size=16, patch_size=8))
    with pytest.raises(UserError, match=r"CLIPAttention.* of transformers, and its attention is ViTAttention"):
        diffclip.convert(vit)


@pytest.mark.parametrize("name", ["clip", "bert", "blip_text", "blip_vision"])
def test_the_papers_form_is_that_of_our_own_layer(name):
    """Our layer, which has a test of its own, with the matrices of the one that was wrapped."""
    model, run = of_transformers(name, "sdpa" if name == "clip" else "eager")  # whose eager softmax is in float32
    with pytest.raises(UserError, match="cannot start where this model is"):
        diffclip.convert(model, "differential")
    converted = diffclip.convert(model, "differential", lambda_init=0.3, inexact=True).double()
    assert torch.isfinite(run(converted)).all()
    torch.manual_seed(1)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    ours = DifferentialAttention(16, 2, lambda_init=0.3).double()
    if name == "blip_vision":
        layer = converted.encoder.layers[0].self_attn
        assert isinstance(layer.attn, DifferentialAttention)
        torch.testing.assert_close(layer(x)[0], layer.attn(x))
        return
    bert = name in ("bert", "blip_text")
    layer = converted.encoder.layer[0].attention if bert else converted.vision_model.encoder.layers[0].self_attn
    names = (
        ("self.query", "self.key", "self.value", "output.dense") if bert else ("q_proj", "k_proj", "v_proj", "out_proj")
    )
    q, k, v, out = (layer.get_submodule(part) for part in names)
    with torch.no_grad():
        ours.qkv.weight.copy_(torch.cat([one.once.weight for one in (q, k, v)]))
        ours.qkv.bias.copy_(torch.cat([one.once.bias for one in (q, k, v)]))
        ours.proj.weight.copy_(out.out.weight)
        ours.proj.bias.copy_(out.out.bias)
        for part in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2", "norm.weight"):
            ours.get_parameter(part).copy_(out.get_parameter(part).normal_())
    if bert:  # the output of attention, before the residual and its norm
        layer.output.LayerNorm = torch.nn.Identity()
        torch.testing.assert_close(layer(x)[0] - x, ours(x), rtol=1e-9, atol=1e-9)
    else:
        torch.testing.assert_close(layer(hidden_states=x, attention_mask=None)[0], ours(x), rtol=1e-9, atol=1e-9)


def test_heads_of_the_papers_form_make_pairs():
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    bert = transformers.BertModel(transformers.BertConfig(**small, vocab_size=9))
    with pytest.raises(UserError, match="BertAttention: differential attention pairs its heads"):
        diffclip.convert(bert, "differential", inexact=True)
